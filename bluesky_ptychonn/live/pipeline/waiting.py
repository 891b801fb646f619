"""What a run waits for: the next try after a failure, and its raw run in the catalog."""

from __future__ import annotations

from collections.abc import Callable

from bluesky_ptychonn.backoff import Backoff
from bluesky_ptychonn.live.pipeline.problems import Problem, ProblemKind
from bluesky_ptychonn.live.pipeline.progress import Timing

_FIRST_S = 0.5
_OUTAGE_S, _MISTAKE_S = 2.0, 10.0  # longest between tries
_MISTAKES = 3  # failures in a row, the last of which is no outage
_ASK_S = 1.5  # between questions whether the raw run is complete
RAW_BEHIND = "waiting for the raw run in the catalog"


class Retry:
    """When to try a run again, later and later: after an outage for ever, after a mistake of ours three times.

    On the clock, `since` says when the first failure in a row was, None while all is well, and `due_at` when to try
    again; `exhausted` says whether that would be in vain.
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


class RawRunWait:
    """Waits for a raw run to be complete in the catalog, and for its frames a while longer.

    Before that its writer may be behind, or it lies in a backup: a frame that is late is not missing. `is_complete`
    asks the catalog (ConnectionError without an answer), next at `ask_at` on the clock; `problem` says what is waited
    for until then.
    """

    def __init__(self, is_complete: Callable[[], bool], pace: Timing, clock: Callable[[], float]) -> None:
        self.ask_at = 0.0
        self.problem = Problem(RAW_BEHIND, ProblemKind.RAW_RUN)
        self._is_complete, self._pace, self._clock = is_complete, pace, clock
        self._complete_at: float | None = None

    @property
    def complete(self) -> bool:
        """Whether the answer was yes."""
        return self._complete_at is not None

    def ask(self) -> None:
        """Ask the catalog, where it is time to."""
        now = self._clock()
        if self.complete or now < self.ask_at:
            return
        self.ask_at = now + _ASK_S
        try:
            self._complete_at = now if self._is_complete() else None
            self.problem = Problem(RAW_BEHIND, ProblemKind.RAW_RUN)
        except ConnectionError as error:
            self.problem = Problem.from_error(error)

    def over(self, ended_at: float) -> bool:
        """Whether a frame of a run that ended then, and is not in the catalog now, never will be."""
        if self._complete_at is not None:
            return self._clock() - self._complete_at >= self._pace.patience_s
        return self._clock() - ended_at >= self._pace.raw_s
