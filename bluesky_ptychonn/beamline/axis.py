"""A simulated motor with the attributes of ophyd's `EpicsMotor`, and a scan stage of two."""

from __future__ import annotations

import functools
import threading
import time
from typing import Any

import numpy as np
from ophyd import Component, Device, Kind, Signal
from ophyd.positioner import PositionerBase
from ophyd.status import MoveStatus
from ophyd.utils.errors import LimitError

from bluesky_ptychonn.optics.geometry import to_metres

_UPDATE_S = 0.05  # how often a moving axis reports, as motor records do


class PositionSignal(Signal):  # type: ignore[misc]  # ophyd is untyped
    """A position whose description carries unit, precision and limits, as an EPICS motor's does."""

    def describe(self) -> dict[str, Any]:
        """Describe with dtype_numpy, units, precision and control limits."""
        described: dict[str, Any] = super().describe()
        axis = self.parent
        low, high = axis.limits
        described[self.name].update(
            dtype="number",
            dtype_numpy="<f8",
            units=axis.egu,
            precision=axis.precision,
            lower_ctrl_limit=float(low),
            upper_ctrl_limit=float(high),
        )
        return described


class SimAxis(Device, PositionerBase):  # type: ignore[misc]
    """One simulated motor.

    Parameters
    ----------
    prefix : str
        Kept for the look of it, as an EPICS device has one.
    name : str
        Also the data key of its readback.
    egu : str
        Engineering unit, one of `LENGTH_UNITS`; ValueError for another.
    limits : tuple of float
        Soft limits in `egu`; (0, 0) means none, as for EPICS motors.
    velocity : float
        `egu` a second; 0 arrives at once.
    settle_error : float
        RMS of readback minus setpoint after a move, in `egu`.
    seed : int
        Of the settle error.

    Examples
    --------
    >>> axis = SimAxis(name="x", egu="um")
    >>> axis.set(1.5).wait()
    >>> axis.position
    1.5
    """

    user_readback = Component(PositionSignal, value=0.0, kind=Kind.hinted)
    user_setpoint = Component(PositionSignal, value=0.0, kind=Kind.normal, metadata={"write_access": False})
    user_offset = Component(Signal, value=0.0, kind=Kind.config)
    velocity = Component(Signal, value=0.0, kind=Kind.config)
    motor_egu = Component(Signal, value="mm", kind=Kind.config)
    precision = 7

    def __init__(
        self,
        prefix: str = "",
        *,
        name: str,
        egu: str = "mm",
        limits: tuple[float, float] = (0.0, 0.0),
        velocity: float = 0.0,
        settle_error: float = 0.0,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(prefix, name=name, **kwargs)
        self.user_readback.name = self.name
        self._lock = threading.RLock()  # a finished move and a new one must not mix
        self._halt = threading.Event()
        self._status: MoveStatus | None = None
        self.configure_axis(egu, limits, velocity, settle_error, seed)
        self._set_position(0.0)

    def configure_axis(
        self, egu: str, limits: tuple[float, float], velocity: float, settle_error: float, seed: int | list[int]
    ) -> None:
        """Set what the constructor sets; a stage does so for its axes."""
        to_metres(1.0, egu, f"axis {self.name}")
        self.motor_egu.put(egu)
        self.velocity.put(velocity)
        self._limits = limits
        self._settle_error = settle_error
        self._rng = np.random.default_rng(seed)

    @property
    def egu(self) -> str:
        """Engineering unit."""
        return str(self.motor_egu.get())

    @property
    def limits(self) -> tuple[float, float]:
        """Soft limits in `egu`; (0, 0) means none."""
        return self._limits

    def check_value(self, value: float) -> None:
        """Refuse a position outside the soft limits with a LimitError."""
        low, high = self.limits
        if low < high and not low <= value <= high:
            raise LimitError(
                f"{self.name}: position {value:g} {self.egu} is outside the soft limits {low:g} to {high:g} {self.egu}"
            )

    def move(
        self, position: float, wait: bool = True, timeout: float | None = None, moved_cb: Any = None
    ) -> MoveStatus:
        """Move, and wait where asked; `set` does not wait. A new target replaces the old one, as for a motor record."""
        self.check_value(position)
        target = float(position)
        # Finished by hand: PositionerBase ends its moves through a subscription, and two of them can mix there.
        status = MoveStatus(self, target, timeout=timeout or self._timeout, settle_time=self._settle_time)
        if moved_cb is not None:
            status.add_callback(functools.partial(moved_cb, obj=self))
        with self._lock:
            self._end(f"replaced by a move to {target:g} {self.egu}")
            self._status = status
            halt = self._halt = threading.Event()
            start = float(self._position)
            self._moving = True
            self.user_setpoint.put(target, force=True)
        self._run_subs(sub_type=self.SUB_START, timestamp=time.time())
        speed = abs(float(self.velocity.get()))
        duration = abs(target - start) / speed if speed else 0.0
        if duration == 0:
            self._arrive(target, halt)
        else:
            arguments = (start, target, duration, halt)
            threading.Thread(target=self._travel, args=arguments, name=f"{self.name} moving", daemon=True).start()
        if wait:
            status.wait()
        return status

    def _end(self, reason: str | None) -> None:
        """End the present move, if any: well without a reason, else as failed."""
        self._halt.set()
        self._moving = False
        status, self._status = self._status, None
        if status is None or status.done:
            return
        if reason is None:
            status.set_finished()
        else:
            status.set_exception(RuntimeError(f"{self.name}: the move to {status.target:g} {self.egu} was {reason}"))

    def _travel(self, start: float, target: float, duration: float, halt: threading.Event) -> None:
        began = time.monotonic()
        while (elapsed := time.monotonic() - began) < duration:
            if halt.wait(min(_UPDATE_S, duration - elapsed)):
                return
            part = min(1.0, (time.monotonic() - began) / duration)
            self._report(start + part * (target - start), halt)
        self._arrive(target, halt)

    def _arrive(self, target: float, halt: threading.Event) -> None:
        error = self._rng.normal(0.0, self._settle_error) if self._settle_error else 0.0
        self._report(target + error, halt)
        with self._lock:
            if halt.is_set():
                return
            self._end(None)
        self._run_subs(sub_type=self.SUB_DONE, timestamp=time.time(), value=self._position)

    def _report(self, value: float, halt: threading.Event) -> None:
        with self._lock:
            if halt.is_set():
                return
            self.user_readback.put(value, force=True)
            self._set_position(value)

    def stop(self, *, success: bool = False) -> None:
        """Halt where the axis is now."""
        with self._lock:
            self._end(None if success else "stopped")
            self.user_setpoint.put(float(self._position), force=True)


class SimStage(Device):  # type: ignore[misc]
    """Two simulated axes ``<name>_x`` and ``<name>_y`` that carry the sample, see `SimAxis`.

    Soft limits are ±travel, in `egu`; ±100 µm when it is not given.
    """

    x = Component(SimAxis, "x", labels={"motors"})
    y = Component(SimAxis, "y", labels={"motors"})

    def __init__(
        self,
        prefix: str = "",
        *,
        name: str = "stage",
        egu: str = "mm",
        travel: float | None = None,
        velocity: float = 0.0,
        settle_error: float = 0.0,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(prefix, name=name, **kwargs)
        reach = travel if travel is not None else 100e-6 / to_metres(1.0, egu, f"SimStage {name}")
        for offset, axis in enumerate((self.x, self.y)):
            axis.configure_axis(egu, (-reach, reach), velocity, settle_error, [seed, offset])

    def position_m(self) -> tuple[float, float]:
        """Readback (y, x) in m."""
        return (
            to_metres(float(self.y.position), self.y.egu, self.y.name),
            to_metres(float(self.x.position), self.x.egu, self.x.name),
        )
