"""How long a frame that is not in the catalog may still come there."""

from __future__ import annotations

from collections.abc import Callable

from bluesky_ptychonn.live.pipeline.problems import Problem, ProblemKind
from bluesky_ptychonn.live.pipeline.progress import Timing

_ASK_S = 1.5  # between questions whether the raw run is complete
RAW_BEHIND = "waiting for the raw run in the catalog"


class RawRunWait:
    """Waits for a raw run to be complete in the catalog, and for its frames a while longer.

    Before that its writer may be behind, or it lies in a backup: a frame that is late is not missing.

    Parameters
    ----------
    is_complete : callable
        Asks the catalog; ConnectionError when there is no answer.
    pace : Timing
        How long to wait.
    clock : callable
        Monotonic seconds.

    Attributes
    ----------
    ask_at : float
        When to ask next, on the clock.
    problem : Problem
        Why frames are waited for until then.
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
