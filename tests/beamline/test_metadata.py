"""What outlives a session, and never stands in a scan's way."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bluesky import RunEngine
from bluesky.plans import count
from ophyd.sim import det

from bluesky_ptychonn import files
from bluesky_ptychonn.beamline.metadata import PersistentMetadata


def scan_ids(engine: Any, number: int = 1) -> list[int]:
    found: list[int] = []
    token = engine.subscribe(lambda _, doc: found.append(doc["scan_id"]), "start")
    for _ in range(number):
        engine(count([det]))
    engine.unsubscribe(token)
    return found


def test_scan_ids_go_on_over_sessions_also_two_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metadata.json"
    first = RunEngine(PersistentMetadata(path))
    first.md["sample"] = {"name": "star", "thickness_m": np.float64(2e-7)}
    assert scan_ids(first, 2) == [1, 2]
    second = RunEngine(PersistentMetadata(path))
    assert second.md["sample"] == {"name": "star", "thickness_m": 2e-7}
    assert scan_ids(second) == [3]
    assert (scan_ids(first), scan_ids(second)) == ([4], [5])
    assert first.md["versions"] == second.md["versions"]
    assert set(PersistentMetadata(path)) == {"sample", "scan_id"}  # versions are each session's own
    del second.md["sample"]
    assert "sample" not in first.md
    assert len(first.md) == 2


def test_a_full_disk_is_logged_and_the_scan_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = RunEngine(PersistentMetadata(tmp_path / "metadata.json"))
    scan_ids(engine)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context, caplog.at_level(logging.WARNING):
        context.setattr(files, "write_whole", full)
        assert scan_ids(engine, 2) == [2, 3]
    assert "cannot be written, the next session will not know of them" in caplog.text
    assert scan_ids(engine) == [4]
    assert PersistentMetadata(tmp_path / "metadata.json")["scan_id"] == 4


def test_words_for_what_cannot_be_kept(tmp_path: Path) -> None:
    path = tmp_path / "metadata.json"
    metadata = PersistentMetadata(path)
    with pytest.raises(ValueError, match=r"metadata device: .* cannot be kept in .*metadata\.json"):
        metadata["device"] = det
    assert "device" not in metadata
    path.write_text("{ half")
    with pytest.raises(ValueError, match="not a JSON object; mend the file, or take it away"):
        PersistentMetadata(path)
