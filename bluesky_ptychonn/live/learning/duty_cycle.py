"""A share of the time: after work comes rest, in proportion."""

from __future__ import annotations

import time
from collections.abc import Callable


class DutyCycle:
    """Keeps work below a part of the time.

    Parameters
    ----------
    share : float
        Above 0, at most 1.
    wait : callable
        Waits a number of seconds; may return sooner.
    clock : callable
        Monotonic seconds.

    Examples
    --------
    >>> waits, now = [], iter([0.0, 3.0])
    >>> duty = DutyCycle(0.25, waits.append, lambda: next(now))
    >>> duty.begin()
    >>> duty.rest()
    >>> waits
    [9.0]
    """

    def __init__(
        self, share: float, wait: Callable[[float], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rest = 1 / share - 1
        self._wait = wait
        self._clock = clock
        self._since: float | None = None

    def begin(self) -> None:
        """Work begins now."""
        self._since = self._clock()

    def rest(self) -> None:
        """Wait as long as the work since `begin` asks for; nothing where none began."""
        if self._since is None:
            return
        worked, self._since = self._clock() - self._since, None
        if worked * self._rest > 0:
            self._wait(worked * self._rest)
