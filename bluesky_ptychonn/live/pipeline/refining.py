"""Mosaics of a run refined by its frames: a little while it runs, whole when it ends."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.array_store import ArrayStore
from bluesky_ptychonn.catalog.runs.pairing import FrameRef
from bluesky_ptychonn.live.pipeline.protocols import FrameReconstructor
from bluesky_ptychonn.recon.mosaic.stitch import MosaicImage

log = logging.getLogger(__name__)

_LIVE_S = 0.5  # frames wait meanwhile
_KEPT_BYTES = 64 * 2**20


class MosaicRefiner:
    """The frames of a run, kept for refinement where the reconstructor's `refinement` asks for it.

    Frames of more than `limit_bytes` are kept in a file (`ArrayStore`); when that cannot be written the run is not
    refined, and its result says so.
    """

    def __init__(self, reconstructor: FrameReconstructor, limit_bytes: int = _KEPT_BYTES) -> None:
        self._reconstructor = reconstructor
        self._limit_bytes = limit_bytes
        self._counts = ArrayStore(limit_bytes)
        self._frames: dict[int, tuple[FrameRef, int]] = {}  # by sequence number: where it lies, and its number there
        self._live = True
        self._problem = ""

    def keep(self, refs: Sequence[FrameRef], frames: NDArray[Any], valid: NDArray[np.bool_]) -> None:
        """Keep the valid ones of frames (n, H, W); of two with one sequence number the last."""
        if self._reconstructor.refinement is None or self._problem:
            return
        for ref, counts, is_valid in zip(refs, frames, valid, strict=True):
            self.forget(ref.seq_num)
            if is_valid:
                self._frames[ref.seq_num] = ref, len(self._counts)
                try:
                    self._counts.append(counts)
                except (OSError, ValueError) as error:
                    self._problem = f"the run's frames cannot be kept: {error}"
                    self._frames.clear()
                    self._counts.clear()
                    return

    def forget(self, seq_num: int) -> None:
        """Drop a frame that is measured again."""
        self._frames.pop(seq_num, None)

    def refine_live(self, image: MosaicImage) -> MosaicImage:
        """Refine a mosaic of a run that goes on for half a second; larger ones wait for the run's end."""
        if not self._live or not self._frames:
            return image
        refined, record = self._refine(image, _LIVE_S)
        if record.get("seconds", 0.0) > 2 * _LIVE_S:
            self._live = False
        return refined

    def refine_final(self, image: MosaicImage) -> tuple[MosaicImage, dict[str, Any] | None]:
        """Refine the last mosaic of a run; also what was done, or why nothing was, or None where nothing was asked."""
        if self._reconstructor.refinement is None:
            return image, None
        if self._problem:
            return image, {"skipped": self._problem}
        if not self._frames:
            return image, {"skipped": "no frame"}
        return self._refine(image, float("inf"))

    def _refine(self, image: MosaicImage, within_s: float) -> tuple[MosaicImage, dict[str, Any]]:
        # By sequence number: the picture depends on the order of the sweeps, which must not depend on that of arrival.
        refs, numbers = zip(*(self._frames[seq_num] for seq_num in sorted(self._frames)), strict=True)
        y_m, x_m = np.array([ref.y_m for ref in refs]), np.array([ref.x_m for ref in refs])
        try:
            return self._reconstructor.refine(image, self._in_order(numbers), y_m, x_m, within_s)
        except (ValueError, RuntimeError, MemoryError, OSError) as error:  # no probe; memory or disk that is full
            log.warning("not refined: %s", error)
            self._live = False
            return image, {"skipped": str(error)}

    def _in_order(self, numbers: Sequence[int]) -> NDArray[Any]:
        """Frames (n, H, W) of these numbers."""
        if list(numbers) != list(range(len(self._counts))):
            ordered = ArrayStore(self._limit_bytes)
            for number in numbers:
                ordered.append(self._counts[number])
            self._counts.clear()
            self._counts = ordered
            self._frames = {
                seq_num: (self._frames[seq_num][0], number) for number, seq_num in enumerate(sorted(self._frames))
            }
        return self._counts.whole()
