"""What can go wrong while runs are reconstructed: of which kind it is, and what people are told."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from bluesky_ptychonn.catalog.connection.errors import is_outage


class ProblemKind(StrEnum):
    """What a problem is about; a session's user is told of each kind once, until it is over."""

    UNKNOWN = ""  # none, or noted by a version that knew no kinds
    CATALOG = "catalog"  # does not answer, or not as it should
    DISK = "disk"  # does not take what is to be written
    FRAMES = "frames"  # cannot be read
    INCOMPLETE = "incomplete"  # a run that ended with a part of its frames
    FAILED = "failed"  # a run that ended without a reconstruction
    INTERNAL = "internal"  # a mistake in this program
    JOURNAL = "journal"  # does not take the documents
    MODEL = "model"  # not the one that should be at work
    RAW_RUN = "raw run"  # not whole in the catalog yet
    RUN = "run"  # cannot be reconstructed
    STATUS = "status"  # cannot be read
    WORKER = "worker"  # not there, or silent


class Problem(NamedTuple):
    """A problem, or none; ``status.problem, status.problem_kind = problem`` notes it.

    Parameters
    ----------
    message : str
        In words; empty for none.
    kind : ProblemKind or str
        What it is about.
    """

    message: str = ""
    kind: str = ProblemKind.UNKNOWN

    def __bool__(self) -> bool:
        return bool(self.message)

    @classmethod
    def from_error(cls, error: Exception) -> Problem:
        """Say what an error is about.

        Examples
        --------
        >>> Problem.from_error(ConnectionError("catalog http://c does not answer"))
        Problem(message='catalog http://c does not answer', kind=<ProblemKind.CATALOG: 'catalog'>)
        >>> Problem.from_error(OSError(28, "No space left on device")).kind, Problem.from_error(KeyError("x")).kind
        (<ProblemKind.DISK: 'disk'>, <ProblemKind.INTERNAL: 'internal'>)
        """
        if isinstance(error, ConnectionError):
            return cls(str(error), ProblemKind.CATALOG)
        message = f"{type(error).__name__}: {error}"
        if isinstance(error, OSError) and not isinstance(error, TimeoutError):
            return cls(message, ProblemKind.DISK)
        return cls(message, ProblemKind.CATALOG if is_outage(error) else ProblemKind.INTERNAL)
