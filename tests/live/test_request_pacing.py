"""Waiting for the moments when a scan leaves the catalog alone."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from bluesky_ptychonn.journal.append_file import journal_path
from bluesky_ptychonn.journal.router import Journal
from bluesky_ptychonn.live.request_pacing import RequestPacer

START = {"uid": "run", "time": 0.0}
DESCRIPTOR = {"uid": "descriptor", "run_start": "run", "name": "primary", "data_keys": {}}
EVENT = {"descriptor": "descriptor", "seq_num": 1, "time": 0.0, "data": {"x": 1.0}, "timestamps": {"x": 0.0}}
DATUM = {
    "uid": "run/1",
    "stream_resource": "frames",
    "descriptor": "descriptor",
    "indices": {"start": 0, "stop": 1},
    "seq_nums": {"start": 1, "stop": 2},
}


class Scan:
    """A journal whose last line is as old as a test says, and a clock that only sleeping moves."""

    def __init__(self, folder: Path, *, slimmed: bool = True) -> None:
        self.journal = Journal(folder, slimmed=slimmed)
        self.path = journal_path(folder, "run")
        self.now = 1000.0
        self.slept: list[float] = []
        self.after_s: dict[float, tuple[str, dict]] = {}
        self.pacer = RequestPacer(folder, clock=lambda: self.now, sleep=self.sleep)
        self.says("start", START)
        self.says("descriptor", DESCRIPTOR)

    def says(self, name: str, doc: dict, ago: float = 0.0) -> None:
        self.journal.append(name, doc)
        os.utime(self.path, (self.now - ago, self.now - ago))

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)
        for when in [when for when in self.after_s if sum(self.slept) >= when]:
            self.says(*self.after_s.pop(when))

    def waited(self) -> float:
        before = self.now
        self.pacer.wait()
        return self.now - before


@pytest.fixture
def scan(tmp_path):
    made = Scan(tmp_path)
    yield made
    made.journal.close()


def test_right_after_an_event_nobody_waits(scan) -> None:
    scan.says("event", EVENT, ago=0.01)
    assert scan.waited() == 0


@pytest.mark.parametrize("side", [64, 300])
def test_right_after_an_event_with_an_image_in_it_nobody_waits(tmp_path, side) -> None:
    scan = Scan(tmp_path, slimmed=False)
    image = np.ones((side, side), np.uint16)
    scan.says("event", {**EVENT, "data": {"x": 1.0, "image": image}}, ago=0.01)
    assert scan.waited() == 0
    scan.says("stream_datum", DATUM)
    assert scan.waited() == pytest.approx(0.2, abs=0.003)
    scan.journal.close()


def test_later_the_next_event_is_waited_for(scan) -> None:
    scan.says("event", EVENT, ago=0.1)
    scan.after_s = {0.05: ("stream_datum", DATUM), 0.08: ("event", {**EVENT, "seq_num": 2})}
    assert scan.waited() == pytest.approx(0.08, abs=0.003)


def test_between_a_frame_and_its_event_the_scan_writes(scan) -> None:
    scan.says("stream_datum", DATUM, ago=0.001)
    assert scan.waited() == pytest.approx(0.2, abs=0.003)  # and never longer, whatever the scan does


@pytest.mark.parametrize("ago", [0.0, 0.5])
def test_after_a_scan_nobody_waits(scan, ago) -> None:
    stop = {"uid": "stop", "run_start": "run", "time": 0.0, "exit_status": "success"}
    scan.says("stop", stop, ago=ago)
    assert scan.waited() == 0


def test_a_scan_that_pauses_or_moves_far_is_not_waited_for(scan) -> None:
    scan.says("event", EVENT, ago=1.5)
    assert scan.waited() == 0


def test_a_clock_that_is_set_back_prolongs_nothing(scan) -> None:
    scan.says("stream_datum", DATUM)
    scan.pacer._sleep = lambda seconds: scan.slept.append(seconds)
    scan.now -= 3600.0
    scan.pacer.wait()
    assert sum(scan.slept) == pytest.approx(0.2, abs=0.003)


def test_without_a_scan_nobody_waits(tmp_path) -> None:
    RequestPacer(tmp_path / "not there", sleep=lambda _: pytest.fail("waited")).wait()
