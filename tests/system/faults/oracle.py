"""Says of a scan what the catalog must hold of it and what it does hold: frame by frame, beside the frames on disk."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
from numpy.typing import NDArray
from tiled.client.utils import ClientError

from bluesky_ptychonn.catalog.results.client import reconstructions
from tests.system.faults.scene import MODEL, Scan

#: Largest RMS difference between two reconstructions of the same frame (rad-like units of a transmission near one).
SAME = 0.02
FINISHED = ("complete", "partial", "failed")


@dataclass
class Finding:
    """What became of a scan's frames."""

    status: str = ""
    reconstructed: int = 0
    named: dict[str, int] = field(default_factory=dict)
    lost: list[int] = field(default_factory=list)
    doubled: list[int] = field(default_factory=list)
    wrong: list[int] = field(default_factory=list)
    raw_missing: int = 0
    words: str = ""

    @property
    def fine(self) -> bool:
        """Whether every frame is there once, and is the right one, and the raw run is whole."""
        return not (self.lost or self.doubled or self.wrong or self.raw_missing or self.words)


@lru_cache(maxsize=1)
def _reconstructor() -> Any:
    from bluesky_ptychonn.optics.simulate import SimulatedExperiment
    from bluesky_ptychonn.recon.inference.reconstructor import Reconstructor
    from bluesky_ptychonn.recon.models.checkpoint import load_model

    return Reconstructor(load_model(MODEL, "cpu"), SimulatedExperiment.demo().geometry)


def warm_up(root: Any) -> None:
    """Load what the first judgement would load, so that its seconds are not counted as somebody else's."""
    import pyarrow.parquet  # noqa: F401

    _reconstructor()
    reconstructions(root, limit=1)


def wait_until_settled(root: Any, scan: Scan, timeout: float) -> tuple[str, float]:
    """Wait for the run's reconstruction to be finished in the catalog; its key (or "") and when that was seen."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        found = reconstructions(root, raw=scan.uid, limit=5)
        if found and all(one.metadata["status"] in FINISHED for one in found) and raw_events(root, scan.uid)[1]:
            return str(found[0].item["id"]), time.monotonic()
        time.sleep(0.1)
    return "", time.monotonic()


def raw_events(root: Any, uid: str) -> tuple[set[int], bool]:
    """Sequence numbers of the raw run in the catalog, and whether it has its stop document."""
    try:
        run = root["raw"][uid]
        base = getattr(run, "base", run)
        node = getattr(base["primary"], "base", base["primary"])
        (part,) = (part for part in node if part.startswith("internal"))
        numbers = {int(number) for number in node[part].read(["seq_num"])["seq_num"]}
    except (KeyError, ValueError, ClientError):  # not there, or being written anew this very moment
        return set(), False
    return numbers, bool(run.metadata.get("stop"))


def judge(root: Any, scan: Scan, frames: Path) -> Finding:
    """Compare what the catalog holds of a finished scan with the frames that were taken."""
    found = reconstructions(root, raw=scan.uid, limit=5)
    if not found:
        return Finding(lost=sorted(set(scan.events)), words="no reconstruction")
    finding = Finding(status=found[0].metadata["status"])
    if len(found) > 1:
        finding.words = f"{len(found)} reconstructions"
    table = found[0].frames
    taken = sorted(set(scan.events))
    numbers = [int(number) for number in table["seq_num"]]
    finding.lost = sorted(set(taken) - set(numbers))
    finding.doubled = sorted({number for number in numbers if numbers.count(number) > 1})
    # One more than was said is right: its event was journaled, and the session killed before it could say so.
    extra = set(numbers) - set(taken)
    if extra - ({taken[-1] + 1} if taken and scan.error else set()):
        finding.words += f" frames that were never taken: {sorted(extra)}"
    valid = table[table["valid"]]
    finding.reconstructed = len(valid)
    for flag in table[~table["valid"]]["flag"]:
        finding.named[str(flag)] = finding.named.get(str(flag), 0) + 1
    if len(valid):
        finding.wrong = _wrong(found[0], [int(number) for number in valid["seq_num"]], root, scan, frames)
    raw, _ = raw_events(root, scan.uid)
    finding.raw_missing = len(set(taken) - raw)
    return finding


def _wrong(result: Any, numbers: list[int], root: Any, scan: Scan, frames: Path) -> list[int]:
    """Frames whose patches are not what the network makes of the frame on disk."""
    patches = result.patches(numbers)
    written = _frames_of(root, scan.uid, frames)
    if written is None:
        return numbers
    reconstructor = _reconstructor().for_run()
    expected = reconstructor.reconstruct(written).patches
    # What the camera counted when it was read, not the documents of its file, which are what is judged here.
    unsaid = max(scan.rows.values(), default=-1) + 1  # the frame after which its session was killed
    rows = np.array([scan.rows.get(number, unsaid) for number in numbers])
    if rows.max() >= len(expected):
        return [number for number, row in zip(numbers, rows, strict=True) if row >= len(expected)]
    weight = np.asarray(reconstructor.weight, float) / np.sum(reconstructor.weight)
    apart = np.sqrt((weight * np.abs(patches - expected[rows]) ** 2).sum(axis=(1, 2)))
    return [number for number, distance in zip(numbers, apart, strict=True) if not distance < SAME]


def _frames_of(root: Any, uid: str, frames: Path) -> NDArray[Any] | None:
    """Frames of a run in the order of their numbers, from the file that the camera wrote."""
    from tiled.utils import path_from_uri

    node = root["raw"][uid]["primary"]
    node = getattr(node, "base", node)["camera_image"]
    (source,) = node.include_data_sources().data_sources()
    path = Path(str(path_from_uri(source.assets[0].data_uri)))
    if frames not in path.parents:
        return None
    with h5py.File(path, "r", swmr=True, locking=False) as file:  # its writer may have been killed
        data = file[source.parameters["dataset"]][:]
    return np.asarray(data).reshape(-1, *data.shape[-2:])
