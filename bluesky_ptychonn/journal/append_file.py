"""The durable file of one run: every document on disk before any catalog or worker hears of it.

One line is one document (`journal.encoding`). An append is one `write` on an ``O_APPEND`` descriptor: it survives
``kill -9`` of the writer. Only a power cut needs `fdatasync`, which costs two hundred times more, so readers do that,
once a second. Whoever holds the lock of a file (`fcntl.flock`) is the one that writes it, or writes it to a catalog.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from bluesky_ptychonn.files import lock_descriptor

SUFFIX = ".jsonl"
HELD_BYTES = 64 << 20  # documents kept in memory while the disk takes none

_SYNC_S = 1.0


class Syncer:
    """Has the disk keep what was written to a file, at most once a second."""

    def __init__(self, end: int = 0) -> None:
        self.end = end
        self._when = float("-inf")

    def sync(self, fd: int, end: int, *, now: bool = False) -> None:
        """Sync a file that was written up to byte `end`, where it is time; `now`: whatever the time."""
        if end > self.end and (now or time.monotonic() - self._when >= _SYNC_S):
            self._when, self.end = time.monotonic(), end
            with contextlib.suppress(OSError):  # a file system that cannot: then the append alone has to do
                os.fdatasync(fd)


class AppendFile:
    """One run's file, whose every line is whole, also after a disk that was full for a while.

    Opened at the first `append`, or by `claim`. Lines that the disk does not take are held, and go before the next. One
    thread appends; another may read, flush and sync.

    Attributes
    ----------
    descriptor : int or None
        Of the open file, to read from.
    size : int
        Bytes on disk, while the file is open.
    held_bytes : int
        Of the lines that are in memory only.
    locked : bool
        Whether the lock is held; False too where the file system has none.

    Examples
    --------
    >>> import tempfile
    >>> from bluesky_ptychonn.journal.encoding import encode
    >>> file = AppendFile(Path(tempfile.mkdtemp()) / "a-run.jsonl")
    >>> file.append(encode("start", {"uid": "a-run", "time": float("inf")}, 0.0))
    >>> file.path.read_text().strip()
    '{"name":"start","doc":{"uid":"a-run","time":Infinity},"t":0.0}'
    >>> file.remove()
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor: int | None = None
        self.size = 0
        self.held_bytes = 0
        self.locked = False
        self._torn = False
        self._refused = False  # by the disk, and not written since
        self._held: deque[bytes] = deque()
        self._mutex = threading.Lock()
        self._syncer = Syncer()

    @classmethod
    def claim(cls, path: Path) -> AppendFile:
        """Take over a file that another session left; BlockingIOError when a living one has it.

        FileNotFoundError when it is gone.
        """
        file = cls(path)
        file.hold()
        return file

    def hold(self) -> None:
        """Open and lock a file that is there; again is harmless. Raises what `claim` does."""
        with self._mutex:
            self._open(os.O_RDWR)

    def _open(self, flags: int) -> int:
        while self.descriptor is None:
            fd = os.open(self.path, flags | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                self._lock(fd)
                if not self._is_ours(fd):
                    if flags & os.O_CREAT:
                        continue
                    raise FileNotFoundError(f"{self.path}: taken over and done with by another session")
                self.size = os.fstat(fd).st_size
                # Torn when its writer was killed: the next line must not become a part of it.
                self._torn = bool(self.size) and os.pread(fd, 1, self.size - 1) != b"\n"
                self.descriptor, fd = fd, -1
            finally:
                if fd >= 0:
                    os.close(fd)
        return self.descriptor

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

    def append(self, line: bytes, room: Callable[[AppendFile], float] = lambda _: HELD_BYTES) -> None:
        """Append one line from `encode`; while the disk takes none it is held, to be written before the next one.

        Asked only when the disk takes nothing: `room`, how many bytes this file may hold, this line with them.

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
                self._refused = True
                if self.held_bytes <= room(self):
                    raise
                self.held_bytes -= len(self._held.pop())
                raise MemoryError(f"{error}; and too many documents wait already, this one is lost") from error

    def flush(self) -> None:
        """Try again to write what is held; OSError when the disk still takes nothing."""
        if self._held:
            with self._mutex:
                self._write()

    def _write(self) -> None:
        fd = self._open(os.O_RDWR | os.O_CREAT)
        while self._held:
            line = self._held[0]
            rest = b"\n" + line if self._torn else line
            try:
                while rest:
                    rest = rest[os.write(fd, rest) :]
            except OSError:
                self._take_back(fd)
                raise
            self._torn = False
            self.size = os.lseek(fd, 0, os.SEEK_END)
            self.held_bytes -= len(self._held.popleft())
        self._refused = False

    def _take_back(self, fd: int) -> None:
        """Remove half a line: no reader has taken it, and it comes again."""
        try:
            os.ftruncate(fd, self.size)
        except OSError:
            self.size = os.lseek(fd, 0, os.SEEK_END)
            self._torn = True

    @property
    def held(self) -> int:
        """Documents that the disk has refused so far; one that is being written for the first time is none."""
        return len(self._held) if self._refused else 0

    def sync(self) -> None:
        """Have the disk keep what was written, at most once a second."""
        if self.descriptor is not None:
            self._syncer.sync(self.descriptor, self.size)

    def release(self, *, sync: bool = True) -> None:
        """Close the file and leave it for whoever claims it."""
        with self._mutex:
            if self.descriptor is not None:
                if sync:
                    self._syncer.sync(self.descriptor, self.size, now=True)
                os.close(self.descriptor)
                self.descriptor, self.locked = None, False

    def remove(self) -> None:
        """Delete the file: its run is in the catalog. What is deleted need not reach the disk."""
        self.path.unlink(missing_ok=True)
        self.release(sync=False)

    def rename(self, suffix: str) -> Path:
        """Keep the file under a name that nobody looks for."""
        target = self.path.rename(self.path.with_name(self.path.name + suffix))
        self.release()
        return target


def journal_path(folder: Path, run_uid: str) -> Path:
    """File of one run. A uid that is no safe file name is hashed."""
    safe = run_uid if re.fullmatch(r"[\w-]{1,128}", run_uid) else hashlib.sha256(run_uid.encode()).hexdigest()
    return folder / f"{safe}{SUFFIX}"


def run_files(folder: Path) -> list[Path]:
    """Files of runs in a folder, the one that was written to longest ago first."""
    found = []
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(SUFFIX):
                with contextlib.suppress(FileNotFoundError):
                    found.append((entry.stat().st_mtime_ns, entry.name))
    return [folder / name for _, name in sorted(found)]
