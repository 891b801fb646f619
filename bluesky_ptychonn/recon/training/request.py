"""A training as a user asks for it: what is left open is chosen here, then it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.card import ModelCard
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.optics.probe_family import ProbeFamily
from bluesky_ptychonn.optics.probe_file import ProbeFile, open_probe
from bluesky_ptychonn.optics.probe_grid import resampled
from bluesky_ptychonn.recon.data.batches import Mix, TrainingData
from bluesky_ptychonn.recon.data.probes import probe_photons
from bluesky_ptychonn.recon.data.scans import LabelledScan, MeasuredScan
from bluesky_ptychonn.recon.data.simulated import SyntheticConfig
from bluesky_ptychonn.recon.models.checkpoint import Model, choose_device, load_model
from bluesky_ptychonn.recon.networks.base import FamilyConfig
from bluesky_ptychonn.recon.networks.families import family_class
from bluesky_ptychonn.recon.training.config import TrainingConfig, TrainingSettings
from bluesky_ptychonn.recon.training.loop import Progress
from bluesky_ptychonn.recon.training.model import ModelInfo, train_model

#: Probe that means random ones, for a model that is told its probe later.
ANY_PROBE = "any"
#: Photons of random probes, and how far doses vary: beamlines differ by more than one does from itself.
_ANY_PHOTONS, _ANY_SPREAD = 3e5, 3.0
_ANY_WIDTH = 48
_SHARES = ("simulated", "labelled", "label-free")


@dataclass(frozen=True)
class TrainRequest:
    """What ``ptychonn train`` is asked; `run` does it.

    Parameters
    ----------
    probe : str
        ``simulated``, a file with the complex probe, or ``any`` for random ones.
    out : Path
        The model's folder.
    info : ModelInfo
        For the card.
    settings : TrainingSettings
        0 frames measure the weights of `start` for this probe.
    geometry_given : mapping of str to float
        ``energy_ev`` or ``wavelength_m``, ``distance_m``, ``pixel_pitch_m``, where the probe's file has none or
        another.
    family : str
        Of the network, see `bluesky_ptychonn.recon.networks.families.FAMILIES`; that of `start` where there is one.
    start : str, optional
        Model to start from: its network is taken, whatever its frame size.
    photons, width, patch : float, float, int, optional
        Photons of a frame without sample, the network's width, side of its patch in px; the usual ones by default.
    frame_size : int
        Side of a frame with random probes, px.
    mix : str, optional
        See `read_mix`.
    device : str
        Where to train.

    Raises
    ------
    ValueError
        In words: nothing to train, an unknown family, one that is not told its probe with random ones, no geometry.
    """

    probe: str
    out: Path
    info: ModelInfo
    settings: TrainingSettings
    geometry_given: Mapping[str, float]
    family: str = "lifted"
    start: str | None = None
    photons: float | None = None
    width: float | None = None
    patch: int | None = None
    frame_size: int = 128
    mix: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.settings.get("frames", 1) < 1 and self.start is None:
            raise ValueError("train: --frames 0 trains nothing; give --start with a model to measure, or more frames")
        config = family_class(self.family).config_class
        if self.any_probe and not config.uses_probe:
            raise ValueError(
                "train: --probe any is for a family that is told its probe, such as lifted: "
                f"a {self.family} network is not told its probe"
            )
        if not self.any_probe:  # what is missing is said before scans are read
            _ = self.geometry

    @property
    def any_probe(self) -> bool:
        """Whether the model is trained on random probes."""
        return self.probe == ANY_PROBE

    @cached_property
    def start_model(self) -> Model | None:
        """The model to start from, on the CPU."""
        return None if self.start is None else load_model(self.start, "cpu")

    @cached_property
    def _probe_file(self) -> ProbeFile:
        return open_probe(self.probe)

    @property
    def probe_wave(self) -> NDArray[np.complex64]:
        """The probe (N, N) that was asked for, on the grid of the network's frames."""
        wave = self._probe_file.wave
        if self.any_probe:
            return wave
        pixel_m = self.geometry.object_pixel_m * self.geometry.frame_shape[0] / len(wave)
        return wave if len(wave) == self.geometry.frame_shape[0] else resampled(wave, pixel_m, self.geometry)

    def run(
        self,
        labelled: Sequence[LabelledScan] = (),
        measured: Sequence[MeasuredScan] = (),
        progress: Progress | None = None,
    ) -> ModelCard | None:
        """Train the model and write its folder; see `train_model`. Scans are without effect with random probes."""
        common: dict[str, Any] = {"progress": progress, "start": self.start_model, "device": choose_device(self.device)}
        if self.any_probe:
            data, geometry, mix, info = TrainingData(), None, Mix(), self.info
            photons = self.photons or _ANY_PHOTONS
            network = self._network(self.frame_size, self.width or _ANY_WIDTH, photons)
            synthetic = SyntheticConfig(photons=photons, dose_spread=_ANY_SPREAD, probes=ProbeFamily.broad())
        else:
            data, geometry = TrainingData(self.probe_wave, labelled, measured), self.geometry
            info = replace(self.info, light_fraction=self._probe_file.light_fraction)
            mix = read_mix(self.mix, labelled=bool(labelled), label_free=bool(measured))
            photons = self.photons or probe_photons(self.probe_wave)
            network = self._network(len(self.probe_wave), self.width, photons)
            synthetic = SyntheticConfig(photons=photons, dose_spread=network.dose_spread)
        config = TrainingConfig(network=network, synthetic=synthetic, mix=mix, loss=network.loss, **self.settings)
        return train_model(data, geometry, config, self.out, info, **common)

    def _network(self, size: int, width: float | None, photons: float) -> FamilyConfig:
        if self.start_model is None:
            family = family_class(self.family).config_class
            return family.for_training(size, self.patch or family.usual_patch(size), width, photons)
        config = getattr(self.start_model.network, "config", None)
        if not isinstance(config, FamilyConfig):
            raise ValueError(f"train: model {self.start!r} is no network of this package, it cannot be trained on")
        return config.resized(size, self.patch)

    @cached_property
    def geometry(self) -> Geometry:
        """Geometry of the network's frames, from the probe's file and what was given.

        Frames are as large as the probe, or cut by a row and a column where that is odd.
        """
        wave, known = self._probe_file.wave, self._probe_file.geometry
        given = self.geometry_given
        if known is not None:
            return known.updated(given, "command line")
        names = ("wavelength_m" if "wavelength_m" in given else "energy_ev", "distance_m", "pixel_pitch_m")
        if missing := [f"--{name.replace('_', '-')}" for name in names if name not in given]:
            raise ValueError(
                f"train: the probe's file says nothing of the geometry; give {', '.join(missing)} (eV, m, m)"
            )
        side = len(wave) - len(wave) % 2
        return Geometry.from_document({**given, "frame_shape": (side, side)}, "command line")


def read_mix(text: str | None, *, labelled: bool, label_free: bool) -> Mix:
    """Read shares such as ``simulated=1,labelled=1,label-free=0.5``, or ValueError; by default of what there is."""
    if text is None:
        return Mix.usual(simulated=True, labelled=labelled, label_free=label_free)
    shares = dict.fromkeys(_SHARES, 0.0)
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        try:
            if name not in shares or not 0 <= float(value) < float("inf"):
                raise ValueError
        except ValueError:
            raise ValueError(
                f"train: --mix has {part.strip()!r}; allowed are {', '.join(f'{s}=NUMBER' for s in _SHARES)}, with "
                "commas between them, and no number negative"
            ) from None
        shares[name] = float(value)
    if not sum(shares.values()) > 0:
        raise ValueError("train: --mix gives everything a share of 0; give something more")
    return Mix(**{name.replace("-", "_"): share for name, share in shares.items()})
