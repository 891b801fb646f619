"""The folder that the callback and its worker share: settings, journals, status, log.

The callback's process writes the settings and the journals, the worker everything else. Status files are replaced
whole, so a reader never sees half of one.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import shutil
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from bluesky_ptychonn.catalog.connection.address import is_same_catalog
from bluesky_ptychonn.files import is_locked, read_json, write_json
from bluesky_ptychonn.journal.append_file import SUFFIX, run_files
from bluesky_ptychonn.live.pipeline.progress import Progress
from bluesky_ptychonn.live.pipeline.settings import SETTINGS_FILE, ReconstructionSettings

log = logging.getLogger(__name__)

_STATUS, _DONE, WORKER_LOCK, LOG = "status.json", ".done", "worker.lock", "worker.log"
_SESSIONS_KEPT = 50
SILENT_S = 30.0  # a worker writes its status five times a second


def new_session(root: Path) -> Path:
    """Make a session's folder, readable by its owner only."""
    folder = root / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{os.urandom(3).hex()}"
    folder.mkdir(parents=True, mode=0o700)
    return folder


@dataclass
class WorkerStatus:
    """Where a worker stands; see `Status`, whose ``worker`` is the `state` here.

    `runs` are the last hundred, and `model` what the next run will have, unless another becomes champion before.
    """

    state: str = "starting"
    pid: int = 0
    device: str = ""
    problem: str = ""
    problem_kind: str = ""
    runs: dict[str, Progress] = field(default_factory=dict)
    model: str = ""
    model_folder: str = ""  # empty for a model that was given loaded

    def save(self, folder: Path) -> None:
        """Write into a session's folder."""
        write_json(folder / _STATUS, asdict(self), private=True)

    @classmethod
    def load(cls, folder: Path) -> WorkerStatus:
        """Read from a session's folder; that of a worker that has not begun yet where there is none."""
        values = read_json(folder / _STATUS)
        if values is None:
            return cls()
        runs = {uid: Progress.from_values(progress) for uid, progress in values.pop("runs", {}).items()}
        known = {item.name: values[item.name] for item in fields(cls) if item.name in values}
        return cls(**known, runs=runs)

    @staticmethod
    def touch(folder: Path) -> None:
        """Show that the worker lives, in the midst of a step that takes long."""
        with contextlib.suppress(OSError):
            os.utime(folder / _STATUS)

    @staticmethod
    def age_s(folder: Path) -> float:
        """How long ago a worker wrote its status, s; 0 where none has yet."""
        try:
            return max(0.0, time.time() - (folder / _STATUS).stat().st_mtime)
        except OSError:
            return 0.0


def mark_finished(journal: Path, progress: Progress) -> None:
    """Note beside its journal that a run is finished, so that no later worker takes it up again."""
    write_json(journal.with_suffix(_DONE), asdict(progress), private=True)


def finished_progress(journal: Path) -> Progress | None:
    """How a finished run ended; None for one that is not finished."""
    values = read_json(journal.with_suffix(_DONE))
    return None if values is None else Progress.from_values(values)


def count_unfinished(folder: Path) -> int:
    """Count the runs of a session that are not finished."""
    return sum(finished_progress(journal) is None for journal in run_files(folder))


def _session_folders(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("*") if (path / SETTINGS_FILE).is_file())


def _load_settings(folder: Path) -> ReconstructionSettings | None:
    try:
        return ReconstructionSettings.load(folder)
    except ValueError as error:  # of a version that has others
        log.warning("the settings of %s cannot be read, its runs are left: %s", folder, error)
        return None


def left_behind(root: Path, catalog: str) -> list[Path]:
    """Sessions of this catalog that no worker has and that hold unfinished runs, oldest first.

    Sessions with nothing left to do and older than the last fifty are removed.
    """
    found, old = [], []
    for folder in _session_folders(root):
        if is_locked(folder / WORKER_LOCK):
            continue
        if not count_unfinished(folder):
            old.append(folder)
        elif (settings := _load_settings(folder)) is not None:
            usable = settings.champion or (settings.model and Path(settings.model).is_dir())
            if usable and is_same_catalog(settings.catalog, catalog):
                found.append(folder)
    for folder in old[:-_SESSIONS_KEPT]:
        shutil.rmtree(folder, ignore_errors=True)
    return found


@dataclass(frozen=True)
class Session:
    """A session as it is found on disk: where its worker stood last, `silent_s` ago, and whether it has one now."""

    folder: Path
    catalog: str  # address
    worker: WorkerStatus
    alive: bool
    unfinished: int  # runs
    silent_s: float = 0.0


def find_sessions(root: Path) -> list[Session]:
    """Sessions under a folder, newest first."""
    found = []
    for folder in reversed(_session_folders(root)):
        settings = _load_settings(folder)
        found.append(
            Session(
                folder,
                catalog="unknown catalog" if settings is None else settings.catalog,
                worker=WorkerStatus.load(folder),
                alive=is_locked(folder / WORKER_LOCK),
                unfinished=count_unfinished(folder),
                silent_s=WorkerStatus.age_s(folder),
            )
        )
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
