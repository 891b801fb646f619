"""What the session is told of trouble elsewhere."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from bluesky_ptychonn.live.notifier import ProblemNotifier
from bluesky_ptychonn.live.pipeline.problems import Problem, ProblemKind


def test_each_kind_of_trouble_is_told_once_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    now, problems = [0.0], list[tuple[Problem, str]]()
    notifier = ProblemNotifier(lambda: problems, lambda: now[0])

    def tell(seconds: int, *current: Problem) -> list[tuple[str, str]]:
        caplog.clear()
        problems[:] = [(problem, ". See the log") for problem in current]
        with caplog.at_level(logging.INFO):
            for _ in range(seconds):
                now[0] += 1.0
                notifier.update()
        return [(record.levelname, record.message) for record in caplog.records]

    away = Problem("catalog http://b:8000/api/v1 does not answer: timed out", ProblemKind.CATALOG)
    refused = Problem("catalog http://b:8000/api/v1 does not answer: refused", ProblemKind.CATALOG)
    full = Problem("run 7: disk full", ProblemKind.DISK)
    assert tell(20, away) == [("WARNING", f"{away.message}. See the log")]
    assert tell(20, refused, full) == [("WARNING", "run 7: disk full. See the log")]
    assert tell(2) == []  # it comes and goes
    assert tell(2, away) == []
    assert sorted(tell(9)) == [("INFO", f"over: {away.message}"), ("INFO", "over: run 7: disk full")]
    assert tell(3, away) == [("WARNING", f"{away.message}. See the log")]


def test_each_finished_run_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    finished: dict[str, str] = {}
    notifier = ProblemNotifier(list, find_finished=lambda: dict(finished))
    with caplog.at_level(logging.INFO):
        for uid in "aabbbc":
            finished[uid] = f"scan {uid}: reconstruction complete"
            notifier.update()
    assert [record.message for record in caplog.records] == [f"scan {uid}: reconstruction complete" for uid in "abc"]


def test_a_notifier_outlives_what_it_looks_at(caplog: pytest.LogCaptureFixture) -> None:
    def find_problems() -> Any:
        raise PermissionError("status.json")

    notifier = ProblemNotifier(find_problems)
    notifier.update()
    notifier.update()
    assert [record.message for record in caplog.records] == [
        "where live reconstruction stands cannot be told: PermissionError: status.json"
    ]


def test_a_raw_run_that_is_a_little_behind_is_no_trouble(caplog: pytest.LogCaptureFixture) -> None:
    now, problems = [0.0], list[tuple[Problem, str]]()
    notifier = ProblemNotifier(lambda: problems, lambda: now[0])
    behind = (Problem("waiting for the raw run in the catalog", ProblemKind.RAW_RUN), "")

    def tell(seconds: int, *current: tuple[Problem, str]) -> list[str]:
        caplog.clear()
        problems[:] = current
        with caplog.at_level(logging.INFO):
            for _ in range(seconds):
                now[0] += 1.0
                notifier.update()
        return [record.message for record in caplog.records]

    assert tell(8, behind) == tell(9) == tell(8, behind) == tell(9) == []  # after every scan, for a moment
    assert tell(12, behind) == [behind[0].message]
    assert tell(9) == [f"over: {behind[0].message}"]
