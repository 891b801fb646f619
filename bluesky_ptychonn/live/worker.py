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

from bluesky_ptychonn.catalog.connection.errors import is_outage
from bluesky_ptychonn.catalog.connection.requests import require_answer
from bluesky_ptychonn.files import lock
from bluesky_ptychonn.journal.append_file import run_files
from bluesky_ptychonn.journal.reader import JournalReader
from bluesky_ptychonn.live.pipeline.progress import Progress
from bluesky_ptychonn.live.pipeline.protocols import ComponentFactory
from bluesky_ptychonn.live.pipeline.run import RunReconstruction
from bluesky_ptychonn.live.pipeline.settings import ReconstructionSettings
from bluesky_ptychonn.live.request_pacing import before_request
from bluesky_ptychonn.live.session import (
    WORKER_LOCK,
    WorkerStatus,
    done,
    log_to,
    mark_done,
    tidy,
)

log = logging.getLogger(__name__)

#: Exit code of a worker that cannot do what it was asked: a device this machine lacks, weights that were changed.
WRONG = 3
_POLL_S, _IDLE_S = 0.005, 0.1
_STATUS_S = 0.2
_REMEMBERED = 100  # finished runs in the status
_AWAY_S = 2.0  # between attempts to reach a catalog
_KEPT = 20  # journals of finished runs
_SILENCE_S = 2.0
_AGAIN_S = 1.0  # between tries to write what a full disk did not take


@dataclass
class _Followed:
    path: Path
    reader: JournalReader
    run: RunReconstruction | None = None
    heard: float = 0.0
    corrupt: int = 0


class Worker:
    """Follows all journals of a session, in turns.

    Parameters
    ----------
    folder : Path
        The session's folder.
    order : ReconstructionSettings
        What to do.
    make_factory : callable
        Makes the `ComponentFactory`; called once, in `run`, because it loads the network.
    silence_s : float
        How long the journal of a run without stop document must be silent before its RunEngine counts as gone, s.

    Attributes
    ----------
    status : WorkerStatus
        What it says of itself.
    cannot : bool
        Whether it cannot do what it was asked: to begin again would end the same.
    """

    def __init__(
        self,
        folder: Path,
        order: ReconstructionSettings,
        make_factory: Callable[[ReconstructionSettings], ComponentFactory],
        *,
        silence_s: float = _SILENCE_S,
    ) -> None:
        self._silence_s = silence_s
        self.status = WorkerStatus(pid=os.getpid())
        self.cannot = False
        self._folder = folder
        self._order = order
        self._make_factory = make_factory
        self._factory: ComponentFactory | None = None
        self._followed: dict[Path, _Followed] = {}
        self._finished: set[Path] = set()
        self._said = 0.0
        self._before: dict[str, Progress] = {}
        self._unmarked: dict[Path, Progress] = {}  # finished, and the disk would not take the mark
        self._mark_at = 0.0
        self._mute = ""

    def run(self, closing: threading.Event) -> None:
        """Work until `closing` is set and what was journaled by then is done."""
        owned = lock(self._folder / WORKER_LOCK)
        if owned is None:
            raise RuntimeError(f"{self._folder}: another worker has this session")
        try:
            self._before = WorkerStatus.load(self._folder).runs
            self.status.runs = dict(self._before)  # known also to whoever comes after a worker that dies at once
            self._save()
            self._factory = self._open_factory(closing)
            self.status.state = "ready"
            self._say(force=True)
            last = False
            while not last:
                last = closing.is_set()  # asked before the turn, which must see all that was journaled until then
                last = not self._turn(last) and last
            self.status.state = "stopped"
        except BaseException as error:
            self.status.state, self.status.problem = "failed", f"{type(error).__name__}: {error}"
            log.exception("worker ends")
            raise
        finally:
            self._mark(now=True)
            self._save()
            for followed in self._followed.values():
                followed.reader.close()
            os.close(owned)

    def _open_factory(self, closing: threading.Event) -> ComponentFactory:
        """Load the network and reach the catalog; wait for one that does not answer while the session is open."""
        while True:
            try:
                return self._make_factory(self._order)
            except Exception as error:
                if not is_outage(error) or closing.is_set():
                    self.cannot = isinstance(error, ValueError)
                    raise
                self.status.problem = f"catalog {self._order.catalog} does not answer: {error}"
                self._save()
                log.info("%s; trying again", self.status.problem)
                closing.wait(_AWAY_S)

    def _turn(self, closing: bool) -> bool:
        """Read what is new and let each run that is due take a step; returns whether any run is under way."""
        self._discover()
        busy = False
        for path, followed in list(self._followed.items()):
            busy |= self._read(followed, closing)
            if followed.run is not None and followed.run.due <= time.monotonic():
                followed.run.step()
                busy = True
            followed.reader.sync()
            if followed.run is not None and followed.run.progress.finished:
                self._finish(path, followed)
        self._mark()
        self._say(force=False)
        if not busy:
            time.sleep(_POLL_S if self._followed else _IDLE_S)
        return bool(self._followed)

    def _discover(self) -> None:
        for path in run_files(self._folder):
            if path in self._followed or path in self._finished:
                continue
            before = done(path)
            if before is not None:
                self._finished.add(path)
                self.status.runs[before.uid] = before
            else:
                self._followed[path] = _Followed(path, JournalReader(path, slimmed=True), heard=time.monotonic())

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
            followed.heard = now
        elif closing and now - followed.heard > self._silence_s:
            if followed.run is None:  # not even a whole start document
                path = followed.path
                words = "journal without a start document"
                self._unmarked[path] = Progress(path.stem, state="ignored", problem=words)
                self._mark(now=True)
                self._finished.add(path)
                self._followed.pop(path, None)
            else:
                followed.run.end("unknown", "the session ended without a stop document")
        return bool(entries)

    def _begin(self, followed: _Followed, start: dict[str, Any], factory: ComponentFactory) -> None:
        before = self._before.get(start["uid"])
        try:
            followed.run = RunReconstruction(
                start,
                factory,
                geometry=self._order.geometry,
                keys=self._order.keys,
                pace=self._order.pace,
                made_by="" if before is None else before.model,
            )
        except Exception as error:  # one run that cannot even begin must not end the others, worker after worker
            log.exception("run %s cannot begin", start["uid"])
            words = f"{type(error).__name__}: {error}"
            self._unmarked[followed.path] = self.status.runs[start["uid"]] = Progress(
                start["uid"], state="failed", problem=words
            )
            self._mark(now=True)
            self._finished.add(followed.path)
            self._followed.pop(followed.path, None)
            return
        self.status.runs[start["uid"]] = progress = followed.run.progress
        self._say(force=True)  # with its model, before any of its frames: who takes it up must know
        log.info("run %s: scan %s begins, %s", progress.uid, progress.scan_id, progress.model or "no model")

    def _finish(self, path: Path, followed: _Followed) -> None:
        if followed.run is None:
            return
        progress = followed.run.progress
        log.info("%s", progress)
        if not followed.run.given_up:  # else the next worker of this session takes it up
            self._unmarked[path] = progress
            self._mark(now=True)
        followed.reader.close()
        self._followed.pop(path)
        self._finished.add(path)
        with contextlib.suppress(OSError):  # tried again after the next run
            tidy(self._folder, _KEPT)
        runs = self.status.runs
        for uid in [uid for uid, one in runs.items() if one.finished][:-_REMEMBERED]:
            del runs[uid]
        self._say(force=True)

    def _say(self, *, force: bool) -> None:
        now = time.monotonic()
        if force or now - self._said >= _STATUS_S:
            self._said = now
            problems = [one.problem for one in self.status.runs.values() if one.problem and one.state != "ignored"]
            self.status.problem = problems[-1] if problems else ""
            if self._factory is not None:
                self.status.problem = self.status.problem or self._factory.problem
                self.status.model, self.status.model_folder = self._factory.model, self._factory.model_folder
                self.status.device = getattr(self._factory, "device", "")  # it may be lost, and another take its place
            self._save()

    def _save(self) -> None:
        """Write the status; a disk that is full is no reason to die, and the next time comes soon."""
        try:
            self.status.save(self._folder)
            self._mute = ""
        except OSError as error:  # or the folder is gone, with the user's temporary directory
            if not self._mute:
                log.warning("status cannot be written: %s", error)
            self._mute = str(error)

    def _mark(self, *, now: bool = False) -> None:
        """Mark finished runs; those that cannot be are tried again: unmarked they would only be done once more."""
        if not self._unmarked or (not now and time.monotonic() < self._mark_at):
            return
        self._mark_at = time.monotonic() + _AGAIN_S
        for path, progress in list(self._unmarked.items()):
            try:
                mark_done(path, progress)
            except OSError as error:
                log.info("%s cannot be marked as finished: %s; trying again", path, error)
            else:
                del self._unmarked[path]


def _key() -> str | None:
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
    order = ReconstructionSettings.load(folder)
    give_way(order.nice)
    log_to(folder)
    api_key = _key()
    closing = threading.Event()
    threading.Thread(target=_close_with_owner, args=(closing,), daemon=True).start()
    from bluesky_ptychonn.live.pipeline.factory import TiledComponentFactory

    again = False

    def factory(order: ReconstructionSettings) -> TiledComponentFactory:
        nonlocal again
        if again:  # before the network is loaded once more
            require_answer(order.catalog)
        again = True
        return TiledComponentFactory(
            order, folder.name, api_key=api_key, folder=folder, before_request=before_request(folder)
        )

    worker = Worker(folder, order, factory)
    try:
        worker.run(closing)
    except ValueError:
        if not worker.cannot:
            raise
        return WRONG  # said in status and log
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
