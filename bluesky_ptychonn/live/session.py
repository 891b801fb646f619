"""The folder that the callback and its worker share: order, journals, status, log.

The callback's process writes the order and the journals, the worker everything else. Status files are replaced whole,
so a reader never sees half of one.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import logging.handlers
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import orjson

from bluesky_ptychonn.catalog.runs.data_keys import DataKeys
from bluesky_ptychonn.journal.reader import journaled_runs
from bluesky_ptychonn.journal.writer import SUFFIX
from bluesky_ptychonn.live.pipeline.progress import Progress, Timing
from bluesky_ptychonn.optics.framing import PreprocessConfig
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.recon.mosaic.refine_config import Refinement

log = logging.getLogger(__name__)

_ORDER, _STATUS, _DONE, _LOCK, LOG = "order.json", "status.json", ".done", "worker.lock", "worker.log"
SPOOL = "spool"
_SESSIONS_KEPT = 50
_PRECISIONS = ("fp32", "bf16", "fp16")


def journal_root() -> Path:
    """Folder of all sessions: ``$XDG_STATE_HOME/ptychonn/journal``, usually ``~/.local/state/ptychonn/journal``."""
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "ptychonn" / "journal"


def new_session(root: Path) -> Path:
    """Make a session's folder, readable by its owner only."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{os.urandom(3).hex()}"
    folder = root / name
    folder.mkdir(parents=True, mode=0o700)
    return folder


def write_whole(path: Path, values: Any) -> None:
    """Replace a JSON file in one step; readable by its owner only."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY))
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()  # half of it, on a disk that is full
        raise


def read_whole(path: Path) -> dict[str, Any] | None:
    """Read a JSON file that `write_whole` wrote; None where there is none, or something else."""
    try:
        values = orjson.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, orjson.JSONDecodeError):
        return None
    return values if isinstance(values, dict) else None


@dataclass(frozen=True)
class ReconstructionSettings:
    """What a worker is asked to do. Holds no secret.

    Parameters
    ----------
    model : str
        Folder of the model.
    catalog : str
        Address of the catalog's root, ``http(s)://…``.
    geometry : Geometry, optional
        Overrides the start documents'.
    keys : DataKeys
        Which data are frames and positions.
    pace : Timing
        How often things happen.
    device : str
        ``auto``, ``cpu``, ``cuda``.
    batch_size : int
        Frames the network takes at once.
    raw : str
        Container of the runs.
    threads : int
        Threads of the network on a CPU; 0 leaves it to torch.
    nice : int
        Priority the worker gives up, 0 to 19.
    precision : str
        ``fp32``, ``bf16`` or ``fp16``.
    preprocess : PreprocessConfig, optional
        From recorded frames to the network's, instead of the model card's.
    refinement : Refinement, optional
        How to refine mosaics; by default not at all.
    champion : str
        Name whose champion in the catalog is to be used, where there is one; `model` may then be empty.
    spool_mib : int
        Most that results may take on disk while the catalog does not take them, MiB.

    Raises
    ------
    ValueError
        For a precision there is not, or no room for a spool.
    """

    model: str
    catalog: str
    geometry: Geometry | None = None
    keys: DataKeys = field(default_factory=DataKeys)
    pace: Timing = field(default_factory=Timing)
    device: str = "auto"
    batch_size: int = 16
    raw: str = "raw"
    threads: int = 1
    nice: int = 10
    precision: str = "fp32"
    preprocess: PreprocessConfig | None = None
    refinement: Refinement | None = None
    champion: str = ""
    spool_mib: int = 1024

    def __post_init__(self) -> None:
        if self.precision not in _PRECISIONS:
            raise ValueError(f"precision {self.precision!r} is unknown; allowed: {', '.join(_PRECISIONS)}")
        if self.spool_mib < 1:
            raise ValueError(f"spool_mib {self.spool_mib} must be at least 1 MiB")

    def save(self, folder: Path) -> None:
        """Write the order into a session's folder."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        for name in ("geometry", "preprocess", "refinement"):
            values[name] = None if values[name] is None else values[name].model_dump(mode="json")
        write_whole(folder / _ORDER, values | {"keys": asdict(self.keys), "pace": asdict(self.pace)})

    @classmethod
    def load(cls, folder: Path) -> ReconstructionSettings:
        """Read the order of a session.

        Raises
        ------
        ValueError
            When the folder holds none.
        """
        values = read_whole(folder / _ORDER)
        if values is None:
            raise ValueError(f"{folder}: no session of LiveReconstruction ({_ORDER} is missing)")
        for name, kind in (("geometry", Geometry), ("preprocess", PreprocessConfig), ("refinement", Refinement)):
            values[name] = None if values.get(name) is None else kind.model_validate(values[name])
        return cls(**values | {"keys": DataKeys(**values["keys"]), "pace": Timing(**values["pace"])})


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
        write_whole(folder / _STATUS, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> WorkerStatus:
        """Read from a session's folder; what a worker that has not begun yet would say when there is nothing."""
        values = read_whole(folder / _STATUS)
        if values is None:
            return cls()
        runs = {uid: Progress.of(progress) for uid, progress in values.pop("runs", {}).items()}
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
    write_whole(journal.with_suffix(_DONE), asdict(progress))


def done(journal: Path) -> Progress | None:
    """How a finished run ended; None for one that is not finished."""
    values: Mapping[str, Any] | None = read_whole(journal.with_suffix(_DONE))
    return None if values is None else Progress.of(values)


def lock(folder: Path) -> int | None:
    """Make the session this process's own until the descriptor is closed; None when another worker has it."""
    fd = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def unfinished(folder: Path) -> int:
    """Count the runs of a session that are not finished."""
    return sum(done(journal) is None for journal in journaled_runs(folder))


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
    for folder in sorted(path for path in root.glob("*") if (path / _ORDER).is_file()):
        fd = lock(folder)
        if fd is None:
            continue
        os.close(fd)
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
    for folder in sorted((path for path in root.glob("*") if (path / _ORDER).is_file()), reverse=True):
        fd = lock(folder)
        if fd is not None:
            os.close(fd)
        order = _readable(folder)
        age_s = WorkerStatus.age_s(folder)
        catalog = "unknown catalog" if order is None else order.catalog
        found.append(Session(folder, catalog, WorkerStatus.load(folder), fd is None, unfinished(folder), age_s))
    return found


def tidy(folder: Path, keep: int) -> None:
    """Remove the journals of finished runs but the last `keep`; Tiled has all that is in them."""
    finished = sorted(folder.glob(f"*{_DONE}"), key=lambda path: path.stat().st_mtime_ns)
    for path in finished[: max(0, len(finished) - keep)]:
        with contextlib.suppress(FileNotFoundError):
            path.with_suffix(SUFFIX).unlink()


def log_to(folder: Path) -> logging.Handler:
    """Let this package log into the session's folder, a few megabytes at most."""
    handler = logging.handlers.RotatingFileHandler(folder / LOG, maxBytes=1 << 20, backupCount=2, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("bluesky_ptychonn")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return handler
