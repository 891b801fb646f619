"""Documents of a session, each to the file of its run: all that happens in the RunEngine's thread."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bluesky_ptychonn.journal.append_file import HELD_BYTES, RunFile, run_files
from bluesky_ptychonn.journal.encoding import encode
from bluesky_ptychonn.journal.writer import journal_path

_NAMES = 100  # of one run, under which files may lie that no catalog took yet
_DATA = ("event", "event_page", "datum", "datum_page", "stream_datum")


class RunFolder:
    """Appends whole documents to one file for each run; thread-safe.

    Documents of a run whose start was never seen are left out, and counted in `strays`.

    Parameters
    ----------
    folder : Path
        Made where it is not there.

    Attributes
    ----------
    strays : int
        Documents without a run.
    lost : int
        Documents of data that a full disk would not take for so long that memory would not either.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self.strays = 0
        self.lost = 0
        self._files: weakref.WeakSet[RunFile] = weakref.WeakSet()  # all that somebody still has to do with
        self._open: dict[str, RunFile] = {}
        self._run_of: dict[str, str] = {}  # uid of descriptor, resource or stream_resource -> run
        self._begun: list[tuple[str, RunFile]] = []
        self._mutex = threading.Lock()

    def append(self, name: str, doc: Mapping[str, Any]) -> RunFile | None:
        """Append one document to its run's file; None where there is no such run.

        Raises
        ------
        OSError
            When the disk did not take it; it is held in memory and tried again.
        MemoryError
            When too much is held already: the document is lost, and counted.
        """
        line = encode(name, doc, time.time())
        with self._mutex:
            if name == "start":
                self._begin(str(doc["uid"]))
            run = self._run(name, doc)
            file = self._open.get(run) if run is not None else None
        if file is None:
            self.strays += 1
            return None
        try:
            file.append(line, self._room(file) if name in _DATA else math.inf)
        except MemoryError:
            self.lost += 1
            raise
        finally:
            if name == "stop":  # only now: until then the file is not another's to close
                with self._mutex:
                    self._end(str(doc["run_start"]))
        return file

    def _room(self, file: RunFile) -> int:
        return HELD_BYTES - sum(other.held_bytes for other in self._living() if other is not file)

    def _run(self, name: str, doc: Mapping[str, Any]) -> str | None:
        if name == "start":
            return str(doc["uid"])
        if name in ("event", "event_page"):
            return self._run_of.get(doc["descriptor"])
        if name in ("datum", "datum_page"):
            return self._run_of.get(doc["resource"])
        if name == "stream_datum":
            return self._run_of.get(doc["descriptor"]) or self._run_of.get(doc["stream_resource"])
        run: str | None = doc.get("run_start")
        if run is None and name in ("resource", "stream_resource"):
            # Resources were not always stamped with their run: the last one begun is the one, or nearly always.
            run = next(reversed(self._open), None)
        if run is not None and run in self._open and name != "stop":
            self._run_of[doc["uid"]] = run
        return run

    def _begin(self, run: str) -> None:
        if run in self._open:
            return
        path = journal_path(self.folder, run)
        for number in range(2, _NAMES):
            if not path.exists():
                break
            path = path.with_name(f"{journal_path(self.folder, run).stem}.{number}{path.suffix}")
        file = self._open[run] = RunFile(path)
        self._files.add(file)
        self._begun.append((run, file))

    def _end(self, run: str) -> None:
        if self._open.pop(run, None) is not None:
            self._run_of = {uid: owner for uid, owner in self._run_of.items() if owner != run}

    def begun(self) -> list[tuple[str, RunFile]]:
        """Take the runs begun since the last call, with their files."""
        with self._mutex:
            begun, self._begun = self._begun, []
        return begun

    def is_open(self, file: RunFile) -> bool:
        """Whether more documents may come for a file."""
        with self._mutex:
            return any(one is file for one in self._open.values())

    def _living(self) -> list[RunFile]:
        with self._mutex:  # a run that begins meanwhile would break the walk through the set
            return list(self._files)

    @property
    def held(self) -> int:
        """Documents that are in memory only."""
        return sum(file.held for file in self._living())

    @property
    def waiting(self) -> list[str]:
        """Runs that have a file here, or will have one, the oldest first: uids, as a rule."""
        with self._mutex:
            runs = {file.path: run for run, file in self._open.items()}
        on_disk = run_files(self.folder)
        in_memory = [file.path for file in self._living() if file.held and file.path not in runs]
        return [runs.get(path, path.stem) for path in dict.fromkeys([*on_disk, *in_memory, *runs])]
