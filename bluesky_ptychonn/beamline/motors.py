"""Motors in a plan: their units, where they are, and whether a trajectory stays within their limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import bluesky.plan_stubs as bps
from bluesky.protocols import Locatable
from bluesky.utils import Msg, MsgGenerator
from cycler import Cycler, cycler


def read_unit(motor: Any) -> MsgGenerator[str]:
    """Read the unit of a motor: `egu` of ophyd's, `motor_egu` of ophyd-async's."""
    unit = getattr(motor, "egu", None)
    if unit is None and hasattr(motor, "motor_egu"):
        unit = yield from bps.rd(motor.motor_egu)
    if not unit:
        raise ValueError(f"{motor.name}: says no engineering unit (egu); set it at the device, a length is needed")
    return str(unit)


def read_position(motor: Any) -> MsgGenerator[float]:
    """Read where a motor is, in its own unit."""
    if isinstance(motor, Locatable):
        location = yield Msg("locate", motor, squeeze=True)  # type: ignore[no-untyped-call]
        return float(location["setpoint"])
    return float((yield from bps.rd(motor)))


def in_motor_units(points: Cycler[Any, Any], motors: tuple[Any, Any], per_metre: Sequence[float]) -> Cycler[Any, Any]:
    """Turn points in m, keyed ``x`` and ``y``, into a trajectory of the (x, y) motors, y slow."""
    at = points.by_key()
    x_motor, y_motor = motors
    return cycler(y_motor, [v * per_metre[1] for v in at["y"]]) + cycler(x_motor, [v * per_metre[0] for v in at["x"]])


def check_limits(name: str, trajectory: Cycler[Any, Any]) -> None:
    """Refuse before anything moves: a scan that stops at a limit half-way wastes the sample's dose."""
    for motor, positions in trajectory.by_key().items():
        low, high = getattr(motor, "limits", None) or (0, 0)
        first, last = min(positions), max(positions)
        if low < high and not (low <= first and last <= high):
            raise ValueError(
                f"{name}: {motor.name} would move from {first:g} to {last:g} {motor.egu}, outside its soft limits "
                f"{low:g} to {high:g} {motor.egu}. Move the centre, or make the field smaller"
            )
