"""All of it on one machine, for `demo` and `replay`: catalog, RunEngine, live reconstruction, progress, report."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_ptychonn.cli.common.progress import PlainLines
from bluesky_ptychonn.live.pipeline.progress import Timing
from bluesky_ptychonn.live.pipeline.settings import LiveOptions

if TYPE_CHECKING:
    import pandas as pd

    from bluesky_ptychonn.catalog.connection.server import CatalogServer
    from bluesky_ptychonn.catalog.results.client import PtychoReconstruction
    from bluesky_ptychonn.live.callback import LiveReconstruction

CATALOG, FRAMES, JOURNAL, BACKUP, REPORT = "catalog", "frames", "journal", "raw-backup", "report.json"


@dataclass
class LocalSession:
    """A served catalog, a RunEngine that writes into it, live reconstruction, and folders of frames and raw backup.

    The camera is to write into `frames`, which the server may read.
    """

    server: CatalogServer
    engine: Any
    live: LiveReconstruction
    frames: Path
    backup: Path

    def scan(self, plan: Any, *, reconstruct: bool = True, title: str = "scan") -> tuple[str, float]:
        """Run a plan of one run under a progress bar of that title, and reconstruct it live where that is wanted.

        Returns the uid and the seconds it took; RuntimeError when the plan failed or was interrupted.
        """
        from bluesky.utils import FailedStatus, RunEngineInterrupted

        counter = _Counter()
        tokens = [self.engine.subscribe(counter)]
        if reconstruct:
            tokens.append(self.engine.subscribe(self.live))
        try:
            with _without_traceback(), _progress_bars(title, counter, self.live if reconstruct else None):
                started = time.perf_counter()
                self.engine(plan)
                took = time.perf_counter() - started
            self._wait_for_raw_run(counter.uid)
        except RunEngineInterrupted:
            self.engine.abort("interrupted at the keyboard")
            raise RuntimeError(f"{title}: interrupted; the run is in the catalog, marked as aborted") from None
        except FailedStatus as error:
            why = error.__cause__ or error
            raise RuntimeError(f"{title}: a device failed: {why}") from error
        finally:
            for token in tokens:
                self.engine.unsubscribe(token)
        return counter.uid, took

    def _wait_for_raw_run(self, uid: str, timeout: float = 120.0) -> None:
        """Wait until the raw run is whole in the catalog: its writer works behind the scan."""
        deadline = time.monotonic() + timeout
        while not (uid in self.server.raw and self.server.raw[uid].metadata.get("stop")):
            if time.monotonic() > deadline:
                raise RuntimeError(f"run {uid[:8]} is not whole in the catalog after {timeout:g} s; see {self.backup}")
            time.sleep(0.2)

    def finish(self, uid: str, timeout: float = 120.0) -> PtychoReconstruction:
        """Wait for a run's reconstruction and return it; RuntimeError with the reason when there is none."""
        (progress,) = self.live.wait(uid, timeout)
        if progress.key is None or progress.state == "failed":
            raise RuntimeError(f"nothing was reconstructed: {progress}")
        result: PtychoReconstruction = self.live.result(uid)
        return result

    def report(self, result: PtychoReconstruction) -> dict[str, Any]:
        """Say of a run what every report says, as JSON.

        ``latency_ms`` is from frame written to reconstruction readable, ``frames_per_s`` from the first frame written
        to the last reconstruction readable.
        """
        scan, frames, model = result.raw.metadata["start"]["ptychography"], result.frames, result.metadata["model"]
        took_s = float(frames["time_done"].max() - frames["time_raw"].min())
        return {
            "frames": len(frames),
            "step_m": scan["step_m"],
            "sampling": scan["sampling"],
            "latency_ms": _latency_ms(frames),
            "frames_per_s": round(len(frames) / took_s, 2) if took_s > 0 else float("nan"),
            "model": f"{model['name']} {model['version']}",
            "device": self.live.status.device,
            "catalog": CATALOG,
            "reconstruction_uid": result.path_parts[-1],
        }


@contextlib.contextmanager
def open_local_session(folder: Path, model: Any, **keywords: Any) -> Iterator[LocalSession]:
    """Serve the catalog of `folder`, make a RunEngine that writes into it, and start the worker of `model`.

    Keywords are those of `LiveReconstruction`, over `local_options`. The folder gets ``catalog/`` with ``frames/`` in
    it, and ``journal/``; what is there already stays.
    """
    from bluesky_ptychonn.catalog.connection.server import serve_catalog
    from bluesky_ptychonn.catalog.raw.writer import raw_writer
    from bluesky_ptychonn.live.callback import LiveReconstruction

    # Ten seconds of imports, done while the server is busy with its own.
    imports = threading.Thread(target=importlib.import_module, args=("bluesky_tiled_plugins",), daemon=True)
    imports.start()
    frames = folder / CATALOG / FRAMES
    frames.mkdir(parents=True, exist_ok=True)
    with (
        serve_catalog(folder / CATALOG, readable=[frames]) as server,
        contextlib.closing(raw_writer(server, folder / BACKUP)) as writer,
        LiveReconstruction(model, server, local_options(folder), raw_writer=writer, **keywords) as live,
    ):
        imports.join()
        from bluesky import RunEngine

        engine: Any = RunEngine({}, call_returns_result=False)
        engine.subscribe(writer)
        live.wait_ready()
        yield LocalSession(server, engine, live, frames, folder / BACKUP)


def local_options(folder: Path) -> LiveOptions:
    """Options of a session in this folder, before a user says anything."""
    # No scan waits for the server here, so ours may ask more of it.
    return LiveOptions(journal_dir=folder / JOURNAL, pace=Timing(share=0.5))


def save_picture(path: Path, result: PtychoReconstruction, title: str, **options: Any) -> None:
    """Draw a reconstruction into a file; options are those of `reconstruction_figure`."""
    import matplotlib as mpl

    mpl.use("Agg")  # a file is wanted, never a window
    from bluesky_ptychonn.viewer import reconstruction_figure

    reconstruction_figure(result.mosaic(), result.frames, title, **options).savefig(path, dpi=130)


def write_report(folder: Path, report: dict[str, Any]) -> Path:
    """Write a report as JSON into a folder, and give the file."""
    path = folder / REPORT
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return path


def _latency_ms(frames: pd.DataFrame) -> dict[str, float]:
    """Median and 95th percentile, ms, from frame written to reconstruction readable."""
    lag = 1e3 * (frames["time_done"] - frames["time_raw"]).to_numpy()
    lag = lag[np.isfinite(lag)]
    percentiles = np.percentile(lag, [50, 95]) if lag.size else (np.nan, np.nan)
    return {name: round(float(value), 1) for name, value in zip(("p50", "p95"), percentiles, strict=True)}


class _Counter:
    """Count a run's events, for the progress bar."""

    def __init__(self) -> None:
        self.uid = ""
        self.expected: int | None = None
        self.events = 0

    def __call__(self, name: str, doc: dict[str, Any]) -> None:
        if name == "start":
            self.uid, self.expected, self.events = doc["uid"], doc.get("num_points"), 0
        elif name in ("event", "event_page"):
            self.events += 1 if name == "event" else len(doc["seq_num"])


@contextlib.contextmanager
def _without_traceback() -> Iterator[None]:
    """Keep the RunEngine's traceback of a plan that fails to its other handlers: the error is raised, and said once."""
    handler = logging.NullHandler()  # as long as there is one, Python does not print by itself
    logger = logging.getLogger("bluesky")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextlib.contextmanager
def _progress_bars(title: str, counter: _Counter, live: LiveReconstruction | None) -> Iterator[None]:
    """Show exposed and reconstructed frames, from a thread of its own: the scan must not wait for a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TextColumn("frames"))
    progress = Progress(*columns, TimeElapsedColumn(), TextColumn("{task.fields[note]}"), refresh_per_second=2)
    lines = None if progress.console.is_terminal else PlainLines(title)
    exposed = progress.add_task(title, total=None, note="")
    done = progress.add_task("  reconstructed live", total=None, note="") if live is not None else None
    over = threading.Event()

    def show() -> None:
        progress.update(exposed, completed=counter.events, total=counter.expected)
        run = None if live is None else live.status.runs.get(counter.uid)
        if lines is not None:
            lines(counter.events, counter.expected, "" if run is None else f"{run.done} reconstructed")
        if done is None:
            return
        if run is not None:
            note = f"{run.lag_s:.2f} s behind" if run.lag_s is not None and not run.finished else ""
            progress.update(done, completed=run.done, total=counter.expected, note=note)

    def follow() -> None:
        while not over.wait(0.5):
            show()

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    with progress:
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            show()
