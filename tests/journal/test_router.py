"""Documents of a session, each in the file of its run, also where they do not say whose they are."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bluesky_ptychonn.catalog.runs.data_keys import DataKeys
from bluesky_ptychonn.catalog.runs.pairing import RunPairing
from bluesky_ptychonn.journal import router
from bluesky_ptychonn.journal.append_file import AppendFile, journal_path, run_files
from bluesky_ptychonn.journal.reader import JournalReader
from bluesky_ptychonn.journal.router import Journal
from bluesky_ptychonn.live.pipeline.testing import RunMaker


@pytest.mark.parametrize("kind", ["datum", "stream"])
@pytest.mark.parametrize("slimmed", [False, True])
def test_two_runs_at_once_whose_resources_do_not_say_whose_they_are(tmp_path: Path, slimmed: bool, kind: Any) -> None:
    one, two = RunMaker(kind), RunMaker(kind)
    documents = [*one.open(3), *two.open(3)]
    for n in range(1, 4):
        documents += [*one.point(n, 0.0, 0.1 * n), *two.point(n, 0.0, 0.2 * n)]
    journal = Journal(tmp_path, slimmed=slimmed)
    for name, doc in [*documents, *one.close(), *two.close()]:
        journal.append(
            name, {key: value for key, value in doc.items() if not (key == "run_start" and "resource" in name)}
        )
    assert journal.strays == 0
    for run, step_m in ((one, 0.1e-6), (two, 0.2e-6)):
        (start, *rest) = JournalReader(journal_path(tmp_path, run.uid)).read()
        pairing = RunPairing(start.doc, DataKeys())
        for entry in rest:
            pairing.feed(entry.name, entry.doc)
        found = [(ref.seq_num, ref.row, ref.x_m) for ref in pairing.take()]
        assert found == [(n, n - 1, pytest.approx(n * step_m)) for n in (1, 2, 3)]
        assert pairing.unpaired() == {}
    journal.close()


def test_a_disk_that_fails_for_one_run_keeps_the_document_of_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resource of one of two runs goes to both."""
    one, two = RunMaker("datum"), RunMaker("datum")
    journal = Journal(tmp_path)
    for name, doc in [*one.open(), *two.open()]:
        journal.append(name, doc)
    files = dict(journal.take_over())
    append = AppendFile.append

    def fail(file: AppendFile, *arguments: Any) -> None:
        if file is files[one.uid]:
            raise MemoryError
        append(file, *arguments)

    monkeypatch.setattr(AppendFile, "append", fail)
    with pytest.raises(MemoryError):
        journal.append("resource", {"uid": "r", "spec": "AD_HDF5"})
    assert journal.lost == 1
    assert [entry.name for entry in JournalReader(files[two.uid])] == ["start", "descriptor", "resource"]
    for file in files.values():
        file.release()


def read(path: Path, *, slimmed: bool) -> list[tuple[str, Any]]:
    return [(entry.name, entry.doc) for entry in JournalReader(path, slimmed=slimmed)]


def test_who_follows_another_journal_reads_what_its_own_would_say(tmp_path: Path) -> None:
    run = RunMaker("event", md={"grid": np.arange(100.0)})
    whole, follows, own = Journal(tmp_path / "a"), Journal(tmp_path / "b"), Journal(tmp_path / "c", slimmed=True)
    page = {"descriptor": run.descriptor, "seq_num": [2], "data": {"sx": np.arange(1.0), "img": [[[1]]]}}
    documents = [*run.open(3), *run.point(1, np.nan, 1.0), ("event_page", page), ("unknown", {"run_start": run.uid})]
    for name, doc in [*documents, *run.close()]:
        doc = {"uid": "unknown", **doc}
        whole.append(name, doc)
        if name == "start":
            assert follows.follow(run.uid, whole)
        follows.append(name, doc)
        own.append(name, doc)
    assert (follows.strays, follows.begun, follows.open_runs) == (0, [run.uid], ())
    followed, mine = (read(journal_path(tmp_path / name, run.uid), slimmed=True) for name in "bc")
    assert [name for name, _ in followed] == ["start", "descriptor", "event", "event_page", "stop"]
    assert repr(followed) == repr(mine)  # in which NaN is NaN
    assert followed[2][1]["arrays"] == followed[3][1]["arrays"] == ["img"]
    assert followed[0][1]["grid"] == list(range(100))
    ((_, file),) = whole.take_over()
    file.remove()
    assert len(read(journal_path(tmp_path / "b", run.uid), slimmed=True)) == 5
    own.close()


def test_a_run_that_begins_once_more_is_read_once(tmp_path: Path) -> None:
    run = RunMaker("event")
    whole, follows = Journal(tmp_path / "a"), Journal(tmp_path / "b", slimmed=True)
    for _ in range(2):
        for name, doc in [*run.open(1), *run.point(1, 0.0, 0.0), *run.close()]:
            whole.append(name, doc)
            if name == "start":
                assert follows.follow(run.uid, whole)
            follows.append(name, doc)
    assert [path.name for path in run_files(tmp_path / "b")] == [f"{run.uid}.jsonl"]
    assert len(read(journal_path(tmp_path / "b", run.uid), slimmed=True)) == 4
    whole.close()


class Fatal:
    def __str__(self) -> str:
        raise SystemExit(1)


@pytest.mark.parametrize("slimmed", [False, True])
def test_a_start_document_that_no_line_can_hold_begins_no_run(tmp_path: Path, slimmed: bool) -> None:
    journal = Journal(tmp_path, slimmed=slimmed)
    with pytest.raises(SystemExit):
        journal.append("start", {"uid": "run", "bad": Fatal()})
    assert not journal.append("descriptor", {"uid": "d", "run_start": "run"})
    assert (journal.begun, journal.open_runs, journal.take_over(), run_files(tmp_path)) == ([], (), [], [])


def test_what_is_held_for_a_follower_is_said_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunMaker("event")
    whole, follows = Journal(tmp_path / "a"), Journal(tmp_path / "b", slimmed=True)
    start, *rest = run.open()
    whole.append(*start)
    follows.follow(run.uid, whole)
    write = os.write

    def full(fd: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    for document in rest:
        with pytest.raises(OSError, match="No space"):
            whole.append(*document)
        follows.append(*document)
    assert follows.held == len(rest)
    monkeypatch.setattr(os, "write", write)
    assert whole.flush()
    assert follows.held == 0
    assert len(read(journal_path(tmp_path / "b", run.uid), slimmed=True)) == 2
    whole.close()


def test_memory_is_bounded_and_never_loses_the_end_of_a_run(
    tmp_path: Path, disk: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router, "HELD_BYTES", 3000)
    folder, run = Journal(tmp_path), RunMaker("event")
    documents = [*run.open(20), *(doc for n in range(1, 21) for doc in run.point(n, 0, 0)), *run.close()]
    disk["full"] = True
    lost = 0
    for name, doc in documents:
        with pytest.raises((OSError, MemoryError)) as caught:
            folder.append(name, doc)
        lost += isinstance(caught.value, MemoryError)
    ((_, file),) = folder.take_over()
    assert 0 < lost == folder.lost < 20
    disk["full"] = False
    file.flush()
    kept = [entry.name for entry in JournalReader(file)]
    assert kept == ["start", "descriptor", *["event"] * (20 - lost), "stop"]
    file.remove()


def test_a_run_whose_name_is_taken_gets_another_file(tmp_path: Path) -> None:
    run = RunMaker("event")
    for _ in range(2):
        folder = Journal(tmp_path)
        for name, doc in [*run.open(), *run.close()]:
            folder.append(name, doc)
        for _, file in folder.take_over():
            file.release()
    assert [path.name for path in run_files(tmp_path)] == [f"{run.uid}.jsonl", f"{run.uid}.2.jsonl"]


def test_a_uid_with_a_path_in_it_stays_in_the_folder(tmp_path: Path) -> None:
    folder, run = Journal(tmp_path / "backup"), RunMaker("event", uid="../../outside")
    for name, doc in run.open():
        folder.append(name, doc)
    assert folder.waiting == ["../../outside"]
    assert [path.parent.name for path in tmp_path.rglob("*.jsonl")] == ["backup"]
    for _, file in folder.take_over():
        file.remove()


def test_runs_begin_while_another_thread_asks_what_waits(tmp_path: Path) -> None:
    folder, over, wrong = Journal(tmp_path), threading.Event(), []

    def ask() -> None:
        try:
            while not over.is_set():
                _ = folder.held  # a line that is being written counts
        except RuntimeError as error:
            wrong.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for number in range(300):
            folder.append("start", {"uid": f"run-{number}", "time": 0.0})
    finally:
        over.set()
        asking.join()
        sys.setswitchinterval(before)
        for _, file in folder.take_over():
            file.release()
    assert not wrong


def write(journal: Journal, documents: Any) -> None:
    for name, doc in documents:
        journal.append(name, doc)


def names(path: Path) -> list[str]:
    return [entry.name for entry in JournalReader(path).read()]


def test_whole_run_comes_back_without_its_images(tmp_path: Path) -> None:
    run = RunMaker("event")
    journal = Journal(tmp_path, slimmed=True)
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
    journal = Journal(tmp_path, slimmed=True)
    write(journal, [*one.open(), *two.open(), *one.point(1, 0, 0), *two.point(1, 0, 0), *one.close()])
    assert journal.open_runs == (two.uid,)
    assert journal.begun == [one.uid, two.uid]
    write(journal, [*two.point(2, 0, 0), *two.close()])

    assert names(journal_path(tmp_path, one.uid)) == ["start", "descriptor", "resource", "datum", "event", "stop"]
    streamed = ["stream_resource", "stream_datum", "event", "stream_datum", "event"]
    assert names(journal_path(tmp_path, two.uid)) == ["start", "descriptor", *streamed, "stop"]
    assert {path.name for path in run_files(tmp_path)} == {f"{one.uid}.jsonl", f"{two.uid}.jsonl"}


def test_resource_without_its_run_goes_to_every_open_run(tmp_path: Path) -> None:
    one, two = RunMaker("datum"), RunMaker("datum")
    journal = Journal(tmp_path, slimmed=True)
    write(journal, [*one.open(), *two.open()])
    for name, doc in one.point(1, 0, 0):
        doc.pop("run_start", None)
        journal.append(name, doc)
    assert "resource" in names(journal_path(tmp_path, one.uid))
    assert "resource" in names(journal_path(tmp_path, two.uid))


def test_documents_of_an_unknown_run_are_counted_not_kept(tmp_path: Path) -> None:
    run = RunMaker("stream")
    journal = Journal(tmp_path, slimmed=True)
    documents = [*run.open(), *run.point(1, 0, 0), *run.close()]
    write(journal, documents[1:])
    assert journal.strays == len(documents) - 1
    assert run_files(tmp_path) == []


def test_other_documents_have_no_part(tmp_path: Path) -> None:
    journal = Journal(tmp_path, slimmed=True)
    journal.append("bulk_events", {"anything": 1})
    assert run_files(tmp_path) == []


def test_event_page_keeps_numbers_and_names_arrays(tmp_path: Path) -> None:
    run = RunMaker("event")
    journal = Journal(tmp_path, slimmed=True)
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


def test_a_start_document_that_comes_twice_opens_one_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path, slimmed=True)
    before = len([*Path("/proc/self/fd").iterdir()])
    for _ in range(3):
        journal.append("start", {"uid": "twice", "time": 0.0})
    assert len([*Path("/proc/self/fd").iterdir()]) == before + 1
    assert journal.begun == ["twice"]
    journal.close()


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


def append_all(journal: Journal, documents: Any) -> int:
    """Append as the callback does; returns how many the disk refused."""
    refused = 0
    for name, doc in documents:
        try:
            journal.append(name, doc)
        except (OSError, MemoryError):
            refused += 1
    return refused


@pytest.mark.parametrize("how", ["next document", "flush", "close"])
def test_what_a_full_disk_did_not_take_comes_later_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    one, two = RunMaker("stream"), RunMaker("stream")
    journal = Journal(tmp_path, slimmed=True)
    write(journal, one.open())
    disk = FullDisk(monkeypatch)
    assert append_all(journal, [*one.point(1, 0, 0), *one.point(2, 0, 0), *one.close()]) == 6
    assert append_all(journal, two.open()) == 2
    assert journal.held > 0
    assert not journal.flush()
    disk.emptied = True
    if how == "flush":
        assert journal.flush()
    elif how == "close":
        journal.close()
    else:
        write(journal, two.point(1, 0, 0))
        journal.flush()
    assert (journal.held, journal.lost) == (0, 0)
    said = ["start", "descriptor", "stream_resource", "stream_datum", "event", "stream_datum", "event", "stop"]
    reader = JournalReader(journal_path(tmp_path, one.uid))
    assert [entry.name for entry in reader.read()] == said
    assert reader.corrupt == 0
    names = [entry.name for entry in JournalReader(journal_path(tmp_path, two.uid)).read()]
    assert names == (said[:5] if how == "next document" else said[:2])


def test_a_disk_full_for_too_long_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bluesky_ptychonn.journal.router.HELD_BYTES", 2_000)
    run, journal = RunMaker("stream"), Journal(tmp_path, slimmed=True)
    FullDisk(monkeypatch)
    documents = [*run.open(), *(document for n in range(1, 40) for document in run.point(n, 0, 0))]
    assert append_all(journal, documents) == len(documents)
    assert 0 < journal.held <= 2_000
    assert journal.lost > 50


@pytest.mark.system
def test_append_survives_kill_minus_nine(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from bluesky_ptychonn.journal.router import Journal
journal = Journal(Path({str(tmp_path)!r}), slimmed=True)
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
