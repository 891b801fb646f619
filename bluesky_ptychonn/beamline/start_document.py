"""What the start document of a ptychography scan says, and the spacing a model's card allows."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, ParamSpec

from bluesky.protocols import Movable, Readable
from bluesky.utils import MsgGenerator, plan
from cycler import Cycler

from bluesky_ptychonn.beamline.patterns import Pattern, ScanField, TooManyPointsError
from bluesky_ptychonn.card import DENSE_SAMPLING, ModelCard, load_card
from bluesky_ptychonn.optics.geometry import Geometry

UM = 1e-6
#: Part of the scanned area that a spacing must have covered, where it was measured, for a sparse plan to take it. An
#: error is measured where there is an image: without this a wide spacing could count as good for what it leaves out.
LEAST_COVERED = 0.9

_Arguments = ParamSpec("_Arguments")


def recorded_plan(function: Callable[_Arguments, MsgGenerator[str]]) -> Callable[_Arguments, MsgGenerator[str]]:
    """Declare a plan that gets its name and its arguments, as JSON with devices by name, in its `md`.

    What the caller gives in `md` wins over them. Signature and docstring stay, for the queue server reads them.
    """
    signature = inspect.signature(function)
    planned: Callable[..., MsgGenerator[str]] = plan(function)  # type: ignore[no-untyped-call]

    @functools.wraps(planned)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> MsgGenerator[str]:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{function.__name__}(): {error}") from None
        bound.apply_defaults()
        _check_devices(bound.arguments)
        arguments = {name: value for name, value in bound.arguments.items() if name != "md"}
        named = {name: arguments[name].name for name in ("x_motor", "y_motor")}
        arguments |= {"detectors": [detector.name for detector in arguments["detectors"]], **named}
        bound.arguments["md"] = {
            "plan_name": function.__name__,
            "plan_args": arguments,
            **(bound.arguments["md"] or {}),
        }
        return planned(*bound.args, **bound.kwargs)

    return call


def _check_devices(arguments: Mapping[str, Any]) -> None:
    """Refuse, in words (ValueError), what are no detectors in a list, and no two motors."""
    detectors, motors = arguments["detectors"], [arguments[name] for name in ("x_motor", "y_motor")]
    if isinstance(detectors, str) or not isinstance(detectors, Iterable):
        name = getattr(detectors, "name", repr(detectors))
        raise ValueError(f"detectors: {name} is not a list; give the camera in one, [{name}]")
    for detector in detectors:
        if not isinstance(detector, Readable):
            raise ValueError(f"detectors: {detector!r} cannot be read; give devices, the camera first")
    for name, motor in zip(("x_motor", "y_motor"), motors, strict=True):
        if not (isinstance(motor, Movable) and hasattr(motor, "name")):
            raise ValueError(f"{name}: {motor!r} cannot be moved; give a motor")
    if motors[0] is motors[1]:
        raise ValueError(f"x_motor and y_motor are both {motors[0].name}; a scan needs two motors, one along each axis")


def scan_field(
    width_um: float, height_um: float, step_um: float, pattern: Pattern, jitter: float, seed: int
) -> ScanField:
    """Field in m of a plan's arguments in µm; ValueError names the argument, what was given, and what is allowed."""
    lengths = {"width_um": width_um, "height_um": height_um, "step_um": step_um}
    for name, value in lengths.items():
        check_number(name, value, "µm", above=0 if name == "step_um" else None)
        if value < 0:
            raise ValueError(f"{name} {value} µm must be 0 or more")
    check_number("jitter", jitter, "steps")
    try:
        return ScanField(width_um * UM, height_um * UM, step_um * UM, pattern, jitter, seed)
    except TooManyPointsError as error:
        raise ValueError(
            f"width_um {width_um:g}, height_um {height_um:g} and step_um {step_um:g} make {error.count} points, more "
            f"than {error.most}; lengths are in µm"
        ) from None


def check_number(name: str, value: Any, unit: str, above: float | None = None) -> None:
    """Refuse, in words (ValueError), what is no finite number, or not above another."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name} {value!r} must be a finite number, in {unit}")
    if above is not None and value <= above:
        raise ValueError(f"{name} {value} {unit} must be above {above}")


def spacing(
    model: str | None, tolerated_error_rad: float, step_um: float | None, allow_unmeasured: bool
) -> tuple[ModelCard | None, float]:
    """Card, and step in m, refusing in words a model without its probe, or a step it was never measured at."""
    card = load_card(model) if model is not None else None
    if step_um is not None:
        check_number("step_um", step_um, "µm", above=0)
    check_number("tolerated_error_rad", tolerated_error_rad, "rad")
    if card is not None:
        card.check_probe()
    if step_um is None:
        if card is None:
            raise ValueError("sparse scan: give model= (its card says the spacing), or step_um=")
        return card, card.spacing_for(tolerated_error_rad, covered_at_least=LEAST_COVERED)
    if card is not None and not allow_unmeasured:
        try:
            card.error_at(step_um * UM)
        except ValueError as error:
            raise ValueError(
                f"sparse scan: {error}. Choose a measured step_um=, leave it out, or say allow_unmeasured=True"
            ) from None
    return card, step_um * UM


@dataclass(frozen=True)
class ScanSetup:
    """The devices of a scan, and what the caller says of them, as in `ptycho_scan`."""

    detectors: Sequence[Readable[Any]]
    x_motor: Any
    y_motor: Any
    geometry: Mapping[str, Any] | None
    probe_diameter_um: float | None
    x_sign: int
    y_sign: int

    def __post_init__(self) -> None:
        if not self.detectors:
            raise ValueError("detectors: give the camera in a list, e.g. [camera]")
        for name in ("x_sign", "y_sign"):
            sign = getattr(self, name)
            if sign not in (1, -1):
                raise ValueError(f"{name} {sign!r} must be 1 or -1: object coordinate = sign × motor readback")

    def metadata(self, field: ScanField, card: ModelCard | None = None) -> dict[str, Any]:
        """Compose what the start document says under ``ptychography`` of a field (m) and the model to reconstruct it.

        ValueError for a geometry that lacks something, or a probe's diameter not above 0.
        """
        camera, geometry = self.camera, self.known_geometry
        diameter_m = self._probe_diameter_m(camera, card)
        return {
            "geometry": None if geometry is None else geometry.model_dump(mode="json"),
            "frame_key": getattr(camera, "image_key", f"{camera.name}_image"),
            "x_key": readback_key(self.x_motor),
            "y_key": readback_key(self.y_motor),
            "x_sign": self.x_sign,
            "y_sign": self.y_sign,
            "pattern": field.pattern,
            "width_m": field.width,
            "height_m": field.height,
            "step_m": field.step,
            "sampling": None if diameter_m is None else field.step / diameter_m,
            "probe_diameter_m": diameter_m,
            "dense_equivalent_frames": diameter_m and replace(field, step=DENSE_SAMPLING * diameter_m).count,
            "model": card and card.model_dump(include={"name", "version", "weights_sha256"}),
            "expected_error_rad": _expected_error(card, field.step),
        }

    @property
    def camera(self) -> Any:
        """The detector with the images."""
        return next((d for d in self.detectors if hasattr(d, "image_key")), self.detectors[0])

    @property
    def known_geometry(self) -> Geometry | None:
        """What the caller says of the geometry, else the camera; ValueError where that is not usable."""
        if self.geometry is not None:
            return Geometry.from_document(self.geometry, "plan argument geometry")
        known = getattr(self.camera, "geometry", None)
        return known if isinstance(known, Geometry) else None

    def _probe_diameter_m(self, camera: Any, card: ModelCard | None) -> float | None:
        given_um = self.probe_diameter_um
        if given_um is not None:
            check_number("probe_diameter_um", given_um, "µm", above=0)
            return given_um * UM
        if card is not None and card.probe is not None:
            return card.probe.diameter_m
        known = getattr(camera, "probe_diameter_m", None)
        return None if known is None else float(known)


def _expected_error(card: ModelCard | None, step_m: float) -> float | None:
    try:
        return None if card is None else card.error_at(step_m)
    except ValueError:
        return None  # outside the measured range, which the caller allowed


def readback_key(motor: Any) -> str:
    """Name the data key of a motor's readback."""
    fields = (getattr(motor, "hints", None) or {}).get("fields") or [motor.name]
    return str(fields[0])


def axes_metadata(x_motor: Any, y_motor: Any) -> dict[str, Any]:
    """Name motors and dimensions, slow first, for live tables and plots."""
    motors = (y_motor, x_motor)
    dimensions = [([readback_key(motor)], "primary") for motor in motors]
    return {"motors": [motor.name for motor in motors], "hints": {"dimensions": dimensions}}


def grid_metadata(field: ScanField, trajectory: Cycler[Any, Any], x_motor: Any, y_motor: Any) -> dict[str, Any]:
    """Write what Bluesky's own grid_scan does, so that its live tables and plots know pattern, axes and grid."""
    metadata = {"plan_pattern": field.pattern, **axes_metadata(x_motor, y_motor)}
    if field.pattern not in ("raster", "snake"):
        return metadata
    metadata["hints"]["gridding"] = "rectilinear"
    at = trajectory.by_key()
    return metadata | {
        "shape": list(field.shape),
        "extents": [[min(at[motor]), max(at[motor])] for motor in (y_motor, x_motor)],
        "snaking": [False, field.pattern == "snake"],
    }


def join_metadata(
    plan_metadata: Mapping[str, Any], ptychography: Mapping[str, Any], md: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Join what a plan knows with what its caller says, who wins; key by key under ``ptychography``."""
    given = dict(md or {})
    return {**plan_metadata, **given, "ptychography": {**ptychography, **(given.get("ptychography") or {})}}
