"""The durable journal that the callback appends to and the worker follows.

One session is one folder; one run is one file of JSON lines in it, ``{"name": …, "doc": …, "t": seconds}``. An append
is one `write` on an ``O_APPEND`` descriptor: it survives ``kill -9`` of the writer. Only a power cut needs
`fdatasync`, which costs two hundred times more, so the reader does that, once a second.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

SUFFIX = ".jsonl"
# What a descriptor says of the data; its configuration (hundreds of areaDetector settings) is in Tiled already.
_DESCRIPTOR_KEYS = ("uid", "run_start", "name", "time", "data_keys", "hints")
_EVENT_KEYS = ("uid", "descriptor", "seq_num", "time", "filled")
_ROOM_BYTES = 64 << 20  # for documents that wait for a full disk
_SCALARS = (int, float, str, bool, type(None))
_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


@dataclass(frozen=True, slots=True)
class Entry:
    """One journaled document.

    Parameters
    ----------
    name : str
        Kind of document: ``start``, ``event``, …
    doc : dict
        The document, arrays left out (see `slim`).
    time : float
        When it was journaled, seconds since the epoch.
    """

    name: str
    doc: dict[str, Any]
    time: float


def _is_scalar(value: Any) -> bool:
    return isinstance(value, _SCALARS) or getattr(value, "ndim", 1) == 0


def _slim_event(doc: Mapping[str, Any]) -> dict[str, Any]:
    slimmed = {key: doc[key] for key in _EVENT_KEYS if key in doc}
    data = doc["data"]
    slimmed["data"] = kept = {key: value for key, value in data.items() if _is_scalar(value)}
    slimmed["timestamps"] = doc.get("timestamps", {})
    if len(kept) < len(data):
        slimmed["arrays"] = [key for key in data if key not in kept]
    return slimmed


def _slim_page(doc: Mapping[str, Any]) -> dict[str, Any]:
    slimmed = {key: doc[key] for key in _EVENT_KEYS if key in doc}
    data = doc["data"]
    slimmed["data"] = kept = {key: column for key, column in data.items() if len(column) == 0 or _is_scalar(column[0])}
    slimmed["timestamps"] = doc.get("timestamps", {})
    if len(kept) < len(data):
        slimmed["arrays"] = [key for key in data if key not in kept]
    return slimmed


def slim(name: str, doc: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Keep of a document what pairing frames with positions needs.

    In-event arrays are replaced by their names under ``arrays``: Tiled has the data, the journal stays small.

    Parameters
    ----------
    name : str
        Kind of document.
    doc : mapping
        The document; not changed.

    Returns
    -------
    mapping or None
        None for a kind of document that has no part in a reconstruction.

    Examples
    --------
    >>> event = {"descriptor": "d", "seq_num": 1, "time": 0.0, "data": {"x": 1.5, "image": [[1, 2]]}, "timestamps": {}}
    >>> slim("event", event)["data"], slim("event", event)["arrays"]
    ({'x': 1.5}, ['image'])
    """
    if name == "event":
        return _slim_event(doc)
    if name == "event_page":
        return _slim_page(doc)
    if name == "descriptor":
        return {key: doc[key] for key in _DESCRIPTOR_KEYS if key in doc}
    if name in ("start", "stop", "resource", "datum", "datum_page", "stream_resource", "stream_datum"):
        return doc
    return None


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _clean(value: Any) -> Any:
    """Make of any value what JSON can say."""
    if isinstance(value, Mapping):
        return {str(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item) for item in value]
    if hasattr(value, "tolist"):
        return _clean(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return float(value)
    return value if isinstance(value, _SCALARS) else str(value)


def encode(name: str, doc: Mapping[str, Any], when: float) -> bytes:
    """One journal line. NaN and infinity become null, numpy values plain ones, anything else its `str`."""
    entry = {"name": name, "doc": doc, "t": when}
    try:
        return orjson.dumps(entry, default=_plain, option=_OPTIONS)
    except TypeError:  # an integer beyond 64 bit, say: rare, and slower
        return orjson.dumps(_clean(entry), option=orjson.OPT_APPEND_NEWLINE)


def journal_path(folder: Path, run_uid: str) -> Path:
    """File of one run. A uid that is no safe file name is hashed."""
    safe = run_uid if re.fullmatch(r"[\w-]{1,128}", run_uid) else hashlib.sha256(run_uid.encode()).hexdigest()
    return folder / f"{safe}{SUFFIX}"


class _Lines:
    """An append-only file whose every line is whole, also after a disk that was full for a while.

    Lines that the disk does not take wait here, and go before the next.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self._torn = False
        self.waiting: deque[bytes] = deque()
        self.waiting_bytes = 0

    def append(self, line: bytes, room: int) -> None:
        """Append a line; OSError when it has to wait, MemoryError when there is no `room` for that and it is lost."""
        try:
            if self.waiting:
                self.flush()
            self._write(line)
        except OSError as error:
            if len(line) > room:
                raise MemoryError(f"{error}; and too many documents wait already, this one is lost") from error
            self.waiting.append(line)
            self.waiting_bytes += len(line)
            raise

    def flush(self) -> None:
        """Append what waits; OSError when it has to wait on."""
        while self.waiting:
            self._write(self.waiting[0])
            self.waiting_bytes -= len(self.waiting.popleft())

    def _write(self, line: bytes) -> None:
        if self._fd is None:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if self._torn:
            line = b"\n" + line
        written = 0
        try:
            while written < len(line):
                written += os.write(self._fd, line[written:])
        except OSError:
            if written:  # take half a line back: readers have not seen it, and it comes again
                try:
                    os.ftruncate(self._fd, os.lseek(self._fd, 0, os.SEEK_END) - written)
                except OSError:
                    self._torn = True
            raise
        self._torn = False

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class JournalWriter:
    """Appends documents to the file of their run; called in the RunEngine's thread.

    Interleaved runs are told apart by the uids in the documents. Documents of a run whose start was never seen are
    left out, and counted in `strays`.

    Parameters
    ----------
    folder : Path
        The session's folder; made, readable by its owner only.

    Attributes
    ----------
    begun : list of str
        Uids of all runs, in order.
    strays : int
        Documents of runs whose start was never seen.
    lost : int
        Documents that a full disk would not take for so long that memory would not either.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> journal = JournalWriter(folder)
    >>> journal.append("start", {"uid": "a-run", "time": 0.0})
    >>> journal.append("stop", {"uid": "s", "run_start": "a-run", "time": 1.0, "exit_status": "success"})
    >>> print(len(journal_path(folder, "a-run").read_bytes().splitlines()), journal.open_runs)
    2 ()
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self.strays = 0
        self.lost = 0
        self.begun: list[str] = []
        self._files: dict[str, _Lines] = {}
        self._late: list[_Lines] = []  # of runs that stopped while the disk was full
        self._mutex = threading.Lock()  # `retry` comes from another thread
        self._run_of: dict[str, str] = {}  # uid of descriptor, resource or stream_resource -> run
        self._uids: dict[str, list[str]] = {}  # run -> those uids, to forget them at its stop

    @property
    def open_runs(self) -> tuple[str, ...]:
        """Uids of the runs begun and not stopped."""
        return tuple(self._files)

    def append(self, name: str, doc: Mapping[str, Any]) -> None:
        """Append one document; a kind of document without a part in a reconstruction is passed over.

        Raises
        ------
        OSError
            When the file cannot be opened or written: the document waits in memory, and goes before the next one, or
            with `retry`.
        MemoryError
            When too many wait: the document is lost, and counted.
        """
        slimmed = slim(name, doc)
        if slimmed is None:
            return
        line = encode(name, slimmed, time.time())
        with self._mutex:
            if name == "start":
                self._begin(doc["uid"])
            for run in self._runs(name, doc):
                try:
                    self._files[run].append(line, self._room())
                except MemoryError:
                    self.lost += 1
                    raise
                finally:
                    if name == "stop":
                        self._end(run)

    @property
    def waiting(self) -> int:
        """Documents that the disk has not taken yet."""
        return sum(len(lines.waiting) for lines in (*self._files.values(), *self._late))

    def _room(self) -> int:
        return _ROOM_BYTES - sum(lines.waiting_bytes for lines in (*self._files.values(), *self._late))

    def retry(self) -> bool:
        """Try to write what the disk did not take; whether nothing waits any more. For another thread, now and then."""
        with self._mutex, contextlib.suppress(OSError):
            for lines in self._files.values():
                lines.flush()
            while self._late:
                self._late[0].flush()
                self._late.pop(0).close()
        return not self.waiting

    def _runs(self, name: str, doc: Mapping[str, Any]) -> tuple[str, ...]:
        if name == "start":
            run: str | None = doc["uid"]
        elif name in ("event", "event_page"):
            run = self._run_of.get(doc["descriptor"])
        elif name in ("datum", "datum_page"):
            run = self._run_of.get(doc["resource"])
        elif name == "stream_datum":
            run = self._run_of.get(doc["descriptor"]) or self._run_of.get(doc["stream_resource"])
        else:
            run = doc.get("run_start")
            if run is None and name in ("resource", "stream_resource"):
                # Resources were not always stamped with their run: every open run may be the one.
                for open_run in self._files:
                    self._know(doc["uid"], open_run)
                return tuple(self._files)
            if run in self._files and name != "stop":
                self._know(doc["uid"], run)
        if run not in self._files:
            self.strays += 1
            return ()
        return (run,)

    def _know(self, uid: str, run: str) -> None:
        self._run_of[uid] = run
        self._uids[run].append(uid)

    def _begin(self, run: str) -> None:
        if run in self._files:
            return
        self.begun.append(run)
        self._files[run] = _Lines(journal_path(self.folder, run))
        self._uids[run] = []

    def _end(self, run: str) -> None:
        lines = self._files.pop(run)
        if lines.waiting:
            self._late.append(lines)
        else:
            lines.close()
        for uid in self._uids.pop(run, ()):
            self._run_of.pop(uid, None)

    def close(self) -> None:
        """Close every file; runs without a stop document stay unfinished in the journal."""
        self.retry()
        with self._mutex:
            for run in tuple(self._files):
                self._end(run)
            for lines in self._late:
                lines.close()
