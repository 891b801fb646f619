"""Windows are served while a plan runs, and a plan never pays for what goes wrong in one."""

from __future__ import annotations

import logging
import threading
from typing import Any

import matplotlib as mpl
import pytest
from bluesky import RunEngine
from bluesky.plan_stubs import sleep

from bluesky_ptychonn import plan_windows, viewer
from bluesky_ptychonn.catalog.results import plot
from bluesky_ptychonn.plan_windows import WindowsDuringPlan


class Canvas:
    """Counts how often its window was served, and breaks then."""

    def __init__(self) -> None:
        self.served: list[str] = []

    def flush_events(self) -> None:
        self.served.append(threading.current_thread().name)
        raise RuntimeError("the window was closed")


@pytest.fixture
def canvas(monkeypatch: pytest.MonkeyPatch) -> Canvas:
    canvas = Canvas()
    monkeypatch.setattr(plan_windows, "_open_canvases", lambda: [canvas])
    return canvas


def test_windows_are_served_in_the_main_thread_while_a_plan_runs(canvas: Canvas) -> None:
    RunEngine(during_task=WindowsDuringPlan())(sleep(0.5))
    assert len(canvas.served) >= 3
    assert set(canvas.served) == {"MainThread"}
    served = len(canvas.served)
    RunEngine()(sleep(0.2))
    assert len(canvas.served) == served  # what Bluesky does for windows that are not Qt's


def test_bluesky_serves_windows_of_qt_itself(canvas: Canvas, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[Any] = []
    monkeypatch.setattr("bluesky.utils.DefaultDuringTask.block", lambda *_: waited.append(_))
    monkeypatch.setitem(mpl.rcParams, "backend", "agg")  # put back at the end
    monkeypatch.setattr(plan_windows, "served_by_bluesky", lambda: True)
    WindowsDuringPlan().block(threading.Event())
    assert (len(waited), canvas.served) == (1, [])


@pytest.mark.parametrize(("backend", "served"), [("QtAgg", True), ("ipympl", True), ("TkAgg", False), ("agg", False)])
def test_which_windows_bluesky_serves(backend: str, served: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(mpl.rcParams), "_get", lambda *_: backend)
    assert plan_windows.served_by_bluesky() is served


def test_a_view_whose_window_will_not_move_says_what_helps(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Nothing:
        def result(self) -> Any:
            raise LookupError("no run was seen yet")

    def said() -> str:
        caplog.clear()
        with caplog.at_level(logging.WARNING), viewer.LiveView(Nothing(), interval_s=0.05):
            return caplog.text

    assert "matplotlib has no windows here. Call its draw(), or make it with path='live.png'" in said()
    monkeypatch.setattr(plot, "has_windows", lambda: True)
    monkeypatch.setattr("matplotlib.figure.Figure.show", lambda *_: None)
    monkeypatch.setattr(plan_windows, "_made", set())
    assert "Install PySide6, or make the RunEngine with RunEngine(during_task=WindowsDuringPlan())" in said()
    monkeypatch.setattr(plan_windows, "_made", {WindowsDuringPlan})
    assert said() == ""
