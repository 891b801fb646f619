"""Files of raw runs: what is written is read, whatever the disk and other sessions do."""

from __future__ import annotations

import errno
import math
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bluesky_ptychonn.journal import append_file as run_file
from bluesky_ptychonn.journal import router as run_folder
from bluesky_ptychonn.journal.append_file import RunFile, run_files
from bluesky_ptychonn.journal.encoding import decode, encode
from bluesky_ptychonn.journal.router import RunFolder
from bluesky_ptychonn.live.pipeline.testing import RunMaker

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
ARRAYS = hnp.arrays(
    st.sampled_from(["<u2", ">i4", "<f4", "<f8", "|b1", "<c8"]), hnp.array_shapes(max_dims=3, max_side=12), unique=False
)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


@settings(max_examples=60, deadline=None)
@given(doc=st.dictionaries(st.text(), VALUES), image=ARRAYS)
def test_a_document_comes_back_as_it_was(doc: dict[str, Any], image: np.ndarray) -> None:
    line = encode("event", {**doc, "image": image}, 1.5)
    assert line.count(b"\n") == 1
    entry = decode(line)
    assert entry is not None
    assert (entry.name, entry.time) == ("event", 1.5)
    back = np.asarray(entry.doc.pop("image"))
    np.testing.assert_array_equal(back, image)
    if image.size > 64:
        assert back.dtype == image.dtype
    assert same(entry.doc, {key: value for key, value in doc.items() if key != "image"})


class Odd:
    def __repr__(self) -> str:
        return "odd"


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (b"\x00\xff", "b'\\x00\\xff'"),
        (Path("frames"), "frames"),
        (Odd(), "odd"),
        (1 + 2j, "(1+2j)"),
        (np.float32(0.5), 0.5),
        (np.datetime64("2026-01-01"), "2026-01-01"),
        (np.array([b"a", b"b"]), ["b'a'", "b'b'"]),
        (np.array(7), 7),
        ((1, 2), [1, 2]),
        ({3}, [3]),
        ({(1, 2): {4: 5}}, {"(1, 2)": {"4": 5}}),
        ({"__ndarray__": "no base64", "more": 1}, {"__ndarray__": "no base64", "more": 1}),
        ("\ud800 \u2028\r", "\ud800 \u2028\r"),
        (2**200, 2**200),
    ],
)
def test_what_json_cannot_say_is_kept_as_words(value: Any, kept: Any) -> None:
    entry = decode(encode("event", {"value": value}, 0.0))
    assert entry is not None
    assert entry.doc == {"value": kept}


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b"1", b'{"name":1,"doc":{}}', b'{"name":"a","doc":[]}', b"\xff"])
def test_a_line_that_is_none_of_ours_is_none(line: bytes) -> None:
    assert decode(line) is None


def line(number: int) -> bytes:
    return encode("event", {"seq_num": number}, 0.0)


def numbers(file: RunFile) -> list[int]:
    return [entry.doc["seq_num"] for entry in file.documents()]


def test_a_torn_last_line_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(line(1) + line(2)[:-9])
    file = RunFile.claim(path)
    file.append(line(3))
    assert numbers(file) == [1, 3]
    assert file.corrupt == 1
    file.release()


def test_a_piece_without_a_document_does_not_end_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes((b"x" * 1023 + b"\n") * (1 << 11) + line(1))
    file = RunFile.claim(path)
    assert numbers(file) == [1]
    file.release()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A disk that is full while ``full`` is set; ``torn``: it takes half a line before it says so, and keeps it."""
    state: dict[str, Any] = {"full": False, "torn": False}
    write, truncate = os.write, os.ftruncate

    def full(fd: int, data: Any) -> int:
        if not state["full"]:
            return write(fd, data)
        if state["torn"] and len(data) > 10:
            return write(fd, bytes(data)[:7])
        raise OSError(errno.ENOSPC, "No space left on device")

    def stuck(fd: int, length: int) -> None:
        if state["torn"]:
            raise OSError(errno.EIO, "Input/output error")
        truncate(fd, length)

    monkeypatch.setattr(run_file.os, "write", full)
    monkeypatch.setattr(run_file.os, "ftruncate", stuck)
    return state


@pytest.mark.parametrize("torn", [False, True])
def test_what_a_full_disk_does_not_take_goes_first_when_there_is_room(
    tmp_path: Path, disk: dict[str, Any], torn: bool
) -> None:
    file = RunFile(tmp_path / "run.jsonl")
    file.append(line(1))
    disk["full"], disk["torn"] = True, torn
    for number in (2, 3):
        with pytest.raises(OSError, match="No space left"):
            file.append(line(number))
    assert file.held == 2
    disk["full"] = False
    file.append(line(4))
    assert numbers(file) == [1, 2, 3, 4]
    assert (file.held, file.held_bytes) == (0, 0)
    file.remove()


def test_memory_is_bounded_and_never_loses_the_end_of_a_run(
    tmp_path: Path, disk: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "HELD_BYTES", 3000)
    folder, run = RunFolder(tmp_path), RunMaker("event")
    documents = [*run.open(20), *(doc for n in range(1, 21) for doc in run.point(n, 0, 0)), *run.close()]
    disk["full"] = True
    lost = 0
    for name, doc in documents:
        with pytest.raises((OSError, MemoryError)) as caught:
            folder.append(name, doc)
        lost += isinstance(caught.value, MemoryError)
    ((_, file),) = folder.begun()
    assert 0 < lost == folder.lost < 20
    disk["full"] = False
    file.flush()
    kept = [entry.name for entry in file.documents()]
    assert kept == ["start", "descriptor", *["event"] * (20 - lost), "stop"]
    file.remove()


def test_one_session_at_a_time_has_a_file(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    file = RunFile(path)
    file.append(line(1))
    with pytest.raises(BlockingIOError):
        RunFile.claim(path)
    file.release()
    other = RunFile.claim(path)
    other.remove()
    with pytest.raises(FileNotFoundError):
        file.hold()


@pytest.mark.parametrize("end", ["remove", "rename"])
def test_a_file_that_another_session_is_done_with_is_not_taken_over(tmp_path: Path, end: str) -> None:
    path = tmp_path / "run.jsonl"
    file = RunFile(path)
    file.append(line(1))
    opened = os.open(path, os.O_RDWR)
    assert file._is_ours(opened)
    file.remove() if end == "remove" else file.rename(".recovered")
    assert not file._is_ours(opened)
    os.close(opened)


def test_a_run_whose_name_is_taken_gets_another_file(tmp_path: Path) -> None:
    run = RunMaker("event")
    for _ in range(2):
        folder = RunFolder(tmp_path)
        for name, doc in [*run.open(), *run.close()]:
            folder.append(name, doc)
        for _, file in folder.begun():
            file.release()
    assert [path.name for path in run_files(tmp_path)] == [f"{run.uid}.jsonl", f"{run.uid}.2.jsonl"]


def test_a_uid_with_a_path_in_it_stays_in_the_folder(tmp_path: Path) -> None:
    folder, run = RunFolder(tmp_path / "backup"), RunMaker("event", uid="../../outside")
    for name, doc in run.open():
        folder.append(name, doc)
    assert folder.waiting == ["../../outside"]
    assert [path.parent.name for path in tmp_path.rglob("*.jsonl")] == ["backup"]
    for _, file in folder.begun():
        file.remove()


def test_writer_and_reader_work_at_once(tmp_path: Path) -> None:
    file = RunFile(tmp_path / "run.jsonl")
    file.append(line(0))
    writer = threading.Thread(target=lambda: [file.append(line(number)) for number in range(1, 2000)])
    writer.start()
    seen: list[int] = []
    offset = 0
    while len(seen) < 2000:
        entries, offset = file.read(offset, 500)
        seen += [entry.doc["seq_num"] for entry in entries]
    writer.join()
    assert seen == list(range(2000))
    file.remove()


def test_runs_begin_while_another_thread_asks_what_waits(tmp_path: Path) -> None:
    folder, over, wrong = RunFolder(tmp_path), threading.Event(), []

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
        for _, file in folder.begun():
            file.release()
    assert not wrong
