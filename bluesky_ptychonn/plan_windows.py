"""Windows that move while a plan runs, whatever they are drawn with.

A RunEngine runs its plan in a thread of its own, and meanwhile blocks the main one, which alone may draw windows.
Bluesky serves windows of Qt there, and no others.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from typing import Any

from bluesky.utils import DefaultDuringTask

_EVERY_S = 0.05

_made: weakref.WeakSet[WindowsDuringPlan] = weakref.WeakSet()


class WindowsDuringPlan(DefaultDuringTask):
    """Serves matplotlib's windows while a plan runs: ``RunEngine(md, during_task=WindowsDuringPlan())``.

    Those of Qt as Bluesky does itself; others, such as Tk's, twenty times a second. Where there are none it waits.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        _made.add(self)

    def block(self, blocking_event: threading.Event) -> None:
        """Wait until the plan is over. Nothing that goes wrong in a window becomes an error of the plan."""
        if not served_by_bluesky() and threading.current_thread() is threading.main_thread():
            while not blocking_event.wait(_EVERY_S):
                for canvas in _open_canvases():
                    with contextlib.suppress(Exception):  # a window that was just closed
                        canvas.flush_events()
        super().block(blocking_event)  # type: ignore[no-untyped-call]


def served_by_bluesky() -> bool:
    """Whether windows of matplotlib's backend, if it has any, are served by every RunEngine."""
    if "matplotlib" not in sys.modules:
        return True
    import matplotlib as mpl

    backend = str(mpl.rcParams._get("backend")).lower()  # asks for none to be chosen
    return any(name in backend for name in ("qt", "ipympl", "nbagg"))


def windows_are_served() -> bool:
    """Whether windows move while a plan runs, as far as is known here."""
    return served_by_bluesky() or bool(_made)


def _open_canvases() -> list[Any]:
    if "matplotlib.pyplot" not in sys.modules:
        return []
    from matplotlib._pylab_helpers import Gcf

    return [manager.canvas for manager in Gcf.get_all_fig_managers()]
