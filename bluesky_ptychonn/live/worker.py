"""Follows the journals of a session and reconstructs its runs; in a process of its own, or a thread.

``python -m bluesky_ptychonn.live.worker FOLDER`` takes up the session in FOLDER, whoever left it where it is:
finished runs are marked beside their journal, all others begin anew, and results are written by sequence number, so
nothing is there twice.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bluesky_ptychonn.backoff import Backoff
from bluesky_ptychonn.catalog.connection.errors import is_outage
from bluesky_ptychonn.catalog.connection.requests import require_answer
from bluesky_ptychonn.files import lock
from bluesky_ptychonn.journal.append_file import run_files
from bluesky_ptychonn.journal.reader import JournalReader
from bluesky_ptychonn.live.pipeline.problems import Problem, ProblemKind
from bluesky_ptychonn.live.pipeline.progress import Progress
from bluesky_ptychonn.live.pipeline.protocols import ComponentFactory
from bluesky_ptychonn.live.pipeline.run import RunReconstruction
from bluesky_ptychonn.live.pipeline.settings import ReconstructionSettings
from bluesky_ptychonn.live.request_pacing import before_request
from bluesky_ptychonn.live.session import (
    WORKER_LOCK,
    WorkerStatus,
    finished_progress,
    log_to,
    mark_finished,
    tidy,
)

log = logging.getLogger(__name__)

#: Exit code of a worker that cannot do what it was asked: a device this machine lacks, weights that were changed.
MISCONFIGURED = 3
_POLL_S, _IDLE_S = 0.005, 0.1
_STATUS_S = 0.2
_RUNS_KEPT = 100  # finished runs in the status
_JOURNALS_KEPT = 20  # of finished runs
_AWAY_S = 2.0  # between attempts to reach a catalog
_DISK_S = 1.0  # between attempts to write what a full disk did not take
_SILENCE_S = 2.0


@dataclass
class _Followed:
    reader: JournalReader
    read_at: float
    run: RunReconstruction | None = None
    corrupt: int = 0


class Worker:
    """Follows all journals of a session, in turns.

    Parameters
    ----------
    folder : Path
        The session's folder.
    settings : ReconstructionSettings
    make_factory : callable
        Called in `run`, because it loads the network.
    silence_s : float
        How long the journal of a run without stop document must be silent before its RunEngine counts as gone, s.

    Attributes
    ----------
    status : WorkerStatus
    misconfigured : bool
        Whether it cannot do what it was asked: to begin again would end the same.
    """

    def __init__(
        self,
        folder: Path,
        settings: ReconstructionSettings,
        make_factory: Callable[[], ComponentFactory],
        *,
        silence_s: float = _SILENCE_S,
    ) -> None:
        self.status = WorkerStatus(pid=os.getpid())
        self.misconfigured = False
        self._silence_s = silence_s
        self._folder = folder
        self._settings = settings
        self._make_factory = make_factory
        self._factory: ComponentFactory | None = None
        self._followed: dict[Path, _Followed] = {}
        self._finished: set[Path] = set()
        self._earlier: dict[str, Progress] = {}  # as an earlier worker left them
        self._unmarked: dict[Path, Progress] = {}  # finished, and the disk would not take the mark
        self._marking = Backoff(_DISK_S, _DISK_S)
        self._status_at = 0.0
        self._status_lost = False

    def run(self, closing: threading.Event) -> None:
        """Work until `closing` is set and what was journaled by then is done."""
        owned = lock(self._folder / WORKER_LOCK)
        if owned is None:
            raise RuntimeError(f"{self._folder}: another worker has this session")
        try:
            self._earlier = WorkerStatus.load(self._folder).runs
            self.status.runs = dict(self._earlier)  # known also to whoever comes after a worker that dies at once
            self._save_status()
            self._factory = self._open_factory(closing)
            self.status.state = "ready"
            self._update_status(force=True)
            last = False
            while not last:
                last = closing.is_set()  # asked before the turn, which must see all that was journaled until then
                last = not self._turn(last) and last
            self.status.state = "stopped"
        except BaseException as error:
            self.status.state = "failed"
            self.status.problem, self.status.problem_kind = f"{type(error).__name__}: {error}", ProblemKind.WORKER
            log.exception("worker ends")
            raise
        finally:
            self._mark_finished(now=True)
            self._save_status()
            for followed in self._followed.values():
                followed.reader.close()
            os.close(owned)

    def _open_factory(self, closing: threading.Event) -> ComponentFactory:
        """Load the network and reach the catalog; wait for one that does not answer while the session is open."""
        backoff = Backoff(_AWAY_S / 4, _AWAY_S)
        while True:
            try:
                return self._make_factory()
            except Exception as error:
                if not is_outage(error) or closing.is_set():
                    self.misconfigured = isinstance(error, ValueError)
                    raise
                message = f"catalog {self._settings.catalog} does not answer: {error}"
                self.status.problem, self.status.problem_kind = message, ProblemKind.CATALOG
                self._save_status()
                log.info("%s; trying again", message)
                closing.wait(backoff.fail())

    def _turn(self, closing: bool) -> bool:
        """Read what is new and let each run that is due take a step; returns whether any run is under way."""
        self._discover()
        busy = False
        for followed in list(self._followed.values()):
            busy |= self._read(followed, closing)
            if followed.run is not None and followed.run.due <= time.monotonic():
                followed.run.step()
                busy = True
            followed.reader.sync()
            if followed.run is not None and followed.run.progress.finished:
                self._finish(followed, followed.run)
        self._mark_finished()
        self._update_status()
        if not busy:
            time.sleep(_POLL_S if self._followed else _IDLE_S)
        return bool(self._followed)

    def _discover(self) -> None:
        for path in run_files(self._folder):
            if path in self._followed or path in self._finished:
                continue
            progress = finished_progress(path)
            if progress is not None:
                self._finished.add(path)
                self.status.runs[progress.uid] = progress
            else:
                self._followed[path] = _Followed(JournalReader(path, slimmed=True), read_at=time.monotonic())

    def _read(self, followed: _Followed, closing: bool) -> bool:
        entries = followed.reader.read()
        now = time.monotonic()
        for entry in entries:
            if followed.run is not None:
                followed.run.feed(entry.name, entry.doc, time.time() - entry.time)
            elif entry.name == "start" and self._factory is not None and isinstance(entry.doc.get("uid"), str):
                self._begin(followed, entry.doc, self._factory)
        if followed.run is not None and followed.reader.corrupt > followed.corrupt:
            unread = followed.reader.corrupt - followed.corrupt
            followed.corrupt += unread
            followed.run.pass_over("journal line", f"{unread} lines of its journal that cannot be read", unread)
        if closing and followed.run is not None:
            followed.run.hurry()
        if entries:
            followed.read_at = now
        elif closing and now - followed.read_at > self._silence_s:
            if followed.run is None:  # not even a whole start document
                problem = "journal without a start document"
                self._drop(followed, Progress(followed.reader.path.stem, state="ignored", problem=problem))
            else:
                followed.run.end("unknown", "the session ended without a stop document")
        return bool(entries)

    def _begin(self, followed: _Followed, start: dict[str, Any], factory: ComponentFactory) -> None:
        uid = start["uid"]
        try:
            followed.run = RunReconstruction(
                start,
                factory,
                geometry=self._settings.geometry,
                keys=self._settings.keys,
                pace=self._settings.pace,
                made_by=self._earlier[uid].model if uid in self._earlier else "",
            )
        except Exception as error:  # one run that cannot even begin must not end the others, worker after worker
            log.exception("run %s cannot begin", uid)
            problem, kind = Problem.from_error(error)
            self.status.runs[uid] = Progress(uid, state="failed", problem=problem, problem_kind=kind)
            self._drop(followed, self.status.runs[uid])
            return
        self.status.runs[uid] = progress = followed.run.progress
        self._update_status(force=True)  # with its model, before any of its frames: who takes it up must know
        log.info("run %s: scan %s begins, %s", progress.uid, progress.scan_id, progress.model or "no model")

    def _finish(self, followed: _Followed, run: RunReconstruction) -> None:
        log.info("%s", run.progress)
        # One that was given up is left to the next worker of this session.
        self._drop(followed, None if run.given_up else run.progress)
        with contextlib.suppress(OSError):  # tried again after the next run
            tidy(self._folder, _JOURNALS_KEPT)
        runs = self.status.runs
        for uid in [uid for uid, progress in runs.items() if progress.finished][:-_RUNS_KEPT]:
            del runs[uid]
        self._update_status(force=True)

    def _drop(self, followed: _Followed, finished: Progress | None) -> None:
        """Follow a journal no longer, and mark its run where it is finished."""
        if finished is not None:
            self._unmarked[followed.reader.path] = finished
            self._mark_finished(now=True)
        followed.reader.close()
        self._followed.pop(followed.reader.path, None)
        self._finished.add(followed.reader.path)

    def _mark_finished(self, *, now: bool = False) -> None:
        """Mark finished runs; those that cannot be are tried again: unmarked they would only be done once more."""
        if not self._unmarked or not (now or self._marking.due):
            return
        for path, progress in list(self._unmarked.items()):
            try:
                mark_finished(path, progress)
            except OSError as error:
                self._marking.fail()
                log.info("%s cannot be marked as finished: %s; trying again", path, error)
            else:
                del self._unmarked[path]

    def _update_status(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._status_at < _STATUS_S:
            return
        self._status_at = now
        status, factory = self.status, self._factory
        runs = [run for run in status.runs.values() if run.problem and run.state != "ignored"]
        problem = Problem(runs[-1].problem, runs[-1].problem_kind) if runs else Problem()
        if factory is not None:
            problem = problem or Problem(factory.problem, ProblemKind.MODEL)
            status.model, status.model_folder = factory.model, factory.model_folder
            status.device = getattr(factory, "device", "")  # it may be lost, and another take its place
        status.problem, status.problem_kind = problem
        self._save_status()

    def _save_status(self) -> None:
        """Write the status; a disk that is full is no reason to die, and the next time comes soon."""
        try:
            self.status.save(self._folder)
            self._status_lost = False
        except OSError as error:  # or the folder is gone, with the user's temporary directory
            if not self._status_lost:
                log.warning("status cannot be written: %s", error)
            self._status_lost = True


def _read_api_key() -> str | None:
    """Read the catalog's key: the first line of our input, which is in no environment and on no command line."""
    line = b""
    if not os.isatty(0):
        with contextlib.suppress(OSError):
            while not line.endswith(b"\n") and (piece := os.read(0, 1)):
                line += piece
    return line.decode().strip() or None


def _close_with_owner(closing: threading.Event) -> None:
    """Take the end of our input as the word that the owner closed us, or is gone."""
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    closing.set()


def give_way(nice: int) -> None:
    """Lower our priority: the scan comes first, on a machine with few cores above all."""
    os.nice(nice)
    if os.getsid(0) == os.getpid():
        # Linux shares processors between sessions first, and within each by priority: a session of our own with low
        # priority inside would get as much as the RunEngine's. Other systems have no such file, and no such groups.
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(nice), encoding="ascii")


def main(arguments: list[str]) -> int:
    """Serve one session until its owner's end of our input closes; returns the exit code."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m bluesky_ptychonn.live.worker SESSION_FOLDER\n")
        return 2
    folder = Path(arguments[0])
    settings = ReconstructionSettings.load(folder)
    give_way(settings.nice)
    log_to(folder)
    api_key = _read_api_key()
    closing = threading.Event()
    threading.Thread(target=_close_with_owner, args=(closing,), daemon=True).start()
    from bluesky_ptychonn.live.pipeline.factory import TiledComponentFactory

    again = False

    def make_factory() -> TiledComponentFactory:
        nonlocal again
        if again:  # before the network is loaded once more
            require_answer(settings.catalog)
        again = True
        return TiledComponentFactory(
            settings, folder.name, api_key=api_key, folder=folder, before_request=before_request(folder)
        )

    worker = Worker(folder, settings, make_factory)
    try:
        worker.run(closing)
    except ValueError:
        if not worker.misconfigured:
            raise
        return MISCONFIGURED  # said in status and log
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
