"""How fast a reconstruction goes about its work, and where it stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pydantic import ConfigDict

FINISHED = ("complete", "partial", "failed", "ignored")


@dataclass(frozen=True)
class Timing:
    """How often things happen.

    Parameters
    ----------
    block : int
        Frames that are read, reconstructed and written together, at most.
    flush_s : float
        Longest a frame waits for others to make a block, s.
    mosaic_s : float
        Time between mosaics, s.
    share : float
        Part of the time, at most, that our requests take while the run goes on: the scan's own requests go to the same
        server. A server so slow that this would mean pauses of more than ten times `flush_s` gets no longer ones.
    patience_s : float
        How long after a run's end its missing frames are waited for, s.
    outage_s : float
        How long a catalog that does not answer is tried again once the session is closed, s; before that, always. As
        long is waited then for a raw run that is not whole in the catalog.
    raw_s : float
        How long after a run's end its raw run is waited for to be whole in the catalog, s: its writer may be behind.
        `patience_s` counts from there.
    """

    block: int = 64
    flush_s: float = 0.3
    mosaic_s: float = 0.5
    share: float = 0.2
    patience_s: float = 10.0
    outage_s: float = 30.0
    raw_s: float = 3600.0
    __pydantic_config__ = ConfigDict(extra="forbid")  # for the configurations that hold one

    def __post_init__(self) -> None:
        if self.block < 1 or not 0 < self.share <= 1:
            raise ValueError(f"pace: block {self.block} must be at least 1 frame, share {self.share} within 0 and 1")
        for name in ("flush_s", "mosaic_s", "patience_s", "outage_s", "raw_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"pace: {name} {getattr(self, name)} must not be below 0 s")


@dataclass
class Progress:
    """Where the reconstruction of one run stands.

    Parameters
    ----------
    uid : str
        Of the run.
    scan_id : int or None
        Of the run.
    state : str
        ``waiting`` (no frame yet), ``live``, ``complete``, ``partial``, ``failed`` or ``ignored`` (no ptychography).
    key : str or None
        Uid of the reconstruction, once it is in the catalog.
    expected : int or None
        Frames the plan announced.
    seen, done, waiting : int
        Frames named by documents; reconstructed and in the catalog; neither reconstructed nor rejected yet.
    rejected : dict of str to int
        Frames without a reconstruction, by reason.
    lag_s : float or None
        From a frame's event to its reconstruction readable in the catalog, median of the last block, s; while frames
        wait on disk, how long the first has. By the clock of the session's machine, whatever those of detectors say.
    problem : str
        The last thing that went wrong, in words.
    problem_kind : str
        What that is about, see `ProblemKind`.
    model : str
        ``name/version`` of the model that this run is reconstructed by, from its start to its end.
    spooled : int
        Frames reconstructed that wait on disk for the catalog.
    spool_bytes : int
        What they take there.
    verdict : str
        Whether the run can be believed, as of the last mosaic: ``ok``, ``doubtful`` or ``wrong``, and why, in short.
    """

    uid: str
    scan_id: int | None = None
    state: str = "waiting"
    key: str | None = None
    expected: int | None = None
    seen: int = 0
    done: int = 0
    waiting: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    lag_s: float | None = None
    problem: str = ""
    problem_kind: str = ""
    model: str = ""
    spooled: int = 0
    spool_bytes: int = 0
    verdict: str = ""

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Progress:
        """Make one of what another version of this package wrote: what it does not know is left out."""
        return cls(**{item.name: values[item.name] for item in fields(cls) if item.name in values})

    def as_metadata(self) -> dict[str, Any]:
        """Make what a result's metadata say of it under ``progress``."""
        names = ("seen", "done", "waiting", "spooled", "rejected", "lag_s", "problem")
        return {name: getattr(self, name) for name in names}

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return self.state in FINISHED

    def __str__(self) -> str:
        """One line for people."""
        expected = f"/{self.expected}" if self.expected else ""
        parts = [f"run {self.uid[:8]}", self.state, f"{self.done}{expected} frames reconstructed"]
        if self.waiting:
            parts.append(f"{self.waiting} waiting")
        if self.spooled:
            parts.append(f"{self.spooled} on disk until the catalog takes them ({self.spool_bytes / 2**20:.1f} MiB)")
        parts += [f"{number} rejected ({reason})" for reason, number in self.rejected.items()]
        if self.lag_s is not None and self.state == "live":
            parts.append(f"lag {self.lag_s:.2f} s")
        if self.problem:
            parts.append(self.problem)
        return ", ".join(parts)


@dataclass(frozen=True)
class Status:
    """Where live reconstruction stands.

    Parameters
    ----------
    worker : str
        ``starting``, ``ready``, ``stopped`` or ``failed``.
    device : str
        What the worker computes on.
    restarts : int
        How often the worker died and was started again.
    runs : dict of str to Progress
        By uid of the run, oldest first.
    journal_errors : int
        Documents that could not be journaled, or not yet (disk full, folder gone): their frames are missing here, not
        in the scan.
    problem : str
        The last thing that went wrong, in words.
    problem_kind : str
        What that is about, see `ProblemKind`.
    model : str
        ``name/version`` of the model at work; each run says which it has.
    """

    worker: str
    device: str = ""
    restarts: int = 0
    runs: dict[str, Progress] = field(default_factory=dict)
    journal_errors: int = 0
    problem: str = ""
    problem_kind: str = ""
    model: str = ""

    @property
    def seen(self) -> int:
        """Frames named by documents, of all runs."""
        return sum(run.seen for run in self.runs.values())

    @property
    def done(self) -> int:
        """Frames reconstructed and in the catalog, of all runs."""
        return sum(run.done for run in self.runs.values())

    @property
    def waiting(self) -> int:
        """Frames neither reconstructed nor rejected yet, of all runs."""
        return sum(run.waiting for run in self.runs.values())

    @property
    def spooled(self) -> int:
        """Frames reconstructed that wait on disk for the catalog, of all runs."""
        return sum(run.spooled for run in self.runs.values())

    @property
    def spool_bytes(self) -> int:
        """Bytes on disk that wait for the catalog, of all runs."""
        return sum(run.spool_bytes for run in self.runs.values())

    @property
    def rejected(self) -> dict[str, int]:
        """Frames without a reconstruction, by reason, of all runs."""
        return dict(sum((Counter(run.rejected) for run in self.runs.values()), Counter[str]()))

    def __str__(self) -> str:
        """Lines for people."""
        lines = [f"worker {self.worker}" + (f" on {self.device}" if self.device else "")]
        if self.model:
            lines[0] += f", model {self.model}"
        if self.restarts:
            lines[0] += f", started again {self.restarts} times"
        lines += [str(run) for run in self.runs.values()]
        if self.journal_errors:
            lines.append(f"{self.journal_errors} documents could not be journaled")
        if self.problem:
            lines.append(f"last problem: {self.problem}")
        return "\n".join(lines)
