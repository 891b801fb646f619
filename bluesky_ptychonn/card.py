"""What a model promises: its input, its probe, its measured errors and the scan spacing they allow.

A model is a folder with ``card.json`` and ``model.safetensors``. Nothing here needs torch, so plans can read a card
where no network can run.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from bluesky_ptychonn.calibration import TrustCalibration
from bluesky_ptychonn.files import write_whole
from bluesky_ptychonn.model_folders import CARD_FILE, available_models, find_model, model_folders
from bluesky_ptychonn.optics.framing import PUBLISHED_PREPROCESSING, PreprocessConfig
from bluesky_ptychonn.optics.geometry import Geometry

__all__ = [
    "CARD_FILE",
    "InputContract",
    "MeasuredCurve",
    "ModelCard",
    "ProbeReference",
    "SamplingPoint",
    "available_models",
    "find_model",
    "load_card",
    "model_folders",
]

#: Largest card that is read, bytes; the shipped ones take 20 kB.
MOST_CARD = 1 << 22
#: Step over probe diameter of a scan that an iterative solver needs: 9 px in a ring of 60 px on the Velociprobe's star.
DENSE_SAMPLING = 0.15
#: Families whose networks are told their probe.
PROBE_FAMILIES = ("lifted",)
#: How far the object pixel may be from the one a model was trained at, relative.
PIXEL_TOLERANCE = 0.02

_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=80)]
_Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SamplingPoint(_Frozen):
    """Error measured on samples the model never saw, at one scan spacing.

    Parameters
    ----------
    sampling : float
        Step over the probe's illuminated diameter.
    step_m : float
        Step, m.
    phase_mae_rad : float
        Mean absolute phase error of the mosaic, global phase removed, rad.
    phase_correlation : float
        Of the mosaic with the truth, -1 to 1.
    covered_fraction : float
        Part of the scanned area the mosaic covers, 0 to 1.
    frames : int
        Frames of a scan.
    scans : int
        Scans that were averaged.
    solver_phase_mae_rad, solver_phase_correlation, solver_s : float, optional
        What an iterative solver made of the same frames through the same probe, on the same area, and how long it took.
    """

    sampling: _Positive
    step_m: _Positive
    phase_mae_rad: float = Field(ge=0, le=math.pi)
    phase_correlation: float = Field(ge=-1, le=1)
    covered_fraction: float = Field(ge=0, le=1)
    frames: int = Field(ge=1)
    scans: int = Field(default=1, ge=1)
    solver_phase_mae_rad: float | None = Field(default=None, ge=0, le=math.pi)
    solver_phase_correlation: float | None = Field(default=None, ge=-1, le=1)
    solver_s: float | None = Field(default=None, ge=0)


class MeasuredCurve(_Frozen):
    """Error against scan spacing on measured frames, with an iterative solver's image for the truth.

    Parameters
    ----------
    source : str
        The label and its run.
    points : tuple of SamplingPoint
        Ascending steps.
    """

    source: str
    points: tuple[SamplingPoint, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> MeasuredCurve:
        _check_ascending(self.points, f"labelled, {self.source}")
        return self


class InputContract(_Frozen):
    """What a model takes and gives.

    Parameters
    ----------
    frame_shape : tuple of int
        Rows and columns the network takes, after preprocessing, px.
    patch_shape : tuple of int
        Rows and columns of the object patch it gives, px.
    object_pixel_m : float
        Object pixel it was trained at, m.
    counts_per_frame : tuple of float
        Lowest and highest total counts of a frame seen in training.
    max_count : float, optional
        Highest count in a pixel that a detector of this beamline can give.
    preprocess : PreprocessConfig
        From recorded frames to the network's.
    orientation : str
        How patch axes lie to the scan's axes, in words.
    energy_ev, wavelength_m : float, optional
        Energy of photons it was trained for, eV; of electrons their wavelength, m, as in `Geometry`.
    """

    frame_shape: tuple[int, int]
    patch_shape: tuple[int, int]
    object_pixel_m: _Positive
    counts_per_frame: tuple[float, float]
    max_count: float | None = Field(default=None, gt=0)
    preprocess: PreprocessConfig = PreprocessConfig()
    orientation: str = "rows along +y, columns along +x"
    energy_ev: float | None = Field(default=None, gt=0)
    wavelength_m: float | None = Field(default=None, gt=0)

    @property
    def light(self) -> dict[str, float]:
        """Energy, wavelength or both, as a `Geometry` takes them; empty where neither is known."""
        return {name: value for name in ("energy_ev", "wavelength_m") if (value := getattr(self, name)) is not None}

    @model_validator(mode="after")
    def _consistent(self) -> InputContract:
        low, high = self.counts_per_frame
        if not 0 <= low < high:
            raise ValueError(f"counts_per_frame {self.counts_per_frame}: give (lowest, highest), 0 <= lowest < highest")
        if any(not 0 < p <= f for p, f in zip(self.patch_shape, self.frame_shape, strict=True)):
            raise ValueError(f"patch_shape {self.patch_shape} px must lie within frame_shape {self.frame_shape} px")
        return self


class ProbeReference(_Frozen):
    """The illumination a model was trained for.

    Parameters
    ----------
    diameter_m, diameter_px : float
        Illuminated diameter (90 % of the intensity), m and object pixels.
    sha256 : str
        Of the complex64 array's bytes, C order.
    source : str
        Where it came from.
    light_fraction : float, optional
        Part of the light that it has, where the beam has further modes, which are left out; None for a beam of one.
    """

    diameter_m: _Positive
    diameter_px: _Positive
    sha256: _Sha256
    source: str
    light_fraction: float | None = Field(default=None, gt=0, le=1)

    @classmethod
    def from_probe(
        cls, probe: NDArray[np.complexfloating], object_pixel_m: float, source: str, light_fraction: float = 1.0
    ) -> ProbeReference:
        """Describe a probe (N, N) complex: the object pixel in m, where it came from, its part of the light."""
        from bluesky_ptychonn.optics.simulate import illuminated_diameter_px

        array = np.ascontiguousarray(probe, dtype=np.complex64)
        diameter_px = illuminated_diameter_px(array)
        return cls(
            diameter_m=diameter_px * object_pixel_m,
            diameter_px=diameter_px,
            sha256=hashlib.sha256(array.tobytes()).hexdigest(),
            source=source,
            light_fraction=light_fraction if light_fraction < 1 else None,
        )


class ModelCard(_Frozen):
    """A model's promises, kept as JSON beside its weights.

    Parameters
    ----------
    name, version : str
        What users call it.
    family : str
        Of its network: ``lifted``, which works through the known probe, ``direct``, or another.
    network : dict
        Configuration for ``recon.networks.families.build_network``.
    input : InputContract
    probe : ProbeReference or None
    held_out : dict of str to float
        Errors on samples never seen in training.
    sampling : tuple of SamplingPoint
        Error against scan spacing on simulated scans, ascending steps.
    labelled : tuple of MeasuredCurve
        The same on measured frames. Where there is one, no step is promised beyond what was measured there, and of two
        errors the larger.
    measured : dict
        How the errors were measured since the training: command, seed, scans, solver, software.
    training : dict
        Command, seed, frames, seconds, software, git commit.
    weights_sha256 : str
        Of ``model.safetensors``.
    trust : TrustCalibration, optional
        What a frame's score means; without it trust is not calibrated.
    refine_rounds : int, optional
        Rounds of refinement that did best on held-out scans.
    """

    schema_version: Literal[1] = 1
    name: _Name
    version: _Name
    family: _Name
    network: dict[str, Any]
    input: InputContract
    probe: ProbeReference | None
    held_out: dict[str, float] = Field(default_factory=dict)
    sampling: tuple[SamplingPoint, ...] = ()
    labelled: tuple[MeasuredCurve, ...] = ()
    measured: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    weights_sha256: _Sha256
    trust: TrustCalibration | None = None
    refine_rounds: int | None = Field(default=None, ge=1, le=20)

    @model_validator(mode="after")
    def _consistent(self) -> ModelCard:
        if self.network.get("family", self.family) != self.family:
            raise ValueError(f"family {self.family!r} and network family {self.network['family']!r} differ")
        _check_ascending(self.sampling, "sampling")
        return self

    @property
    def measured_range_m(self) -> tuple[float, float]:
        """Smallest and largest step the error was measured at, m."""
        curves = [curve.points for curve in self.labelled] or [self.sampling]
        if not curves[0]:
            raise ValueError(
                f"model {self.name!r}: its error was never measured against the scan spacing; "
                "give the plan a step, or measure it (ptychonn models measure)"
            )
        return min(points[0].step_m for points in curves), max(points[-1].step_m for points in curves)

    @property
    def as_start(self) -> str:
        """How the card of a model that started from this one names it."""
        return f"{self.name} {self.version}, sha256 {self.weights_sha256}"

    @property
    def for_any_probe(self) -> bool:
        """Whether it waits for a probe: its network is told one with every frame, and the card has none."""
        return self.probe is None and self.family in PROBE_FAMILIES

    def prepared_by(self, preprocess: PreprocessConfig | None) -> ModelCard:
        """Return the card of the same model whose frames are prepared otherwise; None leaves it as it is."""
        if preprocess is None:
            return self
        return self.model_copy(update={"input": self.input.model_copy(update={"preprocess": preprocess})})

    def check_probe(self) -> None:
        """Refuse, in words (ValueError), a model for any probe that was given none: it reconstructs nothing."""
        if self.for_any_probe:
            raise ValueError(
                f"model {self.name!r} is for any probe and has none yet. Give it yours: "
                f"for_probe({self.name!r}, probe, geometry), or --probe FILE where a command takes it, for use at "
                f"once; or ptychonn train --start {self.name} --frames 0 --probe FILE --out FOLDER to have its errors "
                "measured too"
            )

    @property
    def input_unknown(self) -> bool:
        """Whether it is a checkpoint of others, and nobody said what they did to counts before the network."""
        imported = self.training.get("imported")
        if not isinstance(imported, dict) or imported.get("input") is not None:
            return False
        said = self.network.get("input_root", False) or self.network.get("input_scale", 1.0) != 1.0
        return not said and self.input.preprocess != PUBLISHED_PREPROCESSING

    def _envelope(self, covered_at_least: float = 0.0) -> tuple[list[float], list[float]]:
        """Give the steps and the largest error measured up to each: a promise must hold for all smaller steps.

        Where something was measured on real frames, its steps alone count: simulated scans can raise an error between
        them, and lower none.
        """
        _ = self.measured_range_m
        curves = [
            [p for p in points if p.covered_fraction >= covered_at_least]
            for points in (*(curve.points for curve in self.labelled), self.sampling)
        ]
        binding = [points for points in (curves[:-1] or curves) if points]
        if not binding:
            return [], []
        low, high = min(points[0].step_m for points in binding), max(points[-1].step_m for points in binding)
        steps = sorted({p.step_m for points in curves for p in points if low <= p.step_m <= high})
        errors = [
            np.interp(steps, [p.step_m for p in points], [p.phase_mae_rad for p in points], left=0, right=0)
            for points in curves
            if points
        ]
        return steps, np.maximum.accumulate(np.max(errors, axis=0)).tolist()

    def spacing_for(self, tolerated_error_rad: float, *, covered_at_least: float = 0.0) -> float:
        """Largest step whose measured phase error stays within a tolerance.

        Between measured steps the error is interpolated linearly; a larger step never counts as better than a smaller.

        Parameters
        ----------
        tolerated_error_rad : float
            Mean absolute phase error, rad.
        covered_at_least : float
            Leave out spacings that covered a smaller part of the scanned area, 0 to 1.

        Returns
        -------
        float
            Step, m, within `measured_range_m`.

        Raises
        ------
        ValueError
            When no measured step is good enough, or the tolerance is not a positive number.
        """
        if not (math.isfinite(tolerated_error_rad) and tolerated_error_rad > 0):
            raise ValueError(f"tolerated error: got {tolerated_error_rad} rad; a positive number of rad is needed")
        steps, errors = self._envelope(covered_at_least)
        if not steps:
            raise ValueError(
                f"model {self.name!r}: no measured spacing covered {covered_at_least:.0%} of the scanned area; "
                "ask for less"
            )
        if tolerated_error_rad < errors[0]:
            raise ValueError(
                f"model {self.name!r}: no measured spacing keeps the phase error within {tolerated_error_rad:.3g} rad; "
                f"the smallest is {errors[0]:.3g} rad, at a step of {steps[0] * 1e6:.3g} µm. "
                "Tolerate more, or use another model"
            )
        return float(np.interp(tolerated_error_rad, errors, steps))  # of equal errors the largest step

    def error_at(self, step_m: float) -> float:
        """Phase error to expect at a step, rad: the largest measured up to it, linear between measured steps.

        Raises
        ------
        ValueError
            Outside the measured range.
        """
        low, high = self.measured_range_m
        # A step that went through micrometres and back may miss the end of the range by a rounding.
        if not low * (1 - 1e-9) <= step_m <= high * (1 + 1e-9):
            raise ValueError(
                f"model {self.name!r}: a step of {step_m * 1e6:.3g} µm was never measured; "
                f"its error is known from {low * 1e6:.3g} to {high * 1e6:.3g} µm"
            )
        return float(np.interp(step_m, *self._envelope()))

    def network_geometry(self, geometry: Geometry) -> Geometry:
        """Geometry of the network's frames.

        Parameters
        ----------
        geometry : Geometry
            Of the frames as recorded, or already as the network takes them (same frame shape).

        Raises
        ------
        ValueError
            When preprocessing does not lead from these frames to the network's.
        """
        if geometry.frame_shape == self.input.frame_shape:
            return geometry
        self.check_frames(geometry.frame_shape, "the detector's")
        return self.input.preprocess.geometry_after(geometry)

    def check_frames(self, recorded: tuple[int, int], whose: str = "frames of") -> None:
        """Refuse, in words (ValueError), recorded frames that preprocessing does not bring to the network's shape."""
        wanted, got = self.input.frame_shape, self.input.preprocess.output_shape(recorded)
        if got != wanted:
            raise ValueError(
                f"model {self.name!r} takes frames of {wanted[0]} x {wanted[1]} px; {whose} {recorded[0]} x "
                f"{recorded[1]} px come out of its preprocessing as {got[0]} x {got[1]} px. Use a model trained for "
                "this detector, or give preprocess= with crop or bin"
            )

    def check_geometry(self, geometry: Geometry) -> None:
        """Refuse, in words, a scan the model was not trained for: frame shape, or object pixel off by over 2 %.

        And, before that, a model that lacks its probe, see `check_probe`: it was trained at no object pixel.
        """
        self.check_probe()
        pixel = self.network_geometry(geometry).object_pixel_m
        if abs(pixel / self.input.object_pixel_m - 1) > PIXEL_TOLERANCE:
            raise ValueError(
                f"model {self.name!r} was trained at an object pixel of {self.input.object_pixel_m * 1e9:.4g} nm; this "
                f"scan has {pixel * 1e9:.4g} nm ({geometry.beam}, distance {geometry.distance_m:g} m, "
                f"pitch {geometry.pixel_pitch_m * 1e6:g} µm). More than {PIXEL_TOLERANCE:.0%} apart it would be wrong: "
                "check the geometry, or train for it (ptychonn train)"
            )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the card as JSON, to a file or into a folder; the file appears whole or not at all."""
        target = _card_file(Path(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, self.model_dump_json(indent=2).encode() + b"\n")
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ModelCard:
        """Read a card from a file or a model's folder.

        Raises
        ------
        ValueError
            In words, when there is none, or it is not a card this version can read.
        """
        source = _card_file(Path(path))
        try:
            if (size := source.stat().st_size) > MOST_CARD:
                raise ValueError(f"{source}: {size} bytes; at most {MOST_CARD} are read as a model card")
            data = source.read_bytes()
        except FileNotFoundError:
            raise ValueError(f"{source}: no model card there; a model is a folder with {CARD_FILE}") from None
        try:
            values = json.loads(data)
        except (ValueError, RecursionError) as error:  # no JSON, no text, endless numbers, endless nesting
            raise ValueError(f"{source}: not a model card, its JSON cannot be read: {error}") from None
        return cls.from_values(values, str(source))

    @classmethod
    def from_values(cls, values: Any, where: str) -> ModelCard:
        """Read a card from what its JSON holds; `where` it was found is said when it cannot be used (ValueError)."""
        version = values.get("schema_version") if isinstance(values, dict) else None
        if isinstance(version, int) and version > 1:
            raise ValueError(f"{where}: card of schema {version}, this version reads 1; update bluesky_ptychonn")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'card'}: {e['msg']}" for e in error.errors())
            raise ValueError(f"{where}: not a usable model card: {wrong}") from None


def _check_ascending(points: tuple[SamplingPoint, ...], who: str) -> None:
    steps = [point.step_m for point in points]
    if any(b <= a for a, b in itertools.pairwise(steps)):
        raise ValueError(f"{who}: steps must ascend, got {steps} m")


def _card_file(path: Path) -> Path:
    return path if path.suffix == ".json" else path / CARD_FILE


def load_card(name_or_path: str | os.PathLike[str]) -> ModelCard:
    """Read the card of a model by name or path, without loading its weights; see `find_model` and `ModelCard.load`."""
    return ModelCard.load(find_model(name_or_path))
