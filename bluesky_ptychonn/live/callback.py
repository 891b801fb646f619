"""`LiveReconstruction`: subscribe it to a RunEngine, and every ptychography scan is reconstructed while it runs.

In the RunEngine's thread it appends to a journal, and nothing else. All work is done by a worker that follows it.
"""

from __future__ import annotations

import atexit
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Unpack

from bluesky_ptychonn.beamline.preflight import ReconstructionAtWork, announce, withdraw
from bluesky_ptychonn.catalog.connection.connect import PROCESSED, Address
from bluesky_ptychonn.catalog.connection.requests import why_silent
from bluesky_ptychonn.catalog.raw.writer import RawWriter
from bluesky_ptychonn.catalog.registry.champion import bare_name, local_or_champion
from bluesky_ptychonn.journal.router import Journal
from bluesky_ptychonn.live.notifier import ProblemNotifier
from bluesky_ptychonn.live.pipeline.problems import Problem, ProblemKind
from bluesky_ptychonn.live.pipeline.progress import Progress, Status
from bluesky_ptychonn.live.pipeline.protocols import ComponentFactory
from bluesky_ptychonn.live.pipeline.settings import (
    LiveKeywords,
    LiveOptions,
    ReconstructionSettings,
    takes_options,
    with_keywords,
)
from bluesky_ptychonn.live.request_pacing import before_request
from bluesky_ptychonn.live.session import (
    LOG,
    SILENT_S,
    WorkerStatus,
    count_unfinished,
    left_behind,
    log_to,
    new_session,
)
from bluesky_ptychonn.live.supervisor import Supervisor, ThreadSupervisor, WorkerSupervisor, resume
from bluesky_ptychonn.paths import journal_root
from bluesky_ptychonn.processors import worker_threads

log = logging.getLogger(__name__)

# Whoever subscribes a bound method leaves a RunEngine with a weak reference only: keep instances until they are closed.
_open: set[LiveReconstruction] = set()


def _check_reachable(address: Address) -> None:
    if address.in_process:
        raise ValueError(
            f"catalog {address.uri} is a server inside this process, which no other can reach; "
            "use worker='thread', or serve_catalog(...)"
        )


@takes_options(LiveOptions, LiveKeywords)
class LiveReconstruction:
    """Reconstruct every ptychography scan of a RunEngine while it runs.

    Subscribe it after ``TiledWriter``, in one line: ``RE.subscribe(LiveReconstruction(model, catalog))``. Runs that
    carry ``md["ptychography"]`` are reconstructed; others too when `geometry` is given; all else is passed over.

    Parameters
    ----------
    model : str, Path or Model
        Name of a model, its folder, or a loaded one. A bare name means its champion in the catalog, looked up when a
        run begins, and where the catalog has none the newest of that name here; ``name/version`` is exactly that.
    catalog : CatalogServer, Tiled client, address or profile name
        Where runs are, and results go.
    options : LiveOptions, optional
        All that follows `raw_writer` in one, such as a configuration's ``reconstruction``; keywords go before it.
    raw_writer : RawWriter, optional
        Subscribed to the same RunEngine before this: the file in which it keeps a run is this run's journal too, so
        that each document is written once. For a run that it does not keep, or keeps on another disk, there is an own.
    **keywords

    Attributes
    ----------
    folder : Path
        This session's journals, status and log.
    settings : ReconstructionSettings
        What the worker was asked to do.

    Raises
    ------
    ValueError
        For an unknown model or worker, or what is no catalog, or none with a place for runs. In words.

    Examples
    --------
    >>> RE.subscribe(TiledWriter(catalog.raw, batch_size=1))  # doctest: +SKIP
    >>> live = LiveReconstruction("sim-lifted", catalog)  # doctest: +SKIP
    >>> RE.subscribe(live)  # doctest: +SKIP
    >>> live.wait()  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any,
        catalog: Any,
        options: LiveOptions | None = None,
        *,
        raw_writer: RawWriter | None = None,
        **keywords: Unpack[LiveKeywords],
    ) -> None:
        options = with_keywords(options or LiveOptions(), keywords, LiveKeywords)
        own_process = options.worker == "process"
        loaded = model if hasattr(model, "network") else None
        if loaded is not None:
            loaded.card.check_probe()
        self._errors = 0
        self._error = ""
        self._delayed = ""
        self._model_name = str(model if loaded is None else loaded.card.name)
        self._address = address = Address.from_catalog(catalog)
        address.check(options.raw)
        folder = "" if loaded is not None else local_or_champion(model, address)
        if own_process:
            _check_reachable(address)
        root = (options.journal_dir or journal_root()).expanduser().resolve()
        behind = left_behind(root, address.uri) if own_process else []
        self.folder = new_session(root)
        self.settings = ReconstructionSettings.from_options(
            options,
            model=folder if loaded is None or not own_process else _save(loaded, self.folder / "model"),
            catalog=address.uri,
            threads=options.threads or worker_threads(),
            champion=bare_name(model),
        )
        self.settings.save(self.folder)
        self._journal = Journal(self.folder, slimmed=True)
        self._raw_writer = raw_writer
        self._log_handler = None if own_process else log_to(self.folder)
        self._supervisor = self._make_supervisor(own_process, loaded)
        if behind:
            resume(behind, address.api_key)
        self._closed = False
        _open.add(self)
        self._announced = ReconstructionAtWork(
            lambda: self.model, options.geometry, options.preprocess, self._trouble_within
        )
        announce(self._announced)
        self._notifier = ProblemNotifier(self._find_problems, find_finished=self._find_finished)
        self._notifier.start()

    def _make_supervisor(self, own_process: bool, loaded: Any) -> Supervisor:
        if own_process:
            return WorkerSupervisor(self.folder, self.settings, self._address.api_key)
        return ThreadSupervisor(self.folder, self.settings, lambda: self._make_factory(loaded))

    def _make_factory(self, loaded: Any) -> ComponentFactory:
        """Make what a worker in a thread of ours works with."""
        from bluesky_ptychonn.live.pipeline.factory import TiledComponentFactory

        return TiledComponentFactory(
            self.settings,
            self.folder.name,
            root=self._address.client,
            model=loaded,
            folder=self.folder,
            before_request=before_request(self.folder),
        )

    def _trouble_within(self, timeout_s: float) -> str:
        """Say what a plan should hear of, after so many seconds at most; see `ReconstructionAtWork`."""
        if self.status.worker == "failed":
            return f"live reconstruction has failed: {self.status.problem}; see {self.log}"
        asked: queue.SimpleQueue[str] = queue.SimpleQueue()
        uri = self._address.uri
        # From a thread: looking up a name, and each part of an answer, may take as long as it likes.
        threading.Thread(target=lambda: asked.put(why_silent(uri, timeout_s)), daemon=True).start()
        try:
            why = asked.get(timeout=timeout_s)
        except queue.Empty:
            why = f"nothing within {timeout_s:g} s"
        return f"catalog {uri} does not answer ({why}); frames and results wait on disk until it does" if why else ""

    # -- in the RunEngine's thread

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Journal a document. Never raises, never waits."""
        try:
            if name == "start" and self._raw_writer is not None:
                self._journal.follow(str(doc["uid"]), self._raw_writer.journal)
            self._journal.append(name, doc)
            if name == "stop":
                self._journal.release(sync=False)
        except OSError as error:  # it waits in memory; status shows it, and the notifier tries again
            self._delayed = f"journal {self.folder}: {type(error).__name__}: {error}"
        except BaseException as error:  # noqa: BLE001  # SystemExit from a callback hangs a RunEngine; status shows it
            self._errors += 1
            self._error = f"journal {self.folder}: {type(error).__name__}: {error}"

    # -- for people and plans

    @property
    def status(self) -> Status:
        """Where things stand; read from the session's folder, so it costs a fraction of a millisecond."""
        worker = WorkerStatus.load(self.folder)
        held = self._journal.held
        on_hold = "the disk is full, documents wait in memory" if held else ""
        own = Problem(self._error or self._delayed or on_hold, ProblemKind.JOURNAL)
        state, problem = worker.state, own or Problem(worker.problem, worker.problem_kind)
        if self._supervisor.alive:
            if state in ("stopped", "failed"):  # and will be there again
                state = "starting"
            if state == "starting":
                problem = own or Problem(self._supervisor.problem, ProblemKind.WORKER) or problem
            elif not problem and (silent_s := WorkerStatus.age_s(self.folder)) > SILENT_S:
                message = f"the worker has said nothing for {silent_s:.0f} s: at a long step, hung, or its disk is full"
                problem = Problem(message, ProblemKind.WORKER)
        elif state != "failed":
            state = "stopped"
        return Status(
            state,
            worker.device,
            self._supervisor.restarts,
            worker.runs | {uid: Progress(uid) for uid in self._journal.begun if uid not in worker.runs},
            self._errors + held,
            *problem,
            worker.model,
        )

    def _find_problems(self) -> list[tuple[Problem, str]]:
        """Find what a user should hear of now. Also tries again to journal what a full disk did not take."""
        if self._delayed and self._journal.flush():
            self._journal.release()
            self._delayed = ""
        status = self.status
        runs = [run for run in status.runs.values() if run.state != "ignored"]
        problems = [Problem(run.problem, run.problem_kind) for run in runs if run.problem and not run.finished]
        if status.problem not in ("", *(run.problem for run in runs)):
            problems.insert(0, Problem(status.problem, status.problem_kind))
        for run in [run for run in runs if run.finished][-1:]:
            if run.state != "complete":
                kind = ProblemKind.FAILED if run.state == "failed" else ProblemKind.INCOMPLETE
                problems.append(Problem(f"reconstruction {run.state}: {run}", kind))
        on_disk = f"; {status.spooled} frames wait on disk" if status.spooled else ""
        return [(problem, f"{on_disk}. The scan is not affected. See {self.log}") for problem in problems]

    def _find_finished(self) -> dict[str, str]:
        """Say of each finished run how it ended and how to open its image."""
        lines = {}
        for uid, run in self.status.runs.items():
            if run.finished and run.state != "ignored":
                of = f" of {run.expected}" if run.expected else ""
                verdict = f", verdict {run.verdict}" if run.verdict else ""
                look = f"; live.result({uid[:8]!r}).plot('image.png') draws it" if run.done else ""
                name = f"run {uid[:8]}" if run.scan_id is None else f"scan {run.scan_id}"
                lines[uid] = f"{name}: reconstruction {run.state}, {run.done}{of} frames{verdict}{look}"
        return lines

    @property
    def model(self) -> str:
        """Folder of the model at work, as of the last run's start: give it to a sparse plan, which obeys its card.

        The name, for a model that was given loaded and has no folder.
        """
        return WorkerStatus.load(self.folder).model_folder or self.settings.model or self._model_name

    @property
    def log(self) -> Path:
        """Log of the worker: all there is to know."""
        return self.folder / LOG

    def wait_ready(self, timeout: float = 120.0) -> None:
        """Wait until the worker has loaded the network, so that the first frame is not late.

        Raises
        ------
        TimeoutError
            When it is not ready in time: with what it says.
        RuntimeError
            When it failed.
        """
        self._wait(lambda status: status.worker == "ready", timeout, "worker is not ready")

    def wait(self, uid: str | None = None, timeout: float = 120.0) -> list[Progress]:
        """Wait until a run's reconstruction is finished, or those of all runs so far.

        Parameters
        ----------
        uid : str, optional
            Of the run.
        timeout : float
            s.

        Returns
        -------
        list of Progress
            How each ended.

        Raises
        ------
        TimeoutError
            When it takes longer: with where things stand.
        RuntimeError
            When the worker failed for good.
        """

        def wanted(status: Status) -> list[Progress]:
            uids = list(self._journal.begun) if uid is None else [uid]
            return [status.runs.get(item, Progress(item)) for item in uids]

        return wanted(self._wait(lambda status: all(run.finished for run in wanted(status)), timeout, "not finished"))

    def _wait(self, done: Callable[[Status], bool], timeout: float, complaint: str) -> Status:
        end = time.monotonic() + timeout
        while not done(status := self.status):
            if status.worker == "failed":
                raise RuntimeError(f"worker failed: {status.problem}. See {self.log}")
            if time.monotonic() > end:
                raise TimeoutError(f"{complaint} after {timeout} s: {status}")
            time.sleep(0.05)
        return status

    def result(self, uid: str | None = None) -> Any:
        """Client of a run's reconstruction in the catalog, by the run's uid or its beginning.

        Without one the latest that was not refused.

        Raises
        ------
        LookupError
            When there is none (yet): with where the run stands.
        """
        runs = self.status.runs
        if uid is None:
            made = [uid for uid, run in runs.items() if run.key]
            uid = next((uid for uid in reversed(made) if runs[uid].state != "failed"), made[-1] if made else "")
        run = next((run for known, run in reversed(runs.items()) if uid and known.startswith(uid)), None)
        if run is None or run.key is None:
            raise LookupError(f"no reconstruction: {run or uid or 'no run was seen yet'}")
        return self._address.client[PROCESSED][run.key]

    @property
    def results(self) -> list[Any]:
        """Clients of all reconstructions of this session, oldest first."""
        keys = [run.key for run in self.status.runs.values() if run.key]
        processed = self._address.client[PROCESSED] if keys else {}
        return [processed[key] for key in keys]

    def close(self, timeout: float = 60.0) -> None:
        """Finish what was journaled, at most `timeout` s, and end the worker; again is harmless.

        A run still open is finished as ``partial``.
        """
        if self._closed:
            return
        self._closed = True
        _open.discard(self)
        withdraw(self._announced)
        began = time.monotonic()
        finished = self._supervisor.close(timeout)
        self._report_end(finished, began + timeout < time.monotonic(), timeout)
        self._notifier.close()
        self._journal.close()
        if self._log_handler is not None:
            logging.getLogger("bluesky_ptychonn").removeHandler(self._log_handler)
            self._log_handler.close()

    def _report_end(self, finished: bool, late: bool, timeout: float) -> None:
        """Say what is left at the end, and why."""
        worker = WorkerStatus.load(self.folder)
        left = count_unfinished(self.folder)
        if worker.state == "failed" or not (finished or late):
            why = f"worker failed: {worker.problem or self._supervisor.problem or 'it says not why'}"
        elif not finished:
            why = f"worker did not finish within {timeout:g} s: {self.status}"
        elif left:
            why = "; ".join(dict.fromkeys(run.problem for run in worker.runs.values() if run.problem))
        else:
            return
        more = f"{left} runs are not finished, the next LiveReconstruction with this catalog takes them up; "
        log.warning("%s. %ssee %s", why or "no reason known", more if left else "", self.log)

    def __enter__(self) -> LiveReconstruction:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        """Model, catalog and where things stand."""
        return f"<LiveReconstruction {self._model_name} → {self._address.uri}\n{self.status}>"


def _save(model: Any, folder: Path) -> str:
    from bluesky_ptychonn.recon.models.checkpoint import save_model

    save_model(folder, model.network, model.card, model.probe, model.weight)
    return str(folder)


@atexit.register
def _detach_all() -> None:
    """At the interpreter's end let worker processes finish by themselves; threads get a little time."""
    for live in list(_open):
        live._supervisor.detach()
