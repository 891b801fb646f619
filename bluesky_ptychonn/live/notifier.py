"""Tells the user's session, once and in words, what a worker elsewhere has trouble with, and when that is over."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Sequence

log = logging.getLogger(__name__)

_EVERY_S = 1.0
_OVER_S = 5.0  # quiet for so long: over
_WHOLE = ("catalog ", "worker ")


def kind_of(words: str) -> str:
    """Find what problems of one kind have in common: no addresses and numbers, and no detail after a colon.

    All that a catalog does wrong is of one kind, one that goes down does it in many ways; and so with a worker.

    >>> kind_of("catalog http://b:8000/api/v1 does not answer: timed out")
    'catalog'
    >>> kind_of("OSError: [Errno 28] No space left on device")
    'OSError'
    """
    if words.startswith(_WHOLE):
        return words.partition(" ")[0]
    plain = re.sub(r"\S+://\S+|\S*\d\S*", "", words)
    return " ".join(plain.partition(": ")[0].split())


class ProblemNotifier:
    """A light thread that looks for problems and logs each kind once: a warning at first, an info when it is over.

    Parameters
    ----------
    look : callable
        Gives the problems of the moment: each in words, and what else is said where it is new.
    clock : callable
        Monotonic seconds.
    """

    def __init__(
        self, look: Callable[[], Sequence[tuple[str, str]]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._look = look
        self._clock = clock
        self._known: dict[str, tuple[str, float]] = {}  # kind -> what was said, when it was seen last
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ptychonn notifier", daemon=True)

    def start(self) -> None:
        """Begin to look, once a second."""
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(2 * _EVERY_S)

    def _run(self) -> None:
        while not self._over.wait(_EVERY_S):
            self.tell()

    def tell(self) -> None:
        """Look once, and log what is new or over."""
        now = self._clock()
        try:
            problems = self._look()
        except Exception as error:  # noqa: BLE001  # said; a session must not lose its voice for good
            problems = [(f"where live reconstruction stands cannot be told: {type(error).__name__}: {error}", "")]
        for words, more in problems:
            kind = kind_of(words)
            if kind not in self._known:
                log.warning("%s%s", words, more)
                self._known[kind] = (words, now)
            self._known[kind] = (self._known[kind][0], now)
        for kind, (words, seen) in list(self._known.items()):
            if now - seen >= _OVER_S:
                del self._known[kind]
                log.info("over: %s", words)
