"""Reading a journal while it is written: whole lines only, from any offset, a bounded piece at a time."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import orjson

from bluesky_ptychonn.journal.writer import SUFFIX, Entry

_LONGEST_LINE = 64 << 20


class JournalReader:
    """Follows the journal of one run while it is written.

    Parameters
    ----------
    path : Path
        The run's file.
    offset : int
        Byte to begin at: 0, or another reader's `offset`.

    Attributes
    ----------
    offset : int
        Byte after the last whole line that was read.
    corrupt : int
        Whole lines that were not journal entries (a write torn by a full disk), passed over.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset
        self.corrupt = 0
        self._fd: int | None = None
        self._synced = (0.0, offset)

    def read(self, max_bytes: int = 1 << 20) -> list[Entry]:
        """Entries appended since the last call, at most about `max_bytes` of them; never a line still being written.

        Returns
        -------
        list of Entry
            Empty when there is nothing new, or no file yet.
        """
        if self._fd is None:
            try:
                self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return []
        chunk = os.pread(self._fd, max_bytes, self.offset)
        end = chunk.rfind(b"\n")
        if end < 0:
            if len(chunk) == max_bytes and max_bytes < _LONGEST_LINE:
                return self.read(max_bytes * 4)
            return []
        self.offset += end + 1
        return list(self._parse(chunk[:end]))

    def _parse(self, lines: bytes) -> Iterator[Entry]:
        for line in lines.split(b"\n"):
            if not line:
                continue
            try:
                entry = orjson.loads(line)
                name, doc, when = entry["name"], entry["doc"], float(entry["t"])
            except (ValueError, KeyError, TypeError):
                self.corrupt += 1
                continue
            if isinstance(name, str) and isinstance(doc, dict):
                yield Entry(name, doc, when)
            else:
                self.corrupt += 1

    def sync(self, every_s: float = 1.0) -> None:
        """Have the disk keep what was written, at most once in `every_s` seconds."""
        when, offset = self._synced
        now = time.monotonic()
        if self._fd is not None and self.offset > offset and now - when >= every_s:
            with contextlib.suppress(OSError):  # a file system that cannot: then the append alone has to do
                os.fdatasync(self._fd)
            self._synced = (now, self.offset)

    def close(self) -> None:
        """Close the file; a later `read` opens it again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def journaled_runs(folder: Path) -> list[Path]:
    """Journals in a session's folder, in no meaningful order."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        return [folder / entry.name for entry in entries if entry.name.endswith(SUFFIX)]
    return []
