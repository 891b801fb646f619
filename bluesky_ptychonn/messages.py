"""What a session says by itself: whole lines, and never in the midst of what somebody types.

A thread that prints breaks the line that is being edited, unless the prompt knows of it. IPython's own does: what is
printed meanwhile comes above it. Its simple prompt (no terminal, Emacs) does not, and lines wait there for the next
input. While a cell runs nobody types, and lines are printed at once.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from typing import Any

_PACKAGE = "bluesky_ptychonn"
_NEWS = f"{_PACKAGE}.live.notifier"  # all it logs is meant for people
_KEPT = 1000  # lines that wait, at most


class PromptHandler(logging.Handler):
    """Prints warnings of this package, and all that the notifier of a `LiveReconstruction` says."""

    def __init__(self, shell: Any) -> None:
        super().__init__()
        self._shell = shell  # None outside IPython
        self._busy = False  # a cell runs
        self._waiting: deque[str] = deque(maxlen=_KEPT)
        self._lock = threading.Lock()
        self.addFilter(lambda record: record.levelno >= logging.WARNING or record.name == _NEWS)
        if shell is not None:
            shell.events.register("pre_run_cell", self._before_cell)
            shell.events.register("post_run_cell", self._after_cell)

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line now, or when it can be."""
        try:
            self._waiting.append(self.format(record) + "\n")
            if self._busy or not getattr(self._shell, "simple_prompt", False):
                self._print()
        except Exception:  # noqa: BLE001  # logging's own way to say that a line was lost
            self.handleError(record)

    def _before_cell(self, *_: Any) -> None:
        self._busy = True
        self._print()

    def _after_cell(self, *_: Any) -> None:
        self._print()
        self._busy = False

    def _print(self) -> None:
        with self._lock:
            while self._waiting:
                sys.stdout.write(self._waiting.popleft())
            sys.stdout.flush()


def show_messages() -> None:
    """Print what `LiveReconstruction` has to say, from now on: each reconstruction when it is finished, each trouble.

    For start-up files; again is harmless. Lines come above the prompt of IPython, and never in the midst of a line. All
    of it goes to `logging` as ever, logger ``bluesky_ptychonn``: a session that shows its log needs this not.
    """
    logger = logging.getLogger(_PACKAGE)
    if any(isinstance(handler, PromptHandler) for handler in logger.handlers):
        return
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    logger.addHandler(PromptHandler(shell))
    logging.getLogger(_NEWS).setLevel(logging.INFO)
