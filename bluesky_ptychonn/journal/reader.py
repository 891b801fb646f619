"""Reading a run's file while it is written: whole lines only, from any offset, a bounded piece at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bluesky_ptychonn.journal.append_file import AppendFile, Syncer
from bluesky_ptychonn.journal.encoding import Entry, decode, slim, with_lists

_LONGEST_LINE = 1 << 30


class JournalReader:
    """Follows the file of one run: another process's, which need not be there yet, or one that this process holds.

    With `slimmed` only what `slim` keeps of each document, and no array.

    Attributes
    ----------
    offset : int
        Byte after the last whole line that was read; where another reader may go on.
    corrupt : int
        Whole lines that were no documents, passed over: torn when their writer was killed, or not ours.
    """

    def __init__(self, file: Path | AppendFile, offset: int = 0, *, slimmed: bool = False) -> None:
        self.path = file.path if isinstance(file, AppendFile) else file
        self.offset = offset
        self.corrupt = 0
        self._file = file
        self._slimmed = slimmed
        self._fd: int | None = None
        self._syncer = Syncer(offset)

    def read(self, max_bytes: int = 1 << 20) -> list[Entry]:
        """Entries appended since the last call, at most about `max_bytes` of them; never a line still being written.

        Empty when there is nothing new, or no file yet; also where a piece holds no document, and then `offset` moved.
        """
        fd = self._descriptor()
        if fd is None:
            return []
        chunk = os.pread(fd, max_bytes, self.offset)
        end = chunk.rfind(b"\n") + 1
        if not end:
            full = len(chunk) == max_bytes and max_bytes < _LONGEST_LINE
            return self.read(4 * max_bytes) if full else []
        self.offset += end
        return list(self._parse(chunk[:end]))

    def _descriptor(self) -> int | None:
        if isinstance(self._file, AppendFile):
            return self._file.descriptor
        if self._fd is None:
            try:
                self._fd = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
        return self._fd

    def _parse(self, lines: bytes) -> Iterator[Entry]:
        for line in lines.split(b"\n"):
            if not line.strip():
                continue
            entry = decode(line)
            if entry is None:
                self.corrupt += 1
            elif not self._slimmed:
                yield entry
            elif (doc := _slimmed(entry)) is not None:
                yield Entry(entry.name, doc, entry.time)

    def __iter__(self) -> Iterator[Entry]:
        """All entries from `offset` to the end, a piece at a time."""
        before = -1
        while before != self.offset:
            before = self.offset
            yield from self.read()

    def sync(self) -> None:
        """Have the disk keep what was read, at most once a second."""
        if self._fd is not None:
            self._syncer.sync(self._fd, self.offset)

    def close(self) -> None:
        """Close the file; a later `read` opens it again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _slimmed(entry: Entry) -> dict[str, Any] | None:
    try:
        doc = slim(entry.name, entry.doc)
    except (LookupError, TypeError, AttributeError, ValueError):
        return entry.doc  # not what its kind is: whoever uses it says what is wrong
    if doc is None:
        return None
    listed: dict[str, Any] = with_lists(dict(doc))
    return listed
