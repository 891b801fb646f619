"""When to try again what failed: soon at first, then later and later."""

from __future__ import annotations

import time
from collections.abc import Callable


class Backoff:
    """Waits between tries, twice as long after each failure.

    Parameters
    ----------
    first_s, longest_s : float
        Wait after the first failure, and at most, s.
    clock : callable
        Monotonic seconds.

    Attributes
    ----------
    failures : int
        How often in a row.

    Examples
    --------
    >>> now = 0.0
    >>> backoff = Backoff(1.0, 3.0, clock=lambda: now)
    >>> backoff.due, [backoff.fail() for _ in range(3)], backoff.due
    (True, [1.0, 2.0, 3.0], False)
    >>> now = 3.0
    >>> backoff.due, backoff.failures
    (True, 3)
    >>> backoff.succeed()
    >>> backoff.failures
    0
    """

    def __init__(self, first_s: float, longest_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.first_s, self.longest_s = first_s, longest_s
        self.failures = 0
        self._clock = clock
        self._due_at = float("-inf")

    @property
    def due(self) -> bool:
        """Whether it is time to try."""
        return self._clock() >= self._due_at

    def fail(self) -> float:
        """Count a failure; returns how long to wait now, s."""
        wait_s = min(self.first_s * 2.0 ** min(self.failures, 64), self.longest_s)  # a float ends at 2**1023
        self.failures += 1
        self._due_at = self._clock() + wait_s
        return wait_s

    def succeed(self) -> None:
        """Forget all failures."""
        self.failures = 0
        self._due_at = float("-inf")
