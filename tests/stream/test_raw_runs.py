"""Raw runs while the catalog dies under the scan, and their way back."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bluesky_ptychonn.stream.raw_runs import raw_writer, recover
from bluesky_ptychonn.stream.server import serve_catalog

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

POINTS = 8


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiled's client repeats a request for 45 s; here it gives up at once."""
    from tiled.client import utils

    monkeypatch.setattr(utils, "TILED_RETRY_ATTEMPTS", 1)


def test_a_catalog_killed_under_the_scan_costs_nothing(tmp_path: Path, no_patience: None) -> None:
    from bluesky import RunEngine
    from bluesky.plans import list_scan
    from ophyd.sim import SynAxis, SynSignal

    motor = SynAxis(name="motor")
    camera = SynSignal(name="camera", func=lambda: np.full((8, 8), motor.position))
    times: list[float] = []
    with serve_catalog(tmp_path / "catalog") as server:
        writer = raw_writer(server, tmp_path / "backup")
        run_engine: Any = RunEngine({}, context_managers=[])
        run_engine.subscribe(writer)

        def kill_in_the_middle(name: str, doc: dict[str, Any]) -> None:
            times.append(time.monotonic())
            if name == "event" and doc["seq_num"] == POINTS // 2:
                deadline = time.monotonic() + 60
                while not len(server.raw) and time.monotonic() < deadline:  # a part of the run is in the catalog
                    time.sleep(0.05)
                os.kill(server.pid, signal.SIGKILL)

        run_engine.subscribe(kill_in_the_middle)
        (uid,) = run_engine(list_scan([camera], motor, list(range(POINTS))))
        writer.shutdown()
    after = times[POINTS // 2 + 2 :]
    assert max(np.diff(after)) < 2.0  # the plan never waited for the catalog that was gone
    (left,) = (tmp_path / "backup").iterdir()
    with serve_catalog(tmp_path / "catalog") as server:
        (one,) = recover(server, tmp_path / "backup")
        assert (one.uid, one.outcome) == (uid, "recovered")
        run = server.raw[uid]
        assert run.stop["exit_status"] == "success"
        np.testing.assert_array_equal(run["primary"]["motor"].read(), np.arange(POINTS))
        assert run["primary"]["camera"].read().shape == (POINTS, 8, 8)
        assert recover(server, tmp_path / "backup") == []
        one.file.rename(left)  # as if the renaming had not happened
        assert [again.outcome for again in recover(server, tmp_path / "backup")] == ["already there"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("not json\n", "not a backup of a run: JSONDecodeError"),
        ("", "not a backup of a run: IndexError"),
        (json.dumps({"name": "event", "doc": {}}) + "\n", "does not begin with a start document"),
        (json.dumps({"name": "start", "doc": {"uid": "u"}}) + "\n", "has no stop document"),
    ],
)
def test_what_is_no_backup_is_said_and_kept(tmp_path: Path, catalog_server: Any, content: str, words: str) -> None:
    (tmp_path / "file.jsonl").write_text(content)
    (one,) = recover(catalog_server, tmp_path)
    assert words in one.outcome
    assert one.file.exists()
    assert one.file.suffix == ".jsonl"
