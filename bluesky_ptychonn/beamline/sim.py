"""The simulated beamline: a stage and a camera before a simulated experiment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.beamline.axis import SimStage
from bluesky_ptychonn.beamline.camera import SimCamera
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.optics.simulate import SampleKind, SimulatedExperiment


@dataclass(frozen=True)
class ExperimentSource:
    """A `SimulatedExperiment` as a `FrameProvider`: exposure k always has the same noise."""

    experiment: SimulatedExperiment

    @property
    def geometry(self) -> Geometry:
        """Geometry of the experiment."""
        return self.experiment.geometry

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the counts."""
        return np.dtype(np.uint16)

    @property
    def probe_diameter_m(self) -> float | None:
        """Illuminated diameter, m."""
        return self.experiment.probe_diameter_m

    def frame_at(self, y_m: float, x_m: float, exposure: int) -> NDArray[np.uint16]:
        """Frame (N, N) uint16 in counts."""
        return self.experiment.frame_at(y_m, x_m, np.random.default_rng([self.experiment.seed, exposure]))


@dataclass(frozen=True)
class SimulatedBeamline:
    """A stage and a camera before a simulated experiment.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     beamline = SimulatedBeamline.demo(folder)
    ...     beamline.stage.x.egu, beamline.geometry.frame_shape
    ('mm', (64, 64))
    """

    stage: SimStage
    camera: SimCamera
    experiment: SimulatedExperiment

    @property
    def geometry(self) -> Geometry:
        """Geometry of the experiment."""
        return self.experiment.geometry

    @classmethod
    def from_experiment(
        cls,
        experiment: SimulatedExperiment,
        folder: Path | str,
        *,
        egu: str = "mm",
        velocity: float = 0.0,
        settle_error: float = 0.0,
        **camera: Any,
    ) -> SimulatedBeamline:
        """Put devices around an experiment.

        Parameters
        ----------
        experiment : SimulatedExperiment
            What is measured.
        folder : Path
            Where the camera writes.
        egu : str
            Unit of the stage's axes.
        velocity, settle_error : float
            See `SimAxis`, in `egu` (a second).
        **camera
            ``documents``, ``exposure_s`` and faults, see `SimCamera`.
        """
        stage = SimStage(name="stage", egu=egu, velocity=velocity, settle_error=settle_error, seed=experiment.seed)
        source = ExperimentSource(experiment)
        return cls(stage, SimCamera(source=source, stage=stage, folder=folder, **camera), experiment)

    @classmethod
    def demo(
        cls, folder: Path | str, sample: SampleKind = "etched", seed: int = 2026, **options: Any
    ) -> SimulatedBeamline:
        """Build the beamline that the shipped model was trained for.

        Parameters
        ----------
        folder : Path
            Where the camera writes.
        sample : str
            See `make_sample`.
        seed : int
            Of the sample.
        **options
            See `from_experiment`.
        """
        return cls.from_experiment(SimulatedExperiment.demo(sample, seed), folder, **options)
