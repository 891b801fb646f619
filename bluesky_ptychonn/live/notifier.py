"""Tells the user's session, once and in words: that a run is finished, that there is trouble, that it is over."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from bluesky_ptychonn.live.pipeline.problems import Problem, ProblemKind

log = logging.getLogger(__name__)

_EVERY_S = 1.0
_OVER_S = 5.0  # quiet for so long: over
_USUAL_S: dict[str, float] = {ProblemKind.RAW_RUN: 10.0}  # until then part of every scan: raw data come late


class ProblemNotifier:
    """A light thread that asks for problems and logs each kind once: a warning at first, an info when it is over.

    `find_problems` gives the problems of the moment, each with what is to be said besides where its kind is new;
    `find_finished` a line for each run that is finished, by its uid.
    """

    def __init__(
        self,
        find_problems: Callable[[], Sequence[tuple[Problem, str]]],
        clock: Callable[[], float] = time.monotonic,
        find_finished: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._find_problems = find_problems
        self._find_finished = find_finished
        self._clock = clock
        self._finished: set[str] = set()  # runs of which it was said
        self._known: dict[str, tuple[str, float]] = {}  # kind -> message as it was logged, when it was seen last
        self._usual: dict[str, float] = {}  # kind of which nothing was said yet -> since when it is there
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ptychonn notifier", daemon=True)

    def start(self) -> None:
        """Begin to ask, once a second."""
        self._thread.start()

    def close(self) -> None:
        """Ask no more."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(2 * _EVERY_S)

    def _run(self) -> None:
        while not self._closing.wait(_EVERY_S):
            self.update()

    def update(self) -> None:
        """Ask once, and log what is new or over."""
        now = self._clock()
        try:
            finished = self._find_finished()
            for line in [line for uid, line in finished.items() if uid not in self._finished]:
                log.info("%s", line)
            self._finished = set(finished)
            problems = self._find_problems()
        except Exception as error:  # noqa: BLE001  # said; a session must not lose its voice for good
            message = f"where live reconstruction stands cannot be told: {type(error).__name__}: {error}"
            problems = [(Problem(message, ProblemKind.STATUS), "")]
        here = [problem.kind for problem, _ in problems]
        self._usual = {kind: self._usual.get(kind, now) for kind in here if kind in _USUAL_S}
        for problem, more in problems:
            if now - self._usual.get(problem.kind, now) < _USUAL_S.get(problem.kind, 0.0):
                continue
            if problem.kind not in self._known:
                log.warning("%s%s", problem.message, more)
            self._known[problem.kind] = self._known.get(problem.kind, problem)[0], now
        for kind, (message, seen) in list(self._known.items()):
            if now - seen >= _OVER_S:
                del self._known[kind]
                log.info("over: %s", message)
