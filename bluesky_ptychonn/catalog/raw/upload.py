"""One run's file into a catalog, through TiledWriter: while it is being written, or again from its beginning."""

from __future__ import annotations

import logging
import math
import re
import uuid
from pathlib import Path
from typing import Any

from bluesky_ptychonn.catalog.connection.http import TiledNode
from bluesky_ptychonn.catalog.raw.event_count import EventCounter, read_back
from bluesky_ptychonn.catalog.raw.tiled_writer import BatchedTiledWriter
from bluesky_ptychonn.journal.append_file import AppendFile
from bluesky_ptychonn.journal.encoding import Entry, encode, with_lists
from bluesky_ptychonn.journal.reader import JournalReader

log = logging.getLogger(__name__)

CHUNK = 4 << 20  # bytes of documents in one turn: some hundred images of 64 x 64, thousands of events without
_KEY = r"(?!\.{1,2}$)[^/\\?#%\x00-\x1f]+"  # a uid that is one step of a path in the catalog

ENDED = "the session that measured this run ended without a word; this stop document was added when it was recovered"


class NotARunError(ValueError):
    """What is in the file cannot be written as a run: in words."""


class RunUpload:
    """Takes one run's file into the catalog, a piece at each `step`.

    What is in the file goes in at once and in as few requests as it can; what comes after, as it comes. After an
    error begin again with a new upload: what the catalog has by then is replaced.

    Parameters
    ----------
    file : AppendFile
        Held by the caller.
    fresh : bool
        Whether the catalog cannot know the run yet.
    growing : bool
        Whether the run is still being measured, by this very session.
    plain : bool
        Hand arrays over as lists, which Tiled takes in some cases where it refuses arrays.

    Attributes
    ----------
    uid : str
        Of the run, once its start document was read.
    outcome : str
        ``recovered`` or ``already there`` once it is whole in the catalog.
    """

    def __init__(self, file: AppendFile, *, fresh: bool, growing: bool, plain: bool = False) -> None:
        self.file = file
        self.uid = ""
        self.outcome = ""
        self._plain = plain
        self._fresh = fresh
        self._growing = growing
        self._reader = JournalReader(file)
        self._corrupt = 0
        self._counter = EventCounter()
        self._writer: BatchedTiledWriter | None = None

    @property
    def corrupt(self) -> int:
        """Lines of the file that could not be read."""
        return max(self._corrupt, self._reader.corrupt)

    def step(self, runs: Any, max_bytes: int = CHUNK) -> bool:
        """Write what is new in the file, about `max_bytes` of it, into the container of runs; whether there was any.

        Raises
        ------
        NotARunError
            When the file holds no run, or the catalog's own copy must not be touched.
        Exception
            Whatever the catalog's client, or TiledWriter, raises.
        """
        if self._writer is None and self._begin(runs):
            return True
        if self._writer is None or self.outcome:
            return False
        before = self._reader.offset
        entries = self._reader.read(max_bytes)
        if before == self._reader.offset:
            return False
        for entry in entries:
            self._counter.add(entry.name, entry.doc)
            self._writer.put(entry.name, with_lists(entry.doc) if self._plain else entry.doc)
        self._writer.flush()
        if any(entry.name == "stop" for entry in entries):
            if wrong := self._counter.compare(read_back(runs, self.uid)):
                raise RuntimeError(wrong)
            if self.corrupt:
                log.warning("run %s: %d lines of its file could not be read", self.uid, self.corrupt)
            self.outcome = "recovered"
        return True

    def _begin(self, runs: Any) -> bool:
        """Look at file and catalog; whether that was all there is to do."""
        head = next(iter(JournalReader(self.file)), None)
        if head is None and self._growing:
            return False
        if head is None:
            raise NotARunError("not a backup of a run: there is no document in it")
        if head.name != "start" or not head.doc.get("uid"):
            raise NotARunError("not a backup of a run: it does not begin with a start document")
        self.uid = str(head.doc["uid"])
        if not re.fullmatch(_KEY, self.uid):
            raise NotARunError(f"the run's uid {self.uid!r} can be no key of a catalog")
        if not (self._fresh and self._growing) and self._replace(runs, self._survey()):
            self.outcome = "already there"
            return True
        self._writer = BatchedTiledWriter(runs, self.uid)
        return False

    def _survey(self) -> EventCounter:
        """Count the documents; the run of a session that died gets its stop document."""
        self.file.flush()  # the stop document of an earlier try may wait for a disk that was full
        counter = EventCounter()
        last: Entry | None = None
        reader = JournalReader(self.file)
        for last in reader:
            counter.add(last.name, last.doc)
        self._corrupt = reader.corrupt
        if last is not None and last.name != "stop" and not self._growing:
            if math.isnan(last.time) or not self.file.locked:
                raise NotARunError("the run has no stop document; is it still being written?")
            stop = {
                "uid": str(uuid.uuid4()),
                "run_start": self.uid,
                "time": last.time,
                "exit_status": "abort",
                "reason": ENDED,
                "num_events": counter.counts,
            }
            self.file.append(encode("stop", stop, last.time))
        return counter

    def _replace(self, runs: Any, counter: EventCounter) -> bool:
        """Make room for the run; whether the catalog has it whole already."""
        node = TiledNode(runs)
        run = node.attributes(self.uid)
        if run is None:
            return False
        found = read_back(runs, self.uid)
        if run["metadata"].get("stop") and not counter.compare(found):
            return True
        if foreign := counter.foreign(found):
            raise NotARunError(f"the catalog has {foreign} events of this run that the file has not; both are left")
        log.info("run %s: a part of it is in the catalog and is written anew", self.uid)
        node.delete(self.uid)
        return False


def describe(path: Path, error: BaseException) -> str:
    """Say what went wrong with a file."""
    return str(error) if isinstance(error, NotARunError) else f"{path.name}: {type(error).__name__}: {error}"
