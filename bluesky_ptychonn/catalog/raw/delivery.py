"""The thread that takes a folder's raw runs into the catalog, and goes on whatever that does."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bluesky_ptychonn.backoff import Backoff
from bluesky_ptychonn.catalog.connection.errors import CatalogUnavailableError
from bluesky_ptychonn.catalog.raw.connection import RawCatalog
from bluesky_ptychonn.catalog.raw.upload import CHUNK, NotARunError, RunUpload, describe
from bluesky_ptychonn.journal.append_file import AppendFile, run_files
from bluesky_ptychonn.journal.router import Journal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = logging.getLogger(__name__)

RECOVERED = ".recovered"
_IDLE_S = 1.0  # between looks at the folder when nothing happens
_AWAY_S = (0.5, 5.0)  # first and longest wait before asking a catalog that is away again
_REFUSED_S = (1.0, 600.0)  # the same for one run that the catalog refuses
_SILENT_S = 6.0  # without an answer: whoever closes waits no longer
_BESIDE_BYTES = 256 << 10  # bytes of an old run taken in at a time while another one is being measured


class Delivery:
    """Takes runs in, those of this session as they grow, older ones beside them.

    Attributes
    ----------
    invalid_catalog : Exception or None
        Why the catalog's name is none, where that turned out at the first attempt.
    """

    def __init__(self, journal: Journal, catalog: RawCatalog, problems: ProblemLog) -> None:
        self.invalid_catalog: Exception | None = None
        self._journal = journal
        self._catalog = catalog
        self._problems = problems
        self._jobs: dict[Path, _Job] = {}
        self._outage = Backoff(*_AWAY_S)
        self._claimed_at = -_IDLE_S
        self._woken, self._asked_once, self._closing = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="raw-writer", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread works on."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """Tell the thread that something was appended."""
        self._woken.set()

    def wait_until_asked(self, timeout: float) -> None:
        """Wait until the catalog was asked once, at most `timeout` s."""
        self._asked_once.wait(timeout)

    def close(self, timeout: float) -> None:
        """Take in what the catalog takes, at most `timeout` s, and end the thread; soon where there is no answer."""
        self._closing.set()
        self._woken.set()
        end = time.monotonic() + timeout
        while self._thread.is_alive() and time.monotonic() < end and self._catalog.silent_s < _SILENT_S:
            self._thread.join(0.1)

    # -- in the thread

    def _work(self) -> None:
        while True:
            closing = self._closing.is_set()  # before the turn: what was appended meanwhile has another one
            try:
                busy = self._turn()
            except Exception as error:
                self._problems.report("writer", f"{type(error).__name__}: {error}")
                log.debug("raw writer", exc_info=True)  # and goes on: this thread must outlive anything
                busy = False
            else:
                self._problems.resolve("writer")
            self._asked_once.set()
            if busy:
                continue
            if closing:
                break
            self._woken.wait(_IDLE_S if self._outage.due else self._outage.first_s)
            self._woken.clear()
        self._take_begun()
        for job in self._jobs.values():
            self._release_idle(job)  # a run that goes on keeps its lock: no other session is to end it
        self._catalog.close()

    def _turn(self) -> bool:
        """Do a little of all there is to do; whether there may be more right now."""
        self._take_begun()
        self._flush_and_sync()
        if not self._is_reachable():
            return False
        own = [job for job in self._jobs.values() if not job.old and job.refusals.due]
        busy = False
        for job in own:
            busy |= self._advance(job)
            if self._outage.failures:
                return False
        return self._advance_old(beside=any(self._journal.is_open(job.file) for job in own)) or busy

    def _take_begun(self) -> None:
        for uid, file in self._journal.take_over():
            self._jobs[file.path] = _Job(file, uid)

    def _flush_and_sync(self) -> None:
        try:
            for job in list(self._jobs.values()):
                job.file.flush()
                job.file.sync()
        except OSError as error:
            self._problems.report("disk", f"{self._journal.folder}: {error}; documents wait in memory")
        else:
            self._problems.resolve("disk", unless=lambda: self._journal.held > 0)

    def _is_reachable(self) -> bool:
        """Whether the catalog answers, as far as is known; asks one that was away now and then."""
        if not self._outage.failures and self._asked_once.is_set():
            return True
        if not self._outage.due and not self._closing.is_set():
            return False
        there, why = False, "it does not answer"
        try:
            there = self._catalog.answers()
        except ValueError as error:
            if not self._asked_once.is_set():
                self.invalid_catalog = error
                self._closing.set()
            why = f"{type(error).__name__}: {error}"
        if there:
            self._outage.succeed()
            self._problems.resolve("catalog")
        else:
            self._record_outage(why)
        return there

    def _record_outage(self, why: str) -> None:
        self._catalog.forget()
        self._outage.fail()
        self._problems.report("catalog", f"the catalog is away ({why}); raw runs wait in {self._journal.folder}")
        for job in list(self._jobs.values()):
            job.upload = None
            if self._release_idle(job):
                del self._jobs[job.file.path]

    def _release_idle(self, job: _Job) -> bool:
        """Close a file that nothing will be added to: there may be many."""
        if job.file.held or self._journal.is_open(job.file):
            return False
        job.file.release()
        return True

    def _advance_old(self, *, beside: bool) -> bool:
        """Take in a piece of the oldest run that waits; whether there was one."""
        job = next((job for job in self._jobs.values() if job.old and job.refusals.due), None)
        if job is None and (self._closing.is_set() or time.monotonic() - self._claimed_at >= _IDLE_S):
            self._claimed_at = time.monotonic()
            job = self._claim()
        return job is not None and self._advance(job, _BESIDE_BYTES if beside else CHUNK)

    def _claim(self) -> _Job | None:
        for path in run_files(self._journal.folder):
            if path in self._jobs:
                continue
            try:
                file = AppendFile.claim(path)
                if not file.size:  # its writer was killed before the first document
                    file.remove()
                    continue
            except (BlockingIOError, FileNotFoundError):
                continue
            except OSError as error:  # this one only: the others are not to wait for it
                self._problems.report(path.stem, describe(path, error))
                continue
            self._problems.resolve(path.stem)
            job = self._jobs[path] = _Job(file, path.stem, old=True)
            return job
        return None

    def _advance(self, job: _Job, max_bytes: int = CHUNK) -> bool:
        """Take in a piece of a run; whether there may be more of it."""
        try:
            if not self._journal.is_open(job.file) and not job.file.held:
                job.file.hold()
        except (BlockingIOError, FileNotFoundError):  # another session took it over
            del self._jobs[job.file.path]
            return False
        try:
            busy = job.step(self._catalog.runs, max_bytes)
            if job.done:
                job.finish()
        except Exception as error:  # noqa: BLE001  # reported, and tried again
            self._failed(job, error)
            return False
        if job.done:
            del self._jobs[job.file.path]
        if job.done or not busy:
            self._problems.resolve(job.uid)
        return busy

    def _failed(self, job: _Job, error: Exception) -> None:
        log.debug("run %s", job.uid, exc_info=error)
        job.upload = None
        silent = isinstance(error, CatalogUnavailableError) and error.status is None
        if silent or not (isinstance(error, NotARunError) or self._catalog.answers()):
            self._record_outage(f"{type(error).__name__}: {error}")
            return
        job.refusals.fail()
        self._release_idle(job)
        self._problems.report(job.uid, describe(job.file.path, error))


@dataclass(eq=False)
class _Job:
    """One file on its way, with when to try again."""

    file: AppendFile
    uid: str
    old: bool = False
    upload: RunUpload | None = None
    tried: bool = False
    refusals: Backoff = field(default_factory=lambda: Backoff(*_REFUSED_S))

    @property
    def done(self) -> bool:
        return self.upload is not None and bool(self.upload.outcome)

    def step(self, runs: Any, max_bytes: int) -> bool:
        if self.upload is None:
            fresh = not self.old and not self.tried
            # Every other time arrays go as lists, which TiledWriter takes in some cases where it refuses arrays.
            self.upload = RunUpload(self.file, fresh=fresh, growing=not self.old, plain=self.refusals.failures % 2 == 1)
            self.tried = True
        return self.upload.step(runs, max_bytes)

    def finish(self) -> None:
        """Delete the file, or keep it where a line of it could not be read."""
        if self.upload is not None and self.upload.corrupt:
            self.file.rename(RECOVERED)
        else:
            self.file.remove()


class ProblemLog:
    """Problems of now, from several threads: each is logged once when it comes and once when it is over."""

    def __init__(self) -> None:
        self._now: dict[str, str] = {}
        self._mutex = threading.Lock()

    @property
    def message(self) -> str:
        """All of them."""
        with self._mutex:
            return "; ".join(self._now.values())

    def report(self, kind: str, message: str) -> None:
        """Say that something is wrong."""
        with self._mutex:
            new = kind not in self._now
            self._now[kind] = message
        if new:
            log.warning("raw runs: %s", message)

    def resolve(self, kind: str, unless: Callable[[], bool] = lambda: False) -> None:
        """Say that it is so no more, `unless` it is again: asked where nobody else can say something meanwhile."""
        with self._mutex:
            message = None if kind not in self._now or unless() else self._now.pop(kind)
        if message is not None:
            log.info("raw runs: over: %s", message)
