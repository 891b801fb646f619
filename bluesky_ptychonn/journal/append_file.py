"""The durable file of one raw run: every document, whole, on disk before any catalog hears of it.

One line is one document (`journal.encoding`). Whoever holds the
lock of a file (`fcntl.flock`) is the one that writes it, or writes it to a catalog.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from bluesky_ptychonn.files import lock_descriptor
from bluesky_ptychonn.journal.encoding import decode
from bluesky_ptychonn.journal.writer import SUFFIX, Entry

HELD_BYTES = 64 << 20  # documents kept in memory while the disk takes none

_LONGEST_LINE = 1 << 30
_SYNC_S = 1.0


class RunFile:
    """One run's file, appended to by one thread and read by another.

    Parameters
    ----------
    path : Path
        Opened at the first `append`, or by `claim`.

    Attributes
    ----------
    corrupt : int
        Lines that `read` passed over: torn when their writer was killed, or not ours.
    held_bytes : int
        Of the documents that are in memory only.
    locked : bool
        Whether the lock is held; False too where the file system has none.

    Examples
    --------
    >>> import tempfile
    >>> from bluesky_ptychonn.journal.encoding import encode
    >>> file = RunFile(Path(tempfile.mkdtemp()) / "a-run.jsonl")
    >>> file.append(encode("start", {"uid": "a-run", "time": float("inf")}, 0.0))
    >>> entries, end = file.read(0)
    >>> entries[0].doc, end == file.path.stat().st_size
    ({'uid': 'a-run', 'time': inf}, True)
    >>> file.remove()
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.corrupt = 0
        self.held_bytes = 0
        self.locked = False
        self._fd: int | None = None
        self._end = 0
        self._torn = False
        self._held: deque[bytes] = deque()
        self._mutex = threading.Lock()
        self._synced = (0.0, 0)

    @classmethod
    def claim(cls, path: Path) -> RunFile:
        """Take over a file that another session left.

        Raises
        ------
        BlockingIOError
            When a living session holds it.
        FileNotFoundError
            When it is gone.
        """
        file = cls(path)
        file.hold()
        return file

    def hold(self) -> None:
        """Open and lock a file that is there; again is harmless. Raises what `claim` does."""
        with self._mutex:
            self._open(os.O_RDWR)

    def _open(self, flags: int) -> int:
        while self._fd is None:
            fd = os.open(self.path, flags | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                self._lock(fd)
                if not self._is_ours(fd):
                    if flags & os.O_CREAT:
                        continue
                    raise FileNotFoundError(f"{self.path}: taken over and done with by another session")
                self._end = os.fstat(fd).st_size
                # Torn when its writer was killed: the next line must not become a part of it.
                self._torn = bool(self._end) and os.pread(fd, 1, self._end - 1) != b"\n"
                self._fd, fd = fd, -1
            finally:
                if fd >= 0:
                    os.close(fd)
        return self._fd

    def _lock(self, fd: int) -> None:
        try:
            self.locked = lock_descriptor(fd)
        except OSError:
            self.locked = False  # a file system without locks
            return
        if not self.locked:
            raise BlockingIOError(f"{self.path}: another session writes it, or takes it in")

    def _is_ours(self, fd: int) -> bool:
        """Whether the file still has its name: another one may have delivered it between opening and locking."""
        try:
            return os.path.samestat(os.fstat(fd), self.path.stat())
        except FileNotFoundError:
            return False

    # -- the end that is written

    def append(self, line: bytes, room: float = HELD_BYTES) -> None:
        """Append one line; while the disk takes none it is held, to be written before the next one.

        Parameters
        ----------
        line : bytes
            From `encode`.
        room : float
            Bytes that may be held, this line with them.

        Raises
        ------
        OSError
            When the disk did not take it now.
        MemoryError
            When too much is held already: this line is lost, and what is held stays without a gap.
        """
        with self._mutex:
            self._held.append(line)
            self.held_bytes += len(line)
            try:
                self._write()
            except OSError as error:
                if self.held_bytes <= room:
                    raise
                self.held_bytes -= len(self._held.pop())
                raise MemoryError(f"{error}; and too many documents wait already, this one is lost") from error

    def flush(self) -> None:
        """Try again to write what is held.

        Raises
        ------
        OSError
            When the disk still takes nothing.
        """
        if self._held:
            with self._mutex:
                self._write()

    def _write(self) -> None:
        fd = self._open(os.O_RDWR | os.O_CREAT)
        while self._held:
            line = self._held[0]
            rest = memoryview(b"\n" + line if self._torn else line)
            try:
                while rest:
                    rest = rest[os.write(fd, rest) :]
            except OSError:
                self._take_back(fd)
                raise
            self._torn = False
            self._end = os.lseek(fd, 0, os.SEEK_END)
            self.held_bytes -= len(self._held.popleft())

    def _take_back(self, fd: int) -> None:
        """Remove half a line: no reader has taken it, and it comes again."""
        try:
            os.ftruncate(fd, self._end)
        except OSError:
            self._end = os.lseek(fd, 0, os.SEEK_END)
            self._torn = True

    @property
    def held(self) -> int:
        """Documents that are in memory only."""
        return len(self._held)

    @property
    def size(self) -> int:
        """Bytes on disk, while the file is open."""
        return self._end

    # -- the end that is read

    def read(self, offset: int, max_bytes: int = 1 << 20) -> tuple[list[Entry], int]:
        """Whole documents from `offset` on, about `max_bytes` of them, and the offset after them."""
        if self._fd is None:
            return [], offset
        chunk = os.pread(self._fd, max_bytes, offset)
        end = chunk.rfind(b"\n") + 1
        if not end:
            full = len(chunk) == max_bytes and max_bytes < _LONGEST_LINE
            return self.read(offset, 4 * max_bytes) if full else ([], offset)
        entries = []
        for line in chunk[:end].splitlines():
            entry = decode(line)
            if entry is not None:
                entries.append(entry)
            elif line.strip():
                self.corrupt += 1
        return entries, offset + end

    def documents(self) -> Iterator[Entry]:
        """All documents from the beginning, a bounded piece at a time."""
        offset = 0
        while True:
            entries, end = self.read(offset)
            if end == offset:
                return
            offset = end
            yield from entries

    def sync(self) -> None:
        """Have the disk keep what was written, at most once a second: an append alone does not survive a power cut."""
        when, end = self._synced
        now = time.monotonic()
        if self._fd is not None and self._end > end and now - when >= _SYNC_S:
            self._synced = (now, self._end)
            with contextlib.suppress(OSError):  # a file system that cannot
                os.fdatasync(self._fd)

    # -- its end

    def release(self) -> None:
        """Close the file and leave it for whoever claims it."""
        with self._mutex:
            if self._fd is not None:
                if self._end > self._synced[1]:
                    self._synced = (time.monotonic(), self._end)
                    with contextlib.suppress(OSError):
                        os.fdatasync(self._fd)
                os.close(self._fd)
                self._fd, self.locked = None, False

    def remove(self) -> None:
        """Delete the file: its run is in the catalog."""
        self.path.unlink(missing_ok=True)
        self._synced = (0.0, self._end)  # what is deleted need not reach the disk
        self.release()

    def rename(self, suffix: str) -> Path:
        """Keep the file under a name that nobody looks for."""
        target = self.path.rename(self.path.with_name(self.path.name + suffix))
        self.release()
        return target


def run_files(folder: Path) -> list[Path]:
    """Files of runs in a folder, the one that was written to longest ago first."""
    found = []
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(SUFFIX):
                with contextlib.suppress(FileNotFoundError):
                    found.append((entry.stat().st_mtime_ns, entry.name))
    return [folder / name for _, name in sorted(found)]
