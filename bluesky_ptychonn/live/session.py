"""The folder that the callback and its worker share: order, journals, status, log.

The callback's process writes the order and the journals, the worker everything else. Status files are replaced whole,
so a reader never sees half of one.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from bluesky_ptychonn.files import is_locked, read_json, write_json
from bluesky_ptychonn.journal.append_file import SUFFIX, run_files
from bluesky_ptychonn.live.pipeline.progress import Progress
from bluesky_ptychonn.live.pipeline.settings import SETTINGS_FILE, SPOOL, ReconstructionSettings

log = logging.getLogger(__name__)

_STATUS, _DONE, WORKER_LOCK, LOG = "status.json", ".done", "worker.lock", "worker.log"
_SESSIONS_KEPT = 50


def new_session(root: Path) -> Path:
    """Make a session's folder, readable by its owner only."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{os.urandom(3).hex()}"
    folder = root / name
    folder.mkdir(parents=True, mode=0o700)
    return folder


@dataclass
class WorkerStatus:
    """What a worker says of itself.

    Parameters
    ----------
    state : str
        ``starting``, ``ready``, ``stopped`` or ``failed``.
    pid : int
        Its process.
    device : str
        What it computes on.
    problem : str
        The last thing that went wrong, in words.
    runs : dict of str to Progress
        By uid, the last hundred.
    model : str
        ``name/version`` of the model that the next run will have, unless another becomes champion before.
    model_folder : str
        Where that lies; empty for one that was given loaded.
    """

    state: str = "starting"
    pid: int = 0
    device: str = ""
    problem: str = ""
    runs: dict[str, Progress] = field(default_factory=dict)
    model: str = ""
    model_folder: str = ""

    def save(self, folder: Path) -> None:
        """Write into a session's folder."""
        write_json(folder / _STATUS, asdict(self), private=True)

    @classmethod
    def load(cls, folder: Path) -> WorkerStatus:
        """Read from a session's folder; what a worker that has not begun yet would say when there is nothing."""
        values = read_json(folder / _STATUS)
        if values is None:
            return cls()
        runs = {uid: Progress.from_values(progress) for uid, progress in values.pop("runs", {}).items()}
        known = {item.name: values[item.name] for item in fields(cls) if item.name in values}
        return cls(**known, runs=runs)

    @staticmethod
    def beat(folder: Path) -> None:
        """Show that the worker lives, in the midst of a step that takes long."""
        with contextlib.suppress(OSError):
            os.utime(folder / _STATUS)

    @staticmethod
    def age_s(folder: Path) -> float:
        """How long ago a worker said something, s; 0 where none has yet."""
        try:
            return max(0.0, time.time() - (folder / _STATUS).stat().st_mtime)
        except OSError:
            return 0.0


def mark_done(journal: Path, progress: Progress) -> None:
    """Note beside its journal that a run is finished, so that no later worker takes it up again."""
    write_json(journal.with_suffix(_DONE), asdict(progress), private=True)


def done(journal: Path) -> Progress | None:
    """How a finished run ended; None for one that is not finished."""
    values: Mapping[str, Any] | None = read_json(journal.with_suffix(_DONE))
    return None if values is None else Progress.from_values(values)


def unfinished(folder: Path) -> int:
    """Count the runs of a session that are not finished."""
    return sum(done(journal) is None for journal in run_files(folder))


def _readable(folder: Path) -> ReconstructionSettings | None:
    try:
        return ReconstructionSettings.load(folder)
    except (ValueError, TypeError, KeyError) as error:  # of a version that says other things
        log.warning("the order of %s cannot be read, its runs are left: %s", folder, error)
        return None


def left_behind(root: Path, catalog: str) -> list[Path]:
    """Sessions of this catalog that no worker has and that hold unfinished runs, oldest first.

    Sessions with nothing left to do and older than the last fifty are removed.
    """
    found, old = [], []
    for folder in sorted(path for path in root.glob("*") if (path / SETTINGS_FILE).is_file()):
        if is_locked(folder / WORKER_LOCK):
            continue
        if unfinished(folder):
            order = _readable(folder)
            if order is None:
                continue
            usable = order.champion or (order.model and Path(order.model).is_dir())
            if order.catalog == catalog and usable:
                found.append(folder)
        else:
            old.append(folder)
    for folder in old[:-_SESSIONS_KEPT]:
        shutil.rmtree(folder, ignore_errors=True)
    return found


@dataclass(frozen=True)
class Session:
    """A session as it is found on disk.

    Attributes
    ----------
    folder : Path
        Its folder.
    catalog : str
        Address of its catalog.
    worker : WorkerStatus
        What its worker said last.
    alive : bool
        Whether a worker has it now.
    unfinished : int
        Runs that are not finished.
    silent_s : float
        How long ago its worker said something, s.
    """

    folder: Path
    catalog: str
    worker: WorkerStatus
    alive: bool
    unfinished: int
    silent_s: float = 0.0

    @property
    def log(self) -> Path:
        """Log of the worker."""
        return self.folder / LOG

    @property
    def spool(self) -> Path:
        """Where results wait for the catalog."""
        return self.folder / SPOOL


def find_sessions(root: Path) -> list[Session]:
    """Sessions under a folder, newest first."""
    found = []
    for folder in sorted((path for path in root.glob("*") if (path / SETTINGS_FILE).is_file()), reverse=True):
        alive = is_locked(folder / WORKER_LOCK)
        order = _readable(folder)
        age_s = WorkerStatus.age_s(folder)
        catalog = "unknown catalog" if order is None else order.catalog
        found.append(Session(folder, catalog, WorkerStatus.load(folder), alive, unfinished(folder), age_s))
    return found


def tidy(folder: Path, keep: int, keep_bytes: int = 256 << 20) -> None:
    """Remove the journals of finished runs but the last `keep`, or as many as fit; Tiled has all that is in them."""
    finished = sorted(folder.glob(f"*{_DONE}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for number, journal in enumerate(path.with_suffix(SUFFIX) for path in finished):
        with contextlib.suppress(FileNotFoundError):
            keep_bytes -= journal.stat().st_size
            if number >= keep or keep_bytes < 0:
                journal.unlink()


def log_to(folder: Path) -> logging.Handler:
    """Let this package log into the session's folder, a few megabytes at most."""
    handler = logging.handlers.RotatingFileHandler(folder / LOG, maxBytes=1 << 20, backupCount=2, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("bluesky_ptychonn")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return handler
