"""Reading a run's file while it is written."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bluesky_ptychonn.journal.append_file import journal_path
from bluesky_ptychonn.journal.encoding import encode
from bluesky_ptychonn.journal.reader import JournalReader
from bluesky_ptychonn.journal.router import Journal
from bluesky_ptychonn.live.pipeline.testing import RunMaker


def test_reader_never_sees_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    line = encode("event", {"seq_num": 1}, 1.0)
    reader = JournalReader(path)
    assert reader.read() == []
    with path.open("ab", buffering=0) as file:
        for i in range(len(line)):
            file.write(line[i : i + 1])
            assert len(reader.read()) == (i == len(line) - 1)
    assert reader.offset == len(line)
    assert reader.read() == []


def test_reader_goes_on_from_an_offset(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(encode("start", {"uid": "a"}, 0.0) + encode("event", {"seq_num": 1}, 1.0))
    first = JournalReader(path)
    first.read()
    with path.open("ab") as file:
        file.write(encode("event", {"seq_num": 2}, 2.0))
    assert [entry.doc["seq_num"] for entry in JournalReader(path, first.offset).read()] == [2]


def test_reader_passes_over_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(b'{"name": "eve\n' + encode("event", {"seq_num": 2}, 2.0))
    reader = JournalReader(path)
    assert [entry.doc["seq_num"] for entry in reader.read()] == [2]
    assert reader.corrupt == 1


def test_reader_passes_over_lines_that_are_no_documents(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    lines = [b"5", b"[]", b'{"name": 1, "doc": {}, "t": 0}', b'{"name": "event", "doc": [], "t": 0}']
    lines += [b'{"name": "event", "doc": {}, "t": "late"}', b"[" * 5000, b"\xff", encode("stop", {}, 1.0)]
    path.write_bytes(b"\n".join(lines))
    reader = JournalReader(path)
    assert [entry.name for entry in reader.read()] == ["stop"]
    assert reader.corrupt == 7


def test_reader_takes_a_line_longer_than_its_chunk(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(encode("start", {"uid": "a", "note": "x" * 5000}, 0.0) + encode("stop", {}, 1.0))
    reader = JournalReader(path)
    found = reader.read(max_bytes=100)
    while more := reader.read(max_bytes=100):
        found += more
    assert [entry.name for entry in found] == ["start", "stop"]


def test_reader_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(b"".join(encode("event", {"seq_num": i}, 0.0) for i in range(1000)))
    reader = JournalReader(path)
    some = reader.read(max_bytes=4096)
    assert 0 < len(some) < 200
    found = [entry.doc["seq_num"] for entry in some]
    while more := reader.read(max_bytes=4096):
        found += [entry.doc["seq_num"] for entry in more]
    assert found == list(range(1000))


@pytest.mark.parametrize("doc", [{}, {"data": 5}, {"data": {"x": 1}, "arrays": 3}, {"descriptor": "d", "data": []}])
def test_a_document_that_is_none_of_its_kind_is_left_to_whoever_uses_it(tmp_path: Path, doc: dict[str, Any]) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(encode("event", doc, 0.0))
    assert [entry.name for entry in JournalReader(path, slimmed=True)] == ["event"]


def write(journal: Journal, documents: Any) -> None:
    for name, doc in documents:
        journal.append(name, doc)


def test_follow_while_another_thread_writes(tmp_path: Path) -> None:
    run, points = RunMaker("datum"), 500
    journal = Journal(tmp_path, slimmed=True)

    def scan() -> None:
        write(journal, run.open(points))
        for seq_num in range(1, points + 1):
            write(journal, run.point(seq_num, 0.0, float(seq_num)))
        write(journal, run.close())

    thread = threading.Thread(target=scan)
    thread.start()
    reader, found = JournalReader(journal_path(tmp_path, run.uid)), []
    end = time.monotonic() + 30
    while (not found or found[-1].name != "stop") and time.monotonic() < end:
        found += reader.read()
        reader.sync()
    thread.join()
    reader.close()
    assert [entry.doc["seq_num"] for entry in found if entry.name == "event"] == list(range(1, points + 1))
    assert reader.corrupt == 0


def test_both_kinds_of_lines_of_version_0_1_0_are_read(tmp_path: Path) -> None:
    slim = b'{"name":"event","doc":{"seq_num":1,"data":{"x":null},"timestamps":{"img":1.0},"arrays":["img"]},"t":2.0}\n'
    packed = b'{"__ndarray__":"AQACAA==","dtype":"<u2","shape":[1,2]}'
    whole = b'{"name":"event","doc":{"seq_num":1,"data":{"x":NaN,"img":' + packed + b'},"timestamps":{}},"t":2.0}\n'
    path = tmp_path / "run.jsonl"
    path.write_bytes(slim + whole)
    first, second = JournalReader(path)
    assert (first.doc["arrays"], first.time) == (["img"], 2.0)
    np.testing.assert_array_equal(second.doc["data"]["img"], np.array([[1, 2]], np.uint16))
    for entry in JournalReader(path, slimmed=True):
        assert (list(entry.doc["data"]), entry.doc["arrays"]) == (["x"], ["img"])
