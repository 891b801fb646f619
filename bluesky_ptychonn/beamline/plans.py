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
from cycler import Cycler, cycler

from bluesky_ptychonn.beamline.patterns import Pattern, ScanField
from bluesky_ptychonn.beamline.start_document import (
    UM,
    ScanSetup,
    grid_metadata,
    join_metadata,
    readback_key,
    recorded_plan,
    spacing,
)
from bluesky_ptychonn.optics.geometry import to_metres


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
    field = ScanField(width_um * UM, height_um * UM, step_um * UM, pattern, jitter, seed)
    setup = ScanSetup(detectors, x_motor, y_motor, geometry, probe_diameter_um, x_sign, y_sign)
    return (yield from _scan(setup, field, setup.metadata(field), (center_x_um * UM, center_y_um * UM), md))


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
    md: dict[str, Any] | None = None,
) -> MsgGenerator[str]:
    """Scan a rectangular field around the present position, and go back there at the end.

    See `ptycho_scan` for the parameters.
    """
    field = ScanField(width_um * UM, height_um * UM, step_um * UM, pattern, jitter, seed)
    setup = ScanSetup(detectors, x_motor, y_motor, geometry, probe_diameter_um, x_sign, y_sign)
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
    card, step_m = spacing(model, tolerated_error_rad, step_um, allow_unmeasured)
    field = ScanField(width_um * UM, height_um * UM, step_m, pattern, jitter, seed)
    setup = ScanSetup(detectors, x_motor, y_motor, geometry, probe_diameter_um, x_sign, y_sign)
    tolerated = None if step_um else tolerated_error_rad
    metadata = {**setup.metadata(field, card), "tolerated_error_rad": tolerated}
    return (yield from _scan(setup, field, metadata, (center_x_um * UM, center_y_um * UM), md))


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
    md: dict[str, Any] | None = None,
) -> MsgGenerator[str]:
    """Scan sparsely around the present position, and go back there at the end.

    See `sparse_ptycho_scan` for the parameters.
    """
    card, step_m = spacing(model, tolerated_error_rad, step_um, allow_unmeasured)
    field = ScanField(width_um * UM, height_um * UM, step_m, pattern, jitter, seed)
    setup = ScanSetup(detectors, x_motor, y_motor, geometry, probe_diameter_um, x_sign, y_sign)
    tolerated = None if step_um else tolerated_error_rad
    metadata = {**setup.metadata(field, card), "tolerated_error_rad": tolerated}
    return (yield from _scan(setup, field, metadata, None, md))


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
    check_limits(str((md or {}).get("plan_name")), trajectory)
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


def check_limits(name: str, trajectory: Cycler[Any, Any]) -> None:
    """Refuse before anything moves: a scan that stops at a limit half-way wastes the sample's dose."""
    for motor, positions in trajectory.by_key().items():
        low, high = getattr(motor, "limits", None) or (0, 0)
        first, last = min(positions), max(positions)
        if low < high and not (low <= first and last <= high):
            unit = getattr(motor, "egu", None) or "in its own unit"
            raise ValueError(
                f"{name}: {motor.name} would move from {first:g} to {last:g} {unit}, outside its soft limits "
                f"{low:g} to {high:g} {unit}. Move the centre, or make the field smaller"
            )
