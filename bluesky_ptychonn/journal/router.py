"""Documents of a session, each to the file of its run: all that happens in the RunEngine's thread."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bluesky_ptychonn.journal.append_file import HELD_BYTES, AppendFile, journal_path, run_files
from bluesky_ptychonn.journal.encoding import encode, slim

_NAMES = 100  # of one run, under which files may lie that no catalog took yet
_DATA = ("event", "event_page", "datum", "datum_page", "stream_datum")
_UNOWNED = ("resource", "stream_resource")


class Journal:
    """Appends documents to one file for each run; thread-safe.

    Interleaved runs are told apart by the uids in the documents. A resource was not always stamped with its run: such
    a one goes to every open run, and with it what refers to it. Documents of a run whose start was never seen are left
    out, and counted in `strays`.

    Parameters
    ----------
    folder : Path
        Made, readable by its owner only, where it is not there.
    slimmed : bool
        Write of each document what `slim` keeps, into a folder of this session's own: a run that begins again goes on
        in its file. Otherwise documents are whole, and a file that lies there is left to whoever takes it in.

    Attributes
    ----------
    begun : list of str
        Uids of all runs, in order.
    strays : int
        Documents without a run.
    lost : int
        Documents of data that a full disk would not take for so long that memory would not either.

    Examples
    --------
    >>> import tempfile
    >>> journal = Journal(Path(tempfile.mkdtemp()))
    >>> journal.append("start", {"uid": "a-run", "time": 0.0})
    True
    >>> journal.append("stop", {"uid": "s", "run_start": "a-run", "time": 1.0, "exit_status": "success"})
    True
    >>> len(journal_path(journal.folder, "a-run").read_bytes().splitlines()), journal.open_runs
    (2, ())
    """

    def __init__(self, folder: Path, *, slimmed: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self.begun: list[str] = []
        self.strays = 0
        self.lost = 0
        self._slimmed = slimmed
        self._open: dict[str, AppendFile | None] = {}  # None: another journal writes it
        self._runs_of: dict[str, tuple[str, ...]] = {}  # by uid of descriptor, resource or stream_resource
        self._writers: set[Journal] = set()
        self._untaken: dict[AppendFile, str] = {}  # that nobody else looks after
        self._late: set[AppendFile] = set()  # of runs that ended while the disk took nothing
        self._mutex = threading.Lock()

    def append(self, name: str, doc: Mapping[str, Any]) -> bool:
        """Append one document to the file of its run, or of each run that it may belong to; whether there is one.

        Raises
        ------
        OSError
            When the disk did not take it; it is held in memory and tried again with the next, or by `flush`.
        MemoryError
            When too much is held already: the document is lost, and counted.
        """
        begins = name == "start" and str(doc["uid"]) not in self._open
        line = self._line(name, doc) if begins else None  # or there is no run: none begins without this line
        with self._mutex:
            if begins:
                self._begin(str(doc["uid"]))
            runs = self._runs(name, doc)
            files = [file for run in runs if (file := self._open[run]) is not None]
        try:
            if files and (line := line or self._line(name, doc)) is not None:
                # Data are nothing without the documents of other kinds, which are kept whatever memory that takes.
                self._write(line, files, unlimited=name not in _DATA)
        finally:
            if name == "stop":  # only now: until then the file is not another's to close
                for run in runs:
                    self._end(run)
        self.strays += not runs
        return bool(runs)

    def _line(self, name: str, doc: Mapping[str, Any]) -> bytes | None:
        kept = slim(name, doc) if self._slimmed else doc
        return None if kept is None else encode(name, kept, time.time())

    def _write(self, line: bytes, files: list[AppendFile], *, unlimited: bool) -> None:
        failure: OSError | MemoryError | None = None
        for file in files:
            try:
                file.append(line, (lambda _: math.inf) if unlimited else self._room)
            except (OSError, MemoryError) as error:
                failure = error
                self.lost += isinstance(error, MemoryError)
        if failure is not None:
            raise failure

    def _room(self, file: AppendFile) -> float:
        return HELD_BYTES - sum(other.held_bytes for other in self._holding() if other is not file)

    def _runs(self, name: str, doc: Mapping[str, Any]) -> tuple[str, ...]:
        if name == "start":
            return (str(doc["uid"]),)
        if name in ("event", "event_page"):
            return self._runs_of.get(doc["descriptor"], ())
        if name in ("datum", "datum_page"):
            return self._runs_of.get(doc["resource"], ())
        if name == "stream_datum":
            return self._runs_of.get(doc["descriptor"]) or self._runs_of.get(doc["stream_resource"], ())
        run = doc.get("run_start")
        runs: tuple[str, ...] = (run,) if run in self._open else ()
        if run is None and name in _UNOWNED:
            runs = tuple(self._open)
        if runs and name != "stop":
            self._runs_of[doc["uid"]] = runs
        return runs

    def _begin(self, run: str) -> None:
        file = self._open[run] = AppendFile(self._free_path(run))
        self._untaken[file] = run
        self.begun.append(run)

    def _free_path(self, run: str) -> Path:
        path = first = journal_path(self.folder, run)
        for number in range(2, _NAMES):
            if self._slimmed or not path.exists():
                break
            path = first.with_stem(f"{first.stem}.{number}")
        return path

    def _end(self, run: str) -> None:
        with self._mutex:
            file = self._open.pop(run, None)
            if file is not None and file.held:
                self._late.add(file)
            left = {uid: tuple(owner for owner in runs if owner != run) for uid, runs in self._runs_of.items()}
            self._runs_of = {uid: runs for uid, runs in left.items() if runs}

    def follow(self, run: str, other: Journal) -> bool:
        """Let `other`, which has just begun a run, write it for this journal too: one file with a name in both folders.

        False where there can be no such file: the run is not open there, or its folder lies on another disk.
        """
        with other._mutex:
            file = other._open.get(run)
        if file is None:
            return False
        with self._mutex:
            if run not in self._open:
                try:
                    os.link(file.path, journal_path(self.folder, run))
                except FileExistsError:
                    pass  # the same run once more: its reader has it already
                except OSError:
                    return False
                self._open[run] = None
                self._writers.add(other)
                self.begun.append(run)
        return True

    # -- for whoever looks after the files

    def take_over(self) -> list[tuple[str, AppendFile]]:
        """Take the runs begun since the last call, with their files, which are the caller's to release then."""
        with self._mutex:
            taken, self._untaken = self._untaken, {}
        return [(run, file) for file, run in taken.items()]

    def flush(self) -> bool:
        """Try again to write what the disk did not take; whether nothing is held any more."""
        for file in self._holding():
            try:
                file.flush()
            except OSError:
                return False
        return True

    def release(self, *, sync: bool = True) -> None:
        """Close the files of runs that ended, those that nobody took over."""
        with self._mutex:
            ended = [file for file in self._untaken if not file.held and file not in self._open.values()]
            for file in ended:
                del self._untaken[file]
        for file in ended:
            file.release(sync=sync)

    def close(self) -> None:
        """Close every file that nobody took over; runs without a stop document stay unfinished in theirs."""
        self.flush()
        for run in self.open_runs:
            self._end(run)
        for _, file in self.take_over():
            file.release(sync=False)

    def is_open(self, file: AppendFile) -> bool:
        """Whether more documents may come for a file."""
        with self._mutex:
            return file in self._open.values()

    @property
    def open_runs(self) -> tuple[str, ...]:
        """Uids of the runs begun and not stopped."""
        with self._mutex:
            return tuple(self._open)

    def _holding(self) -> list[AppendFile]:
        with self._mutex:
            self._late = {file for file in self._late if file.held}
            files = (*self._open.values(), *self._late)
        return [file for file in files if file is not None and file.held]

    @property
    def held(self) -> int:
        """Documents that are in memory only, also of journals that write for this one."""
        return sum(file.held for file in self._holding()) + sum(other.held for other in self._writers)

    @property
    def waiting(self) -> list[str]:
        """Runs that have a file here, or will have one, the oldest first: uids, as a rule."""
        with self._mutex:
            runs = {file.path: run for run, file in self._open.items() if file is not None}
        in_memory = [file.path for file in self._holding()]
        return [runs.get(path, path.stem) for path in dict.fromkeys([*run_files(self.folder), *in_memory, *runs])]
