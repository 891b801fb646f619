"""Files of runs: every line whole, whatever the disk and other sessions do."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from bluesky_ptychonn.journal.append_file import AppendFile, journal_path
from bluesky_ptychonn.journal.encoding import encode
from bluesky_ptychonn.journal.reader import JournalReader


def line(number: int) -> bytes:
    return encode("event", {"seq_num": number}, 0.0)


def numbers(file: AppendFile) -> list[int]:
    return [entry.doc["seq_num"] for entry in JournalReader(file)]


def test_a_torn_last_line_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(line(1) + line(2)[:-9])
    file = AppendFile.claim(path)
    file.append(line(3))
    reader = JournalReader(file)
    assert [entry.doc["seq_num"] for entry in reader] == [1, 3]
    assert reader.corrupt == 1
    file.release()


def test_a_piece_without_a_document_does_not_end_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes((b"x" * 1023 + b"\n") * (1 << 11) + line(1))
    file = AppendFile.claim(path)
    assert numbers(file) == [1]
    file.release()


@pytest.mark.parametrize("torn", [False, True])
def test_what_a_full_disk_does_not_take_goes_first_when_there_is_room(
    tmp_path: Path, disk: dict[str, Any], torn: bool
) -> None:
    file = AppendFile(tmp_path / "run.jsonl")
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


def test_a_line_that_is_being_written_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread that asks meanwhile must not say that the disk is full."""
    file, write, seen = AppendFile(tmp_path / "run.jsonl"), os.write, []

    def look(fd: int, data: Any) -> int:
        seen.append(file.held)
        return write(fd, data)

    monkeypatch.setattr(os, "write", look)
    file.append(line(1))
    assert seen == [0]
    file.remove()


def test_one_session_at_a_time_has_a_file(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    file = AppendFile(path)
    file.append(line(1))
    with pytest.raises(BlockingIOError):
        AppendFile.claim(path)
    file.release()
    other = AppendFile.claim(path)
    other.remove()
    with pytest.raises(FileNotFoundError):
        file.hold()


@pytest.mark.parametrize("end", ["remove", "rename"])
def test_a_file_that_another_session_is_done_with_is_not_taken_over(tmp_path: Path, end: str) -> None:
    path = tmp_path / "run.jsonl"
    file = AppendFile(path)
    file.append(line(1))
    opened = os.open(path, os.O_RDWR)
    assert file._is_ours(opened)
    file.remove() if end == "remove" else file.rename(".recovered")
    assert not file._is_ours(opened)
    os.close(opened)


def test_writer_and_reader_work_at_once(tmp_path: Path) -> None:
    file = AppendFile(tmp_path / "run.jsonl")
    file.append(line(0))
    writer = threading.Thread(target=lambda: [file.append(line(number)) for number in range(1, 2000)])
    writer.start()
    seen: list[int] = []
    reader = JournalReader(file)
    while len(seen) < 2000:
        seen += [entry.doc["seq_num"] for entry in reader.read(500)]
    writer.join()
    assert seen == list(range(2000))
    file.remove()


def test_unsafe_uid_stays_in_the_folder(tmp_path: Path) -> None:
    assert journal_path(tmp_path, "../../etc/passwd").parent == tmp_path
    assert journal_path(tmp_path, "x" * 4000).name.endswith(".jsonl")
