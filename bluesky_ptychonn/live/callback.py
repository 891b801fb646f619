"""`LiveReconstruction`: subscribe it to a RunEngine, and every ptychography scan is reconstructed while it runs.

In the RunEngine's thread it appends to a journal, and nothing else. All work is done by a worker that follows it.
"""

from __future__ import annotations

import atexit
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from bluesky_ptychonn.catalog.connection.address import Address
from bluesky_ptychonn.catalog.raw.writer import RawWriter
from bluesky_ptychonn.catalog.registry.champion import bare_name, local_or_champion
from bluesky_ptychonn.catalog.runs.data_keys import DataKeys
from bluesky_ptychonn.journal.router import Journal
from bluesky_ptychonn.live.notifier import ProblemNotifier
from bluesky_ptychonn.live.pipeline.progress import Progress, Status, Timing
from bluesky_ptychonn.live.pipeline.settings import ReconstructionSettings
from bluesky_ptychonn.live.request_pacing import before_request
from bluesky_ptychonn.live.session import (
    LOG,
    WorkerStatus,
    left_behind,
    log_to,
    new_session,
    unfinished,
)
from bluesky_ptychonn.live.supervisor import Supervisor, ThreadSupervisor, WorkerSupervisor, resume
from bluesky_ptychonn.optics.framing import PreprocessConfig
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.paths import journal_root
from bluesky_ptychonn.recon.mosaic.refine_config import Refinement, asked_for

log = logging.getLogger(__name__)

_SILENT_S = 30.0  # a worker says something five times a second

# Whoever subscribes a bound method leaves a RunEngine with a weak reference only: keep instances until they are closed.
_open: set[LiveReconstruction] = set()


def worker_threads() -> int:
    """Threads for the network on a CPU: half the cores, so that acquisition keeps the others."""
    return max(1, len(os.sched_getaffinity(0)) // 2)


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
    geometry : Geometry, optional
        Overrides the start documents'.
    frame_key, x_key, y_key : str, optional
        Data keys of frames and positions, where the start document does not name them.
    x_sign, y_sign : int, optional
        1 or -1: object coordinate = sign × motor readback.
    position_unit : str, optional
        Unit of the positions, for motors that name none.
    stream : str
        Stream with the frames.
    worker : {"process", "thread"}
        A process of its own never slows a scan by Python's lock; a thread is for tests and servers inside the process.
    journal_dir : path, optional
        Where sessions' journals lie; `journal_root` by default. Runs left unfinished there by a machine that went down
        are taken up.
    device : str
        ``auto``, ``cpu``, ``cuda``.
    batch_size : int
        Frames the network takes at once.
    flush_s : float, optional
        Longest a frame waits for others, s.
    pace : Timing, optional
        All of the timing.
    raw : str
        Container of the runs in the catalog; empty where runs lie at its root.
    threads : int, optional
        Threads of the network on a CPU; half the cores by default.
    precision : {"fp32", "bf16", "fp16"}
        Of the convolutions.
    preprocess : PreprocessConfig, optional
        From recorded frames to the network's, instead of the model card's.
    refine : bool or Refinement
        Whether, or how, to refine mosaics by sweeps of the physics through the probe: for half a second each while the
        run goes on, whole when it ends. The result's metadata says so under ``refinement``; patches stay the network's.
    spool_mib : int
        Most that results may take on disk, in the session's folder, while the catalog does not answer, MiB.
    raw_writer : RawWriter, optional
        Subscribed to the same RunEngine before this: the file in which it keeps a run is this run's journal too, so
        that each document is written once. For a run that it does not keep, or keeps on another disk, there is an own.

    Attributes
    ----------
    folder : Path
        This session's journals, status and log.
    order : ReconstructionSettings
        What the worker was asked to do.

    Raises
    ------
    ValueError
        For an unknown model or worker, or what is no catalog. In words.

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
        *,
        geometry: Geometry | None = None,
        frame_key: str | None = None,
        x_key: str | None = None,
        y_key: str | None = None,
        x_sign: int | None = None,
        y_sign: int | None = None,
        position_unit: str | None = None,
        stream: str = "primary",
        worker: Literal["process", "thread"] = "process",
        journal_dir: str | Path | None = None,
        device: str = "auto",
        batch_size: int = 16,
        flush_s: float | None = None,
        pace: Timing | None = None,
        raw: str = "raw",
        threads: int | None = None,
        precision: Literal["fp32", "bf16", "fp16"] = "fp32",
        preprocess: PreprocessConfig | None = None,
        refine: bool | Refinement = False,
        spool_mib: int = 1024,
        raw_writer: RawWriter | None = None,
    ) -> None:
        if worker not in ("process", "thread"):
            raise ValueError(f"worker={worker!r} is unknown; allowed: 'process', 'thread'")
        self._errors = 0
        self._error = ""
        self._delayed = ""
        self._model = str(getattr(getattr(model, "card", None), "name", model))
        pace = pace or Timing()
        order = ReconstructionSettings(
            model="",
            catalog="",
            geometry=geometry,
            keys=DataKeys(frame_key, x_key, y_key, x_sign, y_sign, stream, position_unit),
            pace=pace if flush_s is None else replace(pace, flush_s=flush_s),
            device=device,
            batch_size=batch_size,
            raw=raw,
            threads=threads or worker_threads(),
            precision=precision,
            preprocess=preprocess,
            refinement=asked_for(refine),
            spool_mib=spool_mib,
        )
        loaded = hasattr(model, "network")
        address = Address.from_catalog(catalog)
        order = replace(order, catalog=address.uri)
        if not loaded:
            order = replace(order, model=local_or_champion(model, address), champion=bare_name(model))
        if worker == "process" and address.in_process:
            raise ValueError(
                f"catalog {address.uri} is a server inside this process, which no other can reach; "
                "use worker='thread', or serve_catalog(...)"
            )
        self._address = address
        root = Path(journal_dir) if journal_dir is not None else journal_root()
        root = root.expanduser().resolve()
        behind = left_behind(root, address.uri) if worker == "process" else []
        self.folder = new_session(root)
        if loaded and worker == "process":
            from bluesky_ptychonn.recon.models.checkpoint import save_model

            folder = self.folder / "model"
            save_model(folder, model.network, model.card, model.probe, model.weight)
            order = replace(order, model=str(folder))
        self._journal = Journal(self.folder, slimmed=True)
        self._raw_writer = raw_writer
        self._log_handler: logging.Handler | None = None
        self._supervisor: Supervisor
        order.save(self.folder)
        if worker == "process":
            self._supervisor = WorkerSupervisor(self.folder, order, address.api_key)
            if behind:
                resume(behind, address.api_key)
        else:
            from bluesky_ptychonn.live.pipeline.factory import TiledComponentFactory

            self._log_handler = log_to(self.folder)
            self._supervisor = ThreadSupervisor(
                self.folder,
                order,
                lambda order: TiledComponentFactory(
                    order,
                    self.folder.name,
                    root=address.client,
                    model=model if loaded else None,
                    folder=self.folder,
                    before_request=before_request(self.folder),
                ),
            )
        self.order = order
        self._closed = False
        _open.add(self)
        self._notifier = ProblemNotifier(self._problems)
        self._notifier.start()

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
        said = WorkerStatus.load(self.folder)
        held = self._journal.held
        own = self._error or self._delayed or ("the disk is full, documents wait in memory" if held else "")
        state, problem = said.state, own or said.problem
        if self._supervisor.alive:
            if state in ("stopped", "failed"):  # and will be there again
                state = "starting"
            if state == "starting":
                problem = own or self._supervisor.problem or said.problem
            elif not problem and (silent_s := WorkerStatus.age_s(self.folder)) > _SILENT_S:
                problem = f"the worker has said nothing for {silent_s:.0f} s: at a long step, hung, or its disk is full"
        elif state != "failed":
            state = "stopped"
        runs = dict(said.runs)
        for uid in self._journal.begun:
            runs.setdefault(uid, Progress(uid))
        return Status(
            state,
            said.device,
            self._supervisor.restarts,
            runs,
            self._errors + held,
            problem,
            said.model,
        )

    def _problems(self) -> list[tuple[str, str]]:
        """Find what a user should hear of now. Also tries again to journal what a full disk did not take."""
        if self._delayed and self._journal.flush():
            self._journal.release()
            self._delayed = ""
        status = self.status
        runs = [run for run in status.runs.values() if run.state != "ignored"]
        ended = [run for run in runs if run.finished][-1:]
        said = [
            *(run.problem for run in runs if run.problem and not run.finished),
            *(f"reconstruction {run.state}: {run}" for run in ended if run.state != "complete"),
        ]
        if status.problem and not any(status.problem in words for words in said):
            said.insert(0, status.problem)
        on_disk = f"; {status.spooled} frames wait on disk" if status.spooled else ""
        return [(words, f"{on_disk}. The scan is not affected. See {self.log}") for words in said]

    @property
    def model(self) -> str:
        """Folder of the model at work, as of the last run's start: give it to a sparse plan, which obeys its card.

        The name, for a model that was given loaded and has no folder.
        """
        return WorkerStatus.load(self.folder).model_folder or self.order.model or self._model

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
        end = time.monotonic() + timeout
        while (status := self.status).worker != "ready":
            if status.worker == "failed":
                raise RuntimeError(f"worker failed: {status.problem}. See {self.log}")
            if time.monotonic() > end:
                raise TimeoutError(f"worker is not ready after {timeout} s: {status}")
            time.sleep(0.05)

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
        end = time.monotonic() + timeout
        while True:
            status = self.status
            wanted = [uid] if uid is not None else list(self._journal.begun)
            runs = [status.runs.get(one, Progress(one)) for one in wanted]
            if all(run.finished for run in runs):
                return runs
            if status.worker == "failed":
                raise RuntimeError(f"worker failed: {status.problem}. See {self.log}")
            if time.monotonic() > end:
                raise TimeoutError(f"not finished after {timeout} s: {status}")
            time.sleep(0.05)

    def result(self, uid: str | None = None) -> Any:
        """Client of a run's reconstruction in the catalog; of the latest when no `uid` is given.

        Raises
        ------
        LookupError
            When there is none (yet): with where the run stands.
        """
        runs = self.status.runs
        if uid is None:
            uid = next((one for one, run in reversed(runs.items()) if run.key), "")
        run = runs.get(uid)
        if run is None or run.key is None:
            raise LookupError(f"no reconstruction: {run or 'no run was seen yet' if not uid else run or uid}")
        return self._address.client["processed"][run.key]

    @property
    def results(self) -> list[Any]:
        """Clients of all reconstructions of this session, oldest first."""
        processed = self._address.client["processed"]
        return [processed[run.key] for run in self.status.runs.values() if run.key]

    def close(self, timeout: float = 60.0) -> None:
        """Finish what was journaled, at most `timeout` s, and end the worker; again is harmless.

        A run still open is finished as ``partial``.
        """
        if self._closed:
            return
        self._closed = True
        _open.discard(self)
        if not self._supervisor.close(timeout):
            log.warning("worker did not finish within %s s: %s", timeout, self.status)
        elif left := unfinished(self.folder):
            log.warning(
                "%d runs are not finished: %s. The next LiveReconstruction with this catalog takes them up; see %s",
                left, self._reasons() or "no reason known", self.log,
            )  # fmt: skip
        self._notifier.close()
        self._journal.close()
        self._drop_log()

    def _reasons(self) -> str:
        return "; ".join(dict.fromkeys(run.problem for run in self.status.runs.values() if run.problem))

    def _drop_log(self) -> None:
        if self._log_handler is not None:
            logging.getLogger("bluesky_ptychonn").removeHandler(self._log_handler)
            self._log_handler.close()
            self._log_handler = None

    def __enter__(self) -> LiveReconstruction:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        """Model, catalog and where things stand."""
        return f"<LiveReconstruction {self._model} → {self._address.uri}\n{self.status}>"


@atexit.register
def _let_go() -> None:
    """At the interpreter's end let worker processes finish by themselves; threads get a little time."""
    for live in list(_open):
        live._supervisor.let_go()
