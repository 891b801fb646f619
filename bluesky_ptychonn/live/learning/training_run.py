"""A finished run as a learner takes it: its frames, the trust its reconstruction gave them, the verdict on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.catalog.results.client import reconstructions
from bluesky_ptychonn.catalog.runs.data_keys import RunError
from bluesky_ptychonn.catalog.runs.measured import ProbeSetup, measured_run
from bluesky_ptychonn.catalog.runs.stored_documents import find_run
from bluesky_ptychonn.recon.data.scans import MeasuredScan
from bluesky_ptychonn.recon.quality.verdict import Reason

#: Bytes that labelling takes for each byte of the frames (float32), estimated: the frames themselves and their fields.
_COPIES = 8
_NEWEST = 10  # newest reconstructions of a run


@dataclass(frozen=True)
class TrainingRun:
    """A run to learn from.

    Attributes
    ----------
    scan : MeasuredScan
        Its usable frames; `source` is the run's uid.
    trust : (n,) float64 ndarray
        Of each frame, 0 for one that the reconstruction rejected; 1 for one that nothing judged: of a run without a
        reconstruction, or by a model without a probe.
    reasons : tuple of Reason
        Of the reconstruction's verdict.
    made_by : str
        ``name/version`` of the model behind trust and reasons; empty without a reconstruction.
    """

    scan: MeasuredScan
    trust: NDArray[np.float64]
    reasons: tuple[Reason, ...]
    made_by: str


def newest_reconstruction(root: Any, uid: str, name: str) -> Any:
    """Newest finished reconstruction of a run by a model of this name; None without one."""
    for item in reconstructions(root, raw=uid, model=name, limit=_NEWEST):
        if item.metadata.get("status") in ("complete", "partial"):
            return item
    return None


def training_run(
    root: Any, uid: str, model: Any, *, raw: str | None = None, memory_bytes: int | None = None
) -> TrainingRun:
    """Read a run for a champion with a probe; learning from it may take `memory_bytes` at most.

    Raises
    ------
    ValueError
        In words: too large, no geometry, no frames or positions, another detector than the model's.
    ConnectionError
        When the catalog does not answer.
    """
    run = find_run(root, uid, raw)
    result = newest_reconstruction(root, uid, model.card.name)
    counts = {} if result is None else result.metadata.get("counts") or {}
    expected = counts.get("seen") or run.metadata["start"].get("num_points") or 0
    needed = int(expected) * int(np.prod(model.card.input.frame_shape)) * 4 * _COPIES
    if memory_bytes is not None and needed > memory_bytes:
        raise RunError(
            f"its {expected} frames would take {needed / 2**20:.0f} MiB to learn from, {memory_bytes / 2**20:.0f} MiB "
            "are allowed (memory_bytes)"
        )
    read = measured_run(run, ProbeSetup.from_source(model=model))
    scan = MeasuredScan(**{**vars(read.scan), "source": uid})
    if result is None:
        return TrainingRun(scan, np.ones(len(scan)), (), "")
    frames = result.frames
    given = np.where(frames.valid, frames.trust.fillna(1.0), 0.0)
    known = dict(zip(frames.seq_num.tolist(), given.tolist(), strict=True))
    trust = np.array([known.get(int(seq_num), 0.0) for seq_num in read.seq_num], dtype=np.float64)
    by = result.metadata["model"]
    reasons = tuple(Reason.from_text(str(text)) for text in (result.metadata.get("verdict") or {}).get("reasons", ()))
    return TrainingRun(scan, trust, reasons, f"{by['name']}/{by['version']}")
