"""A bounded store of frames to learn from, or to judge by: what is worth most stays, and every kind that was seen.

One ``.npz`` for each run, its frames in the order of their worth, the best first, so that a run can be thinned by
cutting its tail. Files appear whole or not at all; one that cannot be read is left out and said.
"""

from __future__ import annotations

import hashlib
import logging
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bluesky_ptychonn.recon.data.scans import MeasuredScan
from bluesky_ptychonn.recon.learning.novelty import FEATURES, features

_log = logging.getLogger(__name__)
#: A run is not thinned below this; when no other can be, the run most like another one goes.
FEWEST = 8
_THINNED = 0.75  # of a run's frames stay when it is thinned

ScanT = TypeVar("ScanT", bound=MeasuredScan)


@dataclass(frozen=True)
class Kept:
    """What became of a scan that was given to a buffer.

    Attributes
    ----------
    frames : int
        Kept of it.
    left_out : dict of str to int
        Frames that were not, by reason.
    """

    frames: int
    left_out: dict[str, int]


class ReplayBuffer(Generic[ScanT]):
    """Scans in a folder, bounded in bytes.

    When room is short, the run with the most frames is thinned, worst frames first, so that runs tend to equal shares
    however long they were. When no run can be thinned, of the two runs most like each other the older goes: what is
    redundant, not what is old.

    Parameters
    ----------
    folder : Path
        Made when it does not exist; this buffer's alone.
    kind : type
        `MeasuredScan` or `LabelledScan`.
    max_bytes : int
        Of all files together. While a scan is being added or thinned, its file is there twice.
    """

    def __init__(self, folder: Path, kind: type[ScanT], max_bytes: int) -> None:
        self.folder, self._kind, self.max_bytes = folder, kind, max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        for draft in folder.glob(".*.part*"):  # of a writer that was killed
            draft.unlink(missing_ok=True)

    @property
    def files(self) -> list[Path]:
        """Files of the runs, oldest first."""
        return sorted(self.folder.glob("*.npz"))

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(path.stat().st_size for path in self.files)

    def scans(self) -> list[ScanT]:
        """Every run that can be read, oldest first."""
        return [scan for _, scan in self._readable()]

    def features(self) -> NDArray[np.float32]:
        """`features` (m, 96) of all frames kept."""
        return np.concatenate([np.zeros((0, FEATURES), np.float32), *(features(s.counts) for s in self.scans())])

    def add(self, scan: ScanT, trust: ArrayLike, unlike: ArrayLike) -> Kept:
        """Keep a scan's frames, as many as there is room for; one of the same source is replaced.

        Parameters
        ----------
        scan : MeasuredScan or LabelledScan
        trust : (n,) float
            0 to 1; frames with 0 are left out.
        unlike : (n,) float
            See `novelty`. A frame's worth is its trust times this, and a little: trust alone decides among frames that
            are all alike.

        Raises
        ------
        ValueError
            When shapes disagree.
        """
        trusted = np.asarray(trust, dtype=float)
        worth = trusted * (np.asarray(unlike, dtype=float) + 1e-3)
        if worth.shape != (len(scan),):
            raise ValueError(f"replay: {len(scan)} frames of {scan.source}, trust and novelty for {worth.shape}")
        usable = np.isfinite(worth) & (trusted > 0)
        order = np.argsort(-np.where(usable, worth, -1.0), kind="stable")[: int(usable.sum())]
        left_out: dict[str, int] = {"without trust": int(len(scan) - len(order))} if len(order) < len(scan) else {}
        if not len(order):
            return Kept(0, left_out)
        path = self._place(scan.source)
        path.unlink(missing_ok=True)
        kept = scan.select(order).save(path)
        frames = len(order)
        while (over := self.bytes - self.max_bytes) > 0:
            victim = self._victim(kept)
            if victim is None:
                break
            gone = self._thin(victim, over)
            frames -= gone if victim == kept else 0
        if self.bytes > self.max_bytes:
            kept.unlink()
            frames = 0
        if frames < len(order):
            left_out[f"no room in {self.max_bytes} bytes"] = len(order) - frames
        return Kept(frames, left_out)

    def remove(self, source: str) -> None:
        """Forget a run, if it is there."""
        self._place(source).unlink(missing_ok=True)

    def _readable(self) -> list[tuple[Path, ScanT]]:
        found = []
        for path in self.files:
            try:
                found.append((path, self._kind.load(path)))
            except (ValueError, zlib.error) as error:
                _log.warning("replay: left out, %s", error)
        return found

    def _place(self, source: str) -> Path:
        digest = hashlib.sha256(source.encode()).hexdigest()[:16]
        files = self.files
        same = next((path for path in files if path.stem.endswith(digest)), None)
        number = int(files[-1].stem.split("-")[0]) + 1 if files else 0
        return same or self.folder / f"{number:08d}-{digest}.npz"

    def _victim(self, newest: Path) -> Path | None:
        """Which file gives way next: the one with most frames, or the older of the two most alike."""
        frames = {path: _frames_in(path) for path in self.files}
        largest = max(frames, key=lambda path: frames[path])
        if frames[largest] > FEWEST:
            return largest
        found = self._readable()
        unreadable = set(self.files) - {path for path, _ in found}
        if unreadable:
            return min(unreadable)
        if len(found) < 2:
            return None
        means = np.stack([features(scan.counts).mean(axis=0) for _, scan in found])
        apart = np.linalg.norm(means[:, None] - means[None], axis=-1) + np.where(np.eye(len(means)), np.inf, 0)
        older = min(divmod(int(apart.argmin()), len(means)))
        # Never the newest: with two left, the other one.
        return found[older][0] if found[older][0] != newest else found[0][0]

    def _thin(self, path: Path, over: int) -> int:
        """Cut the tail of a run, or take it out; how many frames went."""
        try:
            scan = self._kind.load(path)
        except (ValueError, zlib.error):
            path.unlink()
            return 0
        if len(scan) <= FEWEST:
            path.unlink()
            return len(scan)
        stay = min(max(FEWEST, int(len(scan) * max(0.5, min(_THINNED, 1 - over / path.stat().st_size)))), len(scan) - 1)
        scan.select(slice(0, stay)).save(path)
        return len(scan) - stay


def _frames_in(path: Path) -> int:
    """Count the frames of a file without reading them; 0 where it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return len(file["y_m"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return 0
