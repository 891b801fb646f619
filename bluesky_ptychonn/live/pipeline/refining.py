"""Mosaics of a run refined by its frames: a little while it runs, whole when it ends."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.catalog.runs.pairing import FrameRef
from bluesky_ptychonn.live.pipeline.protocols import FrameReconstructor
from bluesky_ptychonn.recon.mosaic.stitch import MosaicImage

log = logging.getLogger(__name__)

_LIVE_S = 0.5  # frames wait meanwhile
_KEPT_BYTES = 2**28  # refining takes about six times as much for a moment


class MosaicRefiner:
    """The frames of a run, kept for refinement where the reconstructor's `refinement` asks for it.

    A run with frames of more than `limit_bytes` is not refined, and its result says so.
    """

    def __init__(self, reconstructor: FrameReconstructor, limit_bytes: int = _KEPT_BYTES) -> None:
        self._reconstructor = reconstructor
        self._limit_bytes = limit_bytes
        self._frames: dict[int, tuple[FrameRef, NDArray[Any]]] = {}
        self._bytes = 0
        self._live = True
        self._too_many = False

    def keep(self, refs: Sequence[FrameRef], frames: NDArray[Any], valid: NDArray[np.bool_]) -> None:
        """Keep the valid ones of frames (n, H, W); of two with one sequence number the last."""
        if self._reconstructor.refinement is None or self._too_many:
            return
        for ref, counts, is_valid in zip(refs, frames, valid, strict=True):
            self.forget(ref.seq_num)
            if is_valid:
                self._frames[ref.seq_num] = ref, counts.copy()
                self._bytes += counts.nbytes
        if self._bytes > self._limit_bytes:
            self._frames.clear()
            self._too_many = True

    def forget(self, seq_num: int) -> None:
        """Drop a frame that is measured again."""
        if seq_num in self._frames:
            self._bytes -= self._frames.pop(seq_num)[1].nbytes

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
        if self._too_many:
            message = f"the run's frames exceed {self._limit_bytes / 2**20:.0f} MiB; refine a part of them"
            return image, {"skipped": message}
        if not self._frames:
            return image, {"skipped": "no frame"}
        return self._refine(image, float("inf"))

    def _refine(self, image: MosaicImage, within_s: float) -> tuple[MosaicImage, dict[str, Any]]:
        refs, counts = zip(*self._frames.values(), strict=True)
        y_m, x_m = np.array([ref.y_m for ref in refs]), np.array([ref.x_m for ref in refs])
        try:
            return self._reconstructor.refine(image, np.stack(counts), y_m, x_m, within_s)
        except (ValueError, RuntimeError, MemoryError) as error:  # no probe; memory that does not suffice
            log.warning("not refined: %s", error)
            self._live = False
            return image, {"skipped": str(error)}
