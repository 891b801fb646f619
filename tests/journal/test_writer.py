from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from bluesky_ptychonn.journal.reader import JournalReader, journaled_runs
from bluesky_ptychonn.journal.writer import JournalWriter, encode, journal_path
from bluesky_ptychonn.live.pipeline.testing import RunMaker


def write(journal: JournalWriter, documents: Any) -> None:
    for name, doc in documents:
        journal.append(name, doc)


def names(path: Path) -> list[str]:
    return [entry.name for entry in JournalReader(path).read()]


def test_whole_run_comes_back_without_its_images(tmp_path: Path) -> None:
    run = RunMaker("event")
    journal = JournalWriter(tmp_path)
    write(journal, [*run.open(2), *run.point(1, 0.5, 1.5), *run.point(2, 0.5, 2.5), *run.close()])

    entries = JournalReader(journal_path(tmp_path, run.uid)).read()
    assert [entry.name for entry in entries] == ["start", "descriptor", "event", "event", "stop"]
    event = entries[2].doc
    assert event["data"] == {"sy": 0.5, "sx": 1.5}
    assert event["arrays"] == ["img"]
    assert event["timestamps"]["img"] == 1.0
    assert entries[2].time == pytest.approx(time.time(), abs=60)


def test_interleaved_runs_have_a_journal_each(tmp_path: Path) -> None:
    one, two = RunMaker("datum"), RunMaker("stream")
    journal = JournalWriter(tmp_path)
    write(journal, [*one.open(), *two.open(), *one.point(1, 0, 0), *two.point(1, 0, 0), *one.close()])
    assert journal.open_runs == (two.uid,)
    assert journal.begun == [one.uid, two.uid]
    write(journal, [*two.point(2, 0, 0), *two.close()])

    assert names(journal_path(tmp_path, one.uid)) == ["start", "descriptor", "resource", "datum", "event", "stop"]
    streamed = ["stream_resource", "stream_datum", "event", "stream_datum", "event"]
    assert names(journal_path(tmp_path, two.uid)) == ["start", "descriptor", *streamed, "stop"]
    assert {path.name for path in journaled_runs(tmp_path)} == {f"{one.uid}.jsonl", f"{two.uid}.jsonl"}


def test_resource_without_its_run_goes_to_every_open_run(tmp_path: Path) -> None:
    one, two = RunMaker("datum"), RunMaker("datum")
    journal = JournalWriter(tmp_path)
    write(journal, [*one.open(), *two.open()])
    for name, doc in one.point(1, 0, 0):
        doc.pop("run_start", None)
        journal.append(name, doc)
    assert "resource" in names(journal_path(tmp_path, one.uid))
    assert "resource" in names(journal_path(tmp_path, two.uid))


def test_documents_of_an_unknown_run_are_counted_not_kept(tmp_path: Path) -> None:
    run = RunMaker("stream")
    journal = JournalWriter(tmp_path)
    documents = [*run.open(), *run.point(1, 0, 0), *run.close()]
    write(journal, documents[1:])
    assert journal.strays == len(documents) - 1
    assert journaled_runs(tmp_path) == []


def test_other_documents_have_no_part(tmp_path: Path) -> None:
    journal = JournalWriter(tmp_path)
    journal.append("bulk_events", {"anything": 1})
    assert journaled_runs(tmp_path) == []


def test_event_page_keeps_numbers_and_names_arrays(tmp_path: Path) -> None:
    run = RunMaker("event")
    journal = JournalWriter(tmp_path)
    write(journal, run.open())
    page = {
        "uid": ["a", "b"],
        "descriptor": run.descriptor,
        "seq_num": [1, 2],
        "time": [1.0, 2.0],
        "data": {"sx": np.array([1.0, 2.0]), "sy": [3.0, 4.0], "img": np.zeros((2, 16, 16), np.uint16)},
        "timestamps": {"sx": [1.0, 2.0]},
        "filled": {},
    }
    journal.append("event_page", page)
    entry = JournalReader(journal_path(tmp_path, run.uid)).read()[-1]
    assert entry.doc["data"] == {"sx": [1.0, 2.0], "sy": [3.0, 4.0]}
    assert entry.doc["arrays"] == ["img"]


def test_odd_values_are_written_all_the_same() -> None:
    doc = {"nan": float("nan"), "np": np.float32(1.5), "path": Path("/a"), "big": 2**70, 3: "key", "set": {1}}
    said = orjson.loads(encode("start", doc, 0.0))["doc"]
    assert said == {"nan": None, "np": 1.5, "path": "/a", "big": float(2**70), "3": "key", "set": [1]}
    assert encode("start", {"x": float("inf")}, 0.0) == b'{"name":"start","doc":{"x":null},"t":0.0}\n'


def test_unsafe_uid_stays_in_the_folder(tmp_path: Path) -> None:
    assert journal_path(tmp_path, "../../etc/passwd").parent == tmp_path
    assert journal_path(tmp_path, "x" * 4000).name.endswith(".jsonl")


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


def test_a_start_document_that_comes_twice_opens_one_file(tmp_path: Path) -> None:
    journal = JournalWriter(tmp_path)
    before = len([*Path("/proc/self/fd").iterdir()])
    for _ in range(3):
        journal.append("start", {"uid": "twice", "time": 0.0})
    assert len([*Path("/proc/self/fd").iterdir()]) == before + 1
    assert journal.begun == ["twice"]
    journal.close()


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


class FullDisk:
    """Writes that fail from the middle of a line on, until the disk is emptied."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.real, self.left, self.emptied = os.write, 10, False
        monkeypatch.setattr(os, "write", self)

    def __call__(self, fd: int, data: bytes) -> int:
        if self.emptied:
            return self.real(fd, data)
        if not self.left:
            raise OSError(28, "No space left on device")
        written, self.left = self.real(fd, data[: self.left]), 0
        return written


def append_all(journal: JournalWriter, documents: Any) -> int:
    """Append as the callback does; returns how many the disk refused."""
    refused = 0
    for name, doc in documents:
        try:
            journal.append(name, doc)
        except (OSError, MemoryError):
            refused += 1
    return refused


@pytest.mark.parametrize("how", ["next document", "retry", "close"])
def test_what_a_full_disk_did_not_take_comes_later_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    one, two = RunMaker("stream"), RunMaker("stream")
    journal = JournalWriter(tmp_path)
    write(journal, one.open())
    disk = FullDisk(monkeypatch)
    assert append_all(journal, [*one.point(1, 0, 0), *one.point(2, 0, 0), *one.close()]) == 6
    assert append_all(journal, two.open()) == 2
    assert journal.waiting > 0
    assert not journal.retry()
    disk.emptied = True
    if how == "retry":
        assert journal.retry()
    elif how == "close":
        journal.close()
    else:
        write(journal, two.point(1, 0, 0))
        journal.retry()
    assert (journal.waiting, journal.lost) == (0, 0)
    said = ["start", "descriptor", "stream_resource", "stream_datum", "event", "stream_datum", "event", "stop"]
    reader = JournalReader(journal_path(tmp_path, one.uid))
    assert [entry.name for entry in reader.read()] == said
    assert reader.corrupt == 0
    names = [entry.name for entry in JournalReader(journal_path(tmp_path, two.uid)).read()]
    assert names == (said[:5] if how == "next document" else said[:2])


def test_a_disk_full_for_too_long_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bluesky_ptychonn.journal.writer._ROOM_BYTES", 2_000)
    run, journal = RunMaker("stream"), JournalWriter(tmp_path)
    FullDisk(monkeypatch)
    documents = [*run.open(), *(document for n in range(1, 40) for document in run.point(n, 0, 0))]
    assert append_all(journal, documents) == len(documents)
    assert 0 < journal.waiting <= 2_000
    assert journal.lost > 50


def test_follow_while_another_thread_writes(tmp_path: Path) -> None:
    run, points = RunMaker("datum"), 500
    journal = JournalWriter(tmp_path)

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
        reader.sync(every_s=0.0)
    thread.join()
    reader.close()
    assert [entry.doc["seq_num"] for entry in found if entry.name == "event"] == list(range(1, points + 1))
    assert reader.corrupt == 0


@pytest.mark.system
def test_append_survives_kill_minus_nine(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from bluesky_ptychonn.journal.writer import JournalWriter
journal = JournalWriter(Path({str(tmp_path)!r}))
journal.append("start", {{"uid": "killed"}})
journal.append("descriptor", {{"uid": "d", "run_start": "killed"}})
seq_num = 0
while True:
    seq_num += 1
    journal.append("event", {{"descriptor": "d", "seq_num": seq_num, "data": {{}}}})
    print(seq_num, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    acknowledged = 0
    while acknowledged < 200:
        acknowledged = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().split()
    acknowledged = int(rest[-1]) if rest else acknowledged
    process.stdout.close()
    process.wait()
    reader = JournalReader(journal_path(tmp_path, "killed"))
    found = []
    while more := reader.read():
        found += [entry.doc["seq_num"] for entry in more if entry.name == "event"]
    assert found[:acknowledged] == list(range(1, acknowledged + 1))
    assert reader.corrupt == 0
