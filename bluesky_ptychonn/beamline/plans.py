"""Plans for ptychography: full, and as sparse as a model was measured to allow.

Lengths are given in µm and converted to each motor's own unit. Nothing here imports torch; the sparse plans read a
model's card, not its weights.
"""

# No `from __future__ import annotations` here: the queue server reads annotations as objects, not as strings.

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
from bluesky.protocols import Locatable, Movable, Readable
from bluesky.utils import Msg, MsgGenerator
from cycler import cycler

from bluesky_ptychonn.beamline.patterns import Pattern, ScanField
from bluesky_ptychonn.beamline.preflight import Preflight, ScanToCheck, check_limits
from bluesky_ptychonn.beamline.start_document import (
    UM,
    ScanSetup,
    check_number,
    grid_metadata,
    join_metadata,
    readback_key,
    recorded_plan,
    scan_field,
    spacing,
)
from bluesky_ptychonn.card import ModelCard
from bluesky_ptychonn.optics.geometry import Geometry, to_metres


@recorded_plan
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
    preflight: Preflight = "warn",
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
        See `ScanField`.
    jitter : float
        Displacement of jittered points, steps.
    seed : int
        Of the displacements.
    geometry : dict, optional
        ``energy_ev`` (of electrons ``wavelength_m``), ``distance_m``, ``pixel_pitch_m``, ``frame_shape``; taken from
        the camera where it has one.
    probe_diameter_um : float, optional
        Illuminated diameter, µm, for the sampling and the dense equivalent in the start document; taken from the
        camera where it knows.
    x_sign, y_sign : int
        1 or -1: object coordinate = sign × motor readback.
    preflight : {"warn", "refuse", "strict"}
        What becomes of a scan that would have no image, because the geometry is not known, or the model does not take
        these frames: a warning in the log, or a refusal. A catalog that does not answer within 2 s is a warning, for
        nothing is lost by it; ``strict`` refuses for that too.
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
    field = scan_field(width_um, height_um, step_um, pattern, jitter, seed)
    setup = ScanSetup(detectors, x_motor, y_motor, geometry, probe_diameter_um, x_sign, y_sign)
    _check(setup, preflight, md)
    return (yield from _scan(setup, field, setup.metadata(field), _center(center_x_um, center_y_um), md))


@recorded_plan
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
    preflight: Preflight = "warn",
    md: dict[str, Any] | None = None,
) -> MsgGenerator[str]:
    """Scan a rectangular field around the present position, and go back there at the end.

    See `ptycho_scan` for the parameters.
    """
    field = scan_field(width_um, height_um, step_um, pattern, jitter, seed)
    setup = ScanSetup(detectors, x_motor, y_motor, geometry, probe_diameter_um, x_sign, y_sign)
    _check(setup, preflight, md)
    return (yield from _scan(setup, field, setup.metadata(field), None, md))


@recorded_plan
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
    preflight: Preflight = "refuse",
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
    center_x_um, center_y_um, pattern, jitter, seed, geometry, probe_diameter_um, x_sign, y_sign, preflight, md
        See `ptycho_scan`. The probe's diameter is the card's unless given; a scan without an image is refused.

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
    card, step_m = spacing(model, tolerated_error_rad, step_um, allow_unmeasured)
    field = scan_field(width_um, height_um, step_m / UM, pattern, jitter, seed)
    setup = ScanSetup(detectors, x_motor, y_motor, geometry, probe_diameter_um, x_sign, y_sign)
    tolerated = None if step_um else tolerated_error_rad
    metadata = {**setup.metadata(field, card), "tolerated_error_rad": tolerated}
    _check(setup, preflight, md, card, None if allow_unmeasured else step_m)
    return (yield from _scan(setup, field, metadata, _center(center_x_um, center_y_um), md))


@recorded_plan
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
    preflight: Preflight = "refuse",
    md: dict[str, Any] | None = None,
) -> MsgGenerator[str]:
    """Scan sparsely around the present position, and go back there at the end.

    See `sparse_ptycho_scan` for the parameters.
    """
    card, step_m = spacing(model, tolerated_error_rad, step_um, allow_unmeasured)
    field = scan_field(width_um, height_um, step_m / UM, pattern, jitter, seed)
    setup = ScanSetup(detectors, x_motor, y_motor, geometry, probe_diameter_um, x_sign, y_sign)
    tolerated = None if step_um else tolerated_error_rad
    metadata = {**setup.metadata(field, card), "tolerated_error_rad": tolerated}
    _check(setup, preflight, md, card, None if allow_unmeasured else step_m)
    return (yield from _scan(setup, field, metadata, None, md))


def _center(x_um: float, y_um: float) -> tuple[float, float]:
    for name, value in (("center_x_um", x_um), ("center_y_um", y_um)):
        check_number(name, value, "µm")
    return x_um * UM, y_um * UM


def _check(
    setup: ScanSetup,
    preflight: Preflight,
    md: Mapping[str, Any] | None,
    card: ModelCard | None = None,
    step_m: float | None = None,
) -> None:
    """Refuse or warn, before anything moves, where there can be no image; see `ScanToCheck`."""
    given = (md or {}).get("ptychography") or {}
    geometry = setup.known_geometry
    if "geometry" in given:  # the caller's metadata win
        told = given["geometry"]
        geometry = None if told is None else Geometry.from_document(told, "md['ptychography']['geometry']")
    ScanToCheck(setup.camera, geometry, card, step_m).check(str((md or {}).get("plan_name")), preflight)


def _scan(
    setup: ScanSetup,
    field: ScanField,
    metadata: dict[str, Any],
    center_m: tuple[float, float] | None,
    md: Mapping[str, Any] | None,
) -> MsgGenerator[str]:
    """Scan `field` around `center_m` (x, y), or around where the motors are, and then go back."""
    motors = (setup.x_motor, setup.y_motor)
    per_metre: list[float] = []
    middle: list[float] = []
    for axis, motor in enumerate(motors):
        unit = yield from read_unit(motor)
        per_metre.append(1 / to_metres(1.0, unit, motor.name))
        middle.append(center_m[axis] * per_metre[axis] if center_m else (yield from read_position(motor)))
    at = field.points("x", "y", (middle[0] / per_metre[0], middle[1] / per_metre[1])).by_key()
    x, y = ([value * scale for value in at[axis]] for axis, scale in zip("xy", per_metre, strict=True))
    trajectory = cycler(setup.y_motor, y) + cycler(setup.x_motor, x)
    for name, motor, scale in zip("xy", motors, per_metre, strict=True):
        low, high = yield from read_limits(motor)
        span_um, limits_um = (min(at[name]) / UM, max(at[name]) / UM), (low / scale / UM, high / scale / UM)
        check_limits(str((md or {}).get("plan_name")), name, motor, span_um, limits_um, relative=center_m is None)
    dense, signs = metadata["dense_equivalent_frames"], {"x": setup.x_sign, "y": setup.y_sign}
    ptychography = {
        **metadata,
        "dose_saved_fraction": None if dense is None else 1 - len(trajectory) / dense,
        # In object coordinates; live pictures are as large as that from the first frame on.
        "extent_m": {axis: sorted(sign * float(end(at[axis])) for end in (min, max)) for axis, sign in signs.items()},
    }
    start = join_metadata(grid_metadata(field, trajectory, *motors), ptychography, md)
    scan: MsgGenerator[str] = bp.scan_nd(list(setup.detectors), trajectory, md=start)
    if center_m is None:
        scan = bpp.reset_positions_wrapper(scan, list(motors))  # type: ignore[no-untyped-call]
    return (yield from scan)


def read_unit(motor: Any) -> MsgGenerator[str]:
    """Read the unit of a motor: `egu` of ophyd's, `motor_egu` of ophyd-async's, else what its `describe` says."""
    unit = getattr(motor, "egu", None)
    if unit is None and hasattr(motor, "motor_egu"):
        unit = yield from bps.rd(motor.motor_egu)
    if not unit and hasattr(motor, "describe"):
        if inspect.iscoroutinefunction(motor.describe):  # ophyd-async's; it runs in the RunEngine's own loop
            (task,) = yield from bps.wait_for([motor.describe])
            described = task.result()
        else:
            described = motor.describe()
        unit = (described.get(readback_key(motor)) or {}).get("units")
    if not unit:
        raise ValueError(
            f"{motor.name}: says no engineering unit (egu, or units of its data key); set it at the device"
        )
    return str(unit)


def read_position(motor: Any) -> MsgGenerator[float]:
    """Read where a motor is, in its own unit."""
    if isinstance(motor, Locatable):
        location = yield Msg("locate", motor, squeeze=True)  # type: ignore[no-untyped-call]
        return float(location["setpoint"])
    return float((yield from bps.rd(motor)))


def read_limits(motor: Any) -> MsgGenerator[tuple[float, float]]:
    """Read the soft limits of a motor, in its own unit; equal ones, such as (0, 0), mean none."""
    if not hasattr(motor, "limits") and hasattr(motor, "low_limit_travel"):  # ophyd-async
        low = yield from bps.rd(motor.low_limit_travel)
        high = yield from bps.rd(motor.high_limit_travel)
        return float(low), float(high)
    low, high = getattr(motor, "limits", None) or (0, 0)
    return float(low), float(high)
