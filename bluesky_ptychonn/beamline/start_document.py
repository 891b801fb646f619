"""What the start document of a ptychography scan says, and the spacing a model's card allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bluesky.protocols import Readable
from cycler import Cycler

from bluesky_ptychonn.beamline.patterns import ScanField
from bluesky_ptychonn.card import DENSE_SAMPLING, ModelCard, load_card
from bluesky_ptychonn.optics.geometry import Geometry

UM = 1e-6


#: Part of the scanned area that a spacing must have covered, where it was measured, for a sparse plan to take it. An
#: error is measured where there is an image: without this a wide spacing could count as good for what it leaves out.
LEAST_COVERED = 0.9


def spacing(
    model: str | None, tolerated_error_rad: float, step_um: float | None, allow_unmeasured: bool
) -> tuple[ModelCard | None, float]:
    """Card, and step in m, refusing in words a step the model was never measured at."""
    card = load_card(model) if model is not None else None
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


def about_scan(
    detectors: Sequence[Readable[Any]],
    x_motor: Any,
    y_motor: Any,
    field: ScanField,
    geometry: Mapping[str, Any] | None,
    probe_diameter_um: float | None,
    x_sign: int,
    y_sign: int,
    card: ModelCard | None,
) -> dict[str, Any]:
    """Compose what the start document says under ``ptychography``."""
    if not detectors:
        raise ValueError("detectors: give the camera in a list, e.g. [camera]")
    for name, sign in (("x_sign", x_sign), ("y_sign", y_sign)):
        if sign not in (1, -1):
            raise ValueError(f"{name} {sign!r} must be 1 or -1: object coordinate = sign × motor readback")
    camera: Any = next((d for d in detectors if hasattr(d, "image_key")), detectors[0])
    found = _geometry(camera, geometry)
    if card is not None and found is not None:
        card.check_geometry(found)
    diameter_m = _probe_diameter(camera, probe_diameter_um, card)
    dense = None if diameter_m is None else replace(field, step=DENSE_SAMPLING * diameter_m).count
    model = None
    if card is not None:
        model = {"name": card.name, "version": card.version, "weights_sha256": card.weights_sha256}
    return {
        "geometry": None if found is None else found.model_dump(mode="json"),
        "frame_key": getattr(camera, "image_key", f"{camera.name}_image"),
        "x_key": position_key(x_motor),
        "y_key": position_key(y_motor),
        "x_sign": x_sign,
        "y_sign": y_sign,
        "pattern": field.pattern,
        "width_m": field.width,
        "height_m": field.height,
        "step_m": field.step,
        "sampling": None if diameter_m is None else field.step / diameter_m,
        "probe_diameter_m": diameter_m,
        "dense_equivalent_frames": dense,
        "model": model,
        "expected_error_rad": _expected_error(card, field.step),
    }


def extent_m(
    trajectory: Cycler[Any, Any], motors: Sequence[Any], per_metre: Sequence[float], signs: Sequence[int]
) -> dict[str, list[float]]:
    """Give the lowest and highest position of a trajectory in object coordinates, m, for ``x`` and ``y``.

    Live pictures are made as large as that from the first frame on.
    """
    found = {}
    columns = trajectory.by_key()
    for axis, motor, scale, sign in zip(("x", "y"), motors, per_metre, signs, strict=True):
        found[axis] = sorted(sign * float(end(columns[motor])) / scale for end in (min, max))
    return found


def _geometry(camera: Any, given: Mapping[str, Any] | None) -> Geometry | None:
    if given is not None:
        return Geometry.from_document(given, "plan argument geometry")
    known = getattr(camera, "geometry", None)
    return known if isinstance(known, Geometry) else None


def _probe_diameter(camera: Any, given_um: float | None, card: ModelCard | None) -> float | None:
    if given_um is not None:
        if not given_um > 0:
            raise ValueError(f"probe_diameter_um {given_um} µm must be above 0")
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


def position_key(motor: Any) -> str:
    """Name the data key of a motor's readback."""
    fields = (getattr(motor, "hints", None) or {}).get("fields") or [motor.name]
    return str(fields[0])


def plan_args(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Give what the user passed, as JSON: devices by name."""
    derived = ("field", "about", "card", "step_m", "md")
    kept = {name: value for name, value in arguments.items() if name not in derived}
    kept["detectors"] = [d.name for d in arguments["detectors"]]
    return {**kept, "x_motor": arguments["x_motor"].name, "y_motor": arguments["y_motor"].name}


def hints(field: ScanField, x_motor: Any, y_motor: Any) -> dict[str, Any]:
    """Name the scan's dimensions, slow first, for live tables and plots."""
    said: dict[str, Any] = {
        "dimensions": [([position_key(motor)], "primary") for motor in (y_motor, x_motor)],
    }
    if field.pattern in ("raster", "snake"):
        said["gridding"] = "rectilinear"
    return said


def grid(field: ScanField, trajectory: Cycler[Any, Any], motors: tuple[Any, Any]) -> dict[str, Any]:
    """Write what Bluesky's own grid_scan does, so that its live tables and plots know the grid."""
    at = trajectory.by_key()
    x_motor, y_motor = motors
    return {
        "shape": list(field.shape),
        "extents": [[min(at[m]), max(at[m])] for m in (y_motor, x_motor)],
        "snaking": [False, field.pattern == "snake"],
    }
