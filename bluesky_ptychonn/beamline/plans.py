"""Plans for ptychography: full, and as sparse as a model was measured to allow.

Lengths are given in µm and converted to each motor's own unit. Nothing here imports torch; the sparse plans read a
model's card, not its weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
from bluesky.protocols import Locatable, Movable, Readable
from bluesky.utils import Msg, MsgGenerator, plan
from cycler import Cycler, cycler

from bluesky_ptychonn.beamline.patterns import Field, Pattern
from bluesky_ptychonn.card import DENSE_SAMPLING, ModelCard, load_card
from bluesky_ptychonn.optics.geometry import Geometry, to_metres

_UM = 1e-6


@plan  # type: ignore[untyped-decorator]  # bluesky's is
def ptycho_scan(
    detectors: Sequence[Readable[Any]],
    x_motor: Movable[Any],
    y_motor: Movable[Any],
    width_um: float,
    height_um: float,
    step_um: float,
    *,
    center_x_um: float = 0.0,
    center_y_um: float = 0.0,
    pattern: Pattern = "jittered",
    jitter: float = 0.1,
    seed: int = 0,
    geometry: dict[str, Any] | None = None,
    probe_diameter_um: float | None = None,
    x_sign: int = 1,
    y_sign: int = 1,
    md: dict[str, Any] | None = None,
) -> MsgGenerator[str]:
    """Scan a rectangular field around an absolute position.

    Parameters
    ----------
    detectors : list
        The camera first, then whatever else is to be read.
    x_motor, y_motor : object
        Axes along the columns and the rows of the object.
    width_um, height_um : float
        Field along x and y, µm; 0 makes a line or a point.
    step_um : float
        Distance of neighbours, µm. A raster is made a little finer, to end on the field's edge.
    center_x_um, center_y_um : float
        Middle of the field in motor coordinates, µm.
    pattern : {"jittered", "snake", "raster", "spiral"}
        See `Field`.
    jitter : float
        Displacement of jittered points, steps.
    seed : int
        Of the displacements.
    geometry : dict, optional
        ``energy_ev``, ``distance_m``, ``pixel_pitch_m``, ``frame_shape``; taken from the camera where it has one.
    probe_diameter_um : float, optional
        Illuminated diameter, µm, for the sampling and the dense equivalent in the start document; taken from the
        camera where it knows.
    x_sign, y_sign : int
        1 or -1: object coordinate = sign × motor readback.
    md : dict, optional
        Metadata of the run.

    Returns
    -------
    str
        Uid of the run.

    Raises
    ------
    ValueError
        Before anything moves: for a wrong parameter, a motor without a length unit, or a field outside its limits.
    """
    field = Field(width_um * _UM, height_um * _UM, step_um * _UM, pattern, jitter, seed)
    about = _about(detectors, x_motor, y_motor, field, geometry, probe_diameter_um, x_sign, y_sign, card=None)
    args = _plan_args(locals())
    center_m = (center_x_um * _UM, center_y_um * _UM)
    return (yield from _scan("ptycho_scan", detectors, x_motor, y_motor, field, center_m, about, args, md))


@plan  # type: ignore[untyped-decorator]  # bluesky's is
def rel_ptycho_scan(
    detectors: Sequence[Readable[Any]],
    x_motor: Movable[Any],
    y_motor: Movable[Any],
    width_um: float,
    height_um: float,
    step_um: float,
    *,
    pattern: Pattern = "jittered",
    jitter: float = 0.1,
    seed: int = 0,
    geometry: dict[str, Any] | None = None,
    probe_diameter_um: float | None = None,
    x_sign: int = 1,
    y_sign: int = 1,
    md: dict[str, Any] | None = None,
) -> MsgGenerator[str]:
    """Scan a rectangular field around the present position, and go back there at the end.

    See `ptycho_scan` for the parameters.
    """
    field = Field(width_um * _UM, height_um * _UM, step_um * _UM, pattern, jitter, seed)
    about = _about(detectors, x_motor, y_motor, field, geometry, probe_diameter_um, x_sign, y_sign, card=None)
    args = _plan_args(locals())
    return (yield from _scan("rel_ptycho_scan", detectors, x_motor, y_motor, field, None, about, args, md))


@plan  # type: ignore[untyped-decorator]  # bluesky's is
def sparse_ptycho_scan(
    detectors: Sequence[Readable[Any]],
    x_motor: Movable[Any],
    y_motor: Movable[Any],
    width_um: float,
    height_um: float,
    *,
    model: str | None = None,
    tolerated_error_rad: float = 0.1,
    step_um: float | None = None,
    allow_unmeasured: bool = False,
    center_x_um: float = 0.0,
    center_y_um: float = 0.0,
    pattern: Pattern = "jittered",
    jitter: float = 0.1,
    seed: int = 0,
    geometry: dict[str, Any] | None = None,
    probe_diameter_um: float | None = None,
    x_sign: int = 1,
    y_sign: int = 1,
    md: dict[str, Any] | None = None,
) -> MsgGenerator[str]:
    """Scan a field as sparsely as a model was measured to allow.

    Parameters
    ----------
    detectors, x_motor, y_motor, width_um, height_um
        See `ptycho_scan`.
    model : str, optional
        Name or folder of the model that will reconstruct; its card says which error was measured at which spacing.
    tolerated_error_rad : float
        Phase error (mean absolute) you accept, rad; the spacing follows from the card.
    step_um : float, optional
        Spacing in µm, instead of the card's.
    allow_unmeasured : bool
        Accept a `step_um` at which the model's error was never measured.
    center_x_um, center_y_um, pattern, jitter, seed, geometry, probe_diameter_um, x_sign, y_sign, md
        See `ptycho_scan`. The probe's diameter is the card's unless given.

    Returns
    -------
    str
        Uid of the run. ``start["ptychography"]`` holds model, step, sampling, dense equivalent and dose saved.

    Raises
    ------
    ValueError
        Before anything moves: see `ptycho_scan`; also for an unknown model, one that does not fit the detector,
        a tolerance it cannot keep, or a spacing it was never measured at.
    """
    card, step_m = _spacing(model, tolerated_error_rad, step_um, allow_unmeasured)
    field = Field(width_um * _UM, height_um * _UM, step_m, pattern, jitter, seed)
    about = _about(detectors, x_motor, y_motor, field, geometry, probe_diameter_um, x_sign, y_sign, card)
    about["tolerated_error_rad"] = None if step_um else tolerated_error_rad
    args = _plan_args(locals())
    center_m = (center_x_um * _UM, center_y_um * _UM)
    return (yield from _scan("sparse_ptycho_scan", detectors, x_motor, y_motor, field, center_m, about, args, md))


@plan  # type: ignore[untyped-decorator]  # bluesky's is
def rel_sparse_ptycho_scan(
    detectors: Sequence[Readable[Any]],
    x_motor: Movable[Any],
    y_motor: Movable[Any],
    width_um: float,
    height_um: float,
    *,
    model: str | None = None,
    tolerated_error_rad: float = 0.1,
    step_um: float | None = None,
    allow_unmeasured: bool = False,
    pattern: Pattern = "jittered",
    jitter: float = 0.1,
    seed: int = 0,
    geometry: dict[str, Any] | None = None,
    probe_diameter_um: float | None = None,
    x_sign: int = 1,
    y_sign: int = 1,
    md: dict[str, Any] | None = None,
) -> MsgGenerator[str]:
    """Scan sparsely around the present position, and go back there at the end.

    See `sparse_ptycho_scan` for the parameters.
    """
    card, step_m = _spacing(model, tolerated_error_rad, step_um, allow_unmeasured)
    field = Field(width_um * _UM, height_um * _UM, step_m, pattern, jitter, seed)
    about = _about(detectors, x_motor, y_motor, field, geometry, probe_diameter_um, x_sign, y_sign, card)
    about["tolerated_error_rad"] = None if step_um else tolerated_error_rad
    args = _plan_args(locals())
    return (yield from _scan("rel_sparse_ptycho_scan", detectors, x_motor, y_motor, field, None, about, args, md))


def _spacing(
    model: str | None, tolerated_error_rad: float, step_um: float | None, allow_unmeasured: bool
) -> tuple[ModelCard | None, float]:
    """Card, and step in m, refusing in words a step the model was never measured at."""
    card = load_card(model) if model is not None else None
    if step_um is None:
        if card is None:
            raise ValueError("sparse scan: give model= (its card says the spacing), or step_um=")
        return card, card.spacing_for(tolerated_error_rad)
    if card is not None and not allow_unmeasured:
        try:
            card.error_at(step_um * _UM)
        except ValueError as error:
            raise ValueError(
                f"sparse scan: {error}. Choose a measured step_um=, leave it out, or say allow_unmeasured=True"
            ) from None
    return card, step_um * _UM


def _about(
    detectors: Sequence[Readable[Any]],
    x_motor: Any,
    y_motor: Any,
    field: Field,
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
        "x_key": _position_key(x_motor),
        "y_key": _position_key(y_motor),
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


def _geometry(camera: Any, given: Mapping[str, Any] | None) -> Geometry | None:
    if given is not None:
        return Geometry.from_document(given, "plan argument geometry")
    known = getattr(camera, "geometry", None)
    return known if isinstance(known, Geometry) else None


def _probe_diameter(camera: Any, given_um: float | None, card: ModelCard | None) -> float | None:
    if given_um is not None:
        if not given_um > 0:
            raise ValueError(f"probe_diameter_um {given_um} µm must be above 0")
        return given_um * _UM
    if card is not None and card.probe is not None:
        return card.probe.diameter_m
    known = getattr(camera, "probe_diameter_m", None)
    return None if known is None else float(known)


def _expected_error(card: ModelCard | None, step_m: float) -> float | None:
    try:
        return None if card is None else card.error_at(step_m)
    except ValueError:
        return None  # outside the measured range, which the caller allowed


def _position_key(motor: Any) -> str:
    fields = (getattr(motor, "hints", None) or {}).get("fields") or [motor.name]
    return str(fields[0])


def _plan_args(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Give what the user passed, as JSON: devices by name."""
    derived = ("field", "about", "card", "step_m", "md")
    kept = {name: value for name, value in arguments.items() if name not in derived}
    kept["detectors"] = [d.name for d in arguments["detectors"]]
    return {**kept, "x_motor": arguments["x_motor"].name, "y_motor": arguments["y_motor"].name}


def _scan(
    name: str,
    detectors: Sequence[Readable[Any]],
    x_motor: Any,
    y_motor: Any,
    field: Field,
    center_m: tuple[float, float] | None,
    about: dict[str, Any],
    args: dict[str, Any],
    md: Mapping[str, Any] | None,
) -> MsgGenerator[str]:
    """Scan `field` around `center_m` (x, y), or around where the motors are, and then go back."""
    motors = (x_motor, y_motor)
    per_metre: list[float] = []
    middle: list[float] = []
    for axis, motor in enumerate(motors):
        unit = yield from _unit(motor)
        per_metre.append(1 / to_metres(1.0, unit, motor.name))
        middle.append(center_m[axis] * per_metre[axis] if center_m else (yield from _where(motor)))
    center = (middle[0] / per_metre[0], middle[1] / per_metre[1])
    trajectory = _in_motor_units(field.points("x", "y", center), motors, per_metre)
    _check_limits(name, trajectory)
    frames = len(trajectory)
    dense = about["dense_equivalent_frames"]
    about = {**about, "dose_saved_fraction": None if dense is None else 1 - frames / dense}
    start = {
        "plan_name": name,
        "plan_args": args,
        "plan_pattern": field.pattern,
        "motors": [y_motor.name, x_motor.name],
        "hints": _hints(field, x_motor, y_motor),
        **(_grid(field, trajectory, motors) if field.pattern in ("raster", "snake") else {}),
        **(md or {}),
    }
    # What the caller says of the scan (a sample, another geometry key) joins what the plan knows, and wins.
    start["ptychography"] = {**about, **dict((md or {}).get("ptychography") or {})}

    def scan() -> MsgGenerator[str]:
        return (yield from bp.scan_nd(list(detectors), trajectory, md=start))

    if center_m is None:
        uid: str = yield from bpp.reset_positions_wrapper(scan(), list(motors))  # type: ignore[no-untyped-call]
        return uid
    return (yield from scan())


def _unit(motor: Any) -> MsgGenerator[str]:
    """Read the unit of a motor: `egu` of ophyd's, `motor_egu` of ophyd-async's."""
    unit = getattr(motor, "egu", None)
    if unit is None and hasattr(motor, "motor_egu"):
        unit = yield from bps.rd(motor.motor_egu)
    if not unit:
        raise ValueError(f"{motor.name}: says no engineering unit (egu); set it at the device, a length is needed")
    return str(unit)


def _where(motor: Any) -> MsgGenerator[float]:
    if isinstance(motor, Locatable):
        location = yield Msg("locate", motor, squeeze=True)  # type: ignore[no-untyped-call]
        return float(location["setpoint"])
    return float((yield from bps.rd(motor)))


def _in_motor_units(points: Cycler[Any, Any], motors: tuple[Any, Any], per_metre: Sequence[float]) -> Cycler[Any, Any]:
    at = points.by_key()
    x_motor, y_motor = motors
    return cycler(y_motor, [v * per_metre[1] for v in at["y"]]) + cycler(x_motor, [v * per_metre[0] for v in at["x"]])


def _check_limits(name: str, trajectory: Cycler[Any, Any]) -> None:
    """Refuse before anything moves: a scan that stops at a limit half-way wastes the sample's dose."""
    for motor, positions in trajectory.by_key().items():
        low, high = getattr(motor, "limits", None) or (0, 0)
        first, last = min(positions), max(positions)
        if low < high and not (low <= first and last <= high):
            raise ValueError(
                f"{name}: {motor.name} would move from {first:g} to {last:g} {motor.egu}, outside its soft limits "
                f"{low:g} to {high:g} {motor.egu}. Move the centre, or make the field smaller"
            )


def _hints(field: Field, x_motor: Any, y_motor: Any) -> dict[str, Any]:
    hints: dict[str, Any] = {
        "dimensions": [([_position_key(motor)], "primary") for motor in (y_motor, x_motor)],
    }
    if field.pattern in ("raster", "snake"):
        hints["gridding"] = "rectilinear"
    return hints


def _grid(field: Field, trajectory: Cycler[Any, Any], motors: tuple[Any, Any]) -> dict[str, Any]:
    """Write what Bluesky's own grid_scan does, so that its live tables and plots know the grid."""
    at = trajectory.by_key()
    x_motor, y_motor = motors
    return {
        "shape": list(field.shape),
        "extents": [[min(at[m]), max(at[m])] for m in (y_motor, x_motor)],
        "snaking": [False, field.pattern == "snake"],
    }
