"""Plans for ptychography: full, and as sparse as a model was measured to allow.

Lengths are given in µm and converted to each motor's own unit. Nothing here imports torch; the sparse plans read a
model's card, not its weights.
"""

# No `from __future__ import annotations` here: the queue server reads annotations as objects, not as strings.

from collections.abc import Mapping, Sequence
from typing import Any

import bluesky.plans as bp
import bluesky.preprocessors as bpp
from bluesky.protocols import Movable, Readable
from bluesky.utils import MsgGenerator, plan

from bluesky_ptychonn.beamline.motors import check_limits, in_motor_units, read_position, read_unit
from bluesky_ptychonn.beamline.patterns import Pattern, ScanField
from bluesky_ptychonn.beamline.start_document import UM, about_scan, extent_m, grid, hints, plan_args, spacing
from bluesky_ptychonn.optics.geometry import to_metres


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
    about = about_scan(detectors, x_motor, y_motor, field, geometry, probe_diameter_um, x_sign, y_sign, card=None)
    args = plan_args(locals())
    center_m = (center_x_um * UM, center_y_um * UM)
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
    field = ScanField(width_um * UM, height_um * UM, step_um * UM, pattern, jitter, seed)
    about = about_scan(detectors, x_motor, y_motor, field, geometry, probe_diameter_um, x_sign, y_sign, card=None)
    args = plan_args(locals())
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
    card, step_m = spacing(model, tolerated_error_rad, step_um, allow_unmeasured)
    field = ScanField(width_um * UM, height_um * UM, step_m, pattern, jitter, seed)
    about = about_scan(detectors, x_motor, y_motor, field, geometry, probe_diameter_um, x_sign, y_sign, card)
    about["tolerated_error_rad"] = None if step_um else tolerated_error_rad
    args = plan_args(locals())
    center_m = (center_x_um * UM, center_y_um * UM)
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
    card, step_m = spacing(model, tolerated_error_rad, step_um, allow_unmeasured)
    field = ScanField(width_um * UM, height_um * UM, step_m, pattern, jitter, seed)
    about = about_scan(detectors, x_motor, y_motor, field, geometry, probe_diameter_um, x_sign, y_sign, card)
    about["tolerated_error_rad"] = None if step_um else tolerated_error_rad
    args = plan_args(locals())
    return (yield from _scan("rel_sparse_ptycho_scan", detectors, x_motor, y_motor, field, None, about, args, md))


def _scan(
    name: str,
    detectors: Sequence[Readable[Any]],
    x_motor: Any,
    y_motor: Any,
    field: ScanField,
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
        unit = yield from read_unit(motor)
        per_metre.append(1 / to_metres(1.0, unit, motor.name))
        middle.append(center_m[axis] * per_metre[axis] if center_m else (yield from read_position(motor)))
    center = (middle[0] / per_metre[0], middle[1] / per_metre[1])
    trajectory = in_motor_units(field.points("x", "y", center), motors, per_metre)
    check_limits(name, trajectory)
    frames = len(trajectory)
    dense = about["dense_equivalent_frames"]
    about = {
        **about,
        "dose_saved_fraction": None if dense is None else 1 - frames / dense,
        "extent_m": extent_m(trajectory, motors, per_metre, (about["x_sign"], about["y_sign"])),
    }
    start = {
        "plan_name": name,
        "plan_args": args,
        "plan_pattern": field.pattern,
        "motors": [y_motor.name, x_motor.name],
        "hints": hints(field, x_motor, y_motor),
        **(grid(field, trajectory, motors) if field.pattern in ("raster", "snake") else {}),
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
