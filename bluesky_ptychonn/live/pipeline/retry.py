"""What failed in a run is tried again, later and later: an outage for ever, a mistake of ours three times."""

from __future__ import annotations

from collections.abc import Callable

from bluesky_ptychonn.backoff import Backoff

_FIRST_S = 0.5
_OUTAGE_S, _MISTAKE_S = 2.0, 10.0  # longest between tries
_MISTAKES = 3  # failures in a row, the last of which is no outage


class Retry:
    """When to try a run again.

    Parameters
    ----------
    clock : callable
        Monotonic seconds.

    Attributes
    ----------
    since : float or None
        When the first failure in a row was, on the clock; None while all is well.
    due_at : float
        When to try again, on the clock.
    exhausted : bool
        Whether that would be in vain.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.since: float | None = None
        self.due_at = 0.0
        self.exhausted = False
        self._clock = clock
        self._backoff = Backoff(_FIRST_S, _OUTAGE_S, clock)

    def fail(self, *, outage: bool) -> None:
        """Count a failure: of the catalog, or another one."""
        now = self._clock()
        self.since = now if self.since is None else self.since
        self._backoff.longest_s = _OUTAGE_S if outage else _MISTAKE_S
        self.due_at = now + self._backoff.fail()
        self.exhausted = not outage and self._backoff.failures >= _MISTAKES

    def succeed(self) -> None:
        """Forget all failures."""
        self.since = None
        self._backoff.succeed()
