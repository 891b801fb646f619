"""What became of frames: their patches, how far to trust them, and what was found wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BEAM_LOST, OUT_OF_RANGE, NOT_FINITE = "beam lost", "intensity out of range", "patch not finite"
NO_MEMORY = "memory ran out"

_LARGEST = 1e9  # of a patch's amplitude: beyond, sums over a mosaic overflow, and one patch would spoil it all


@dataclass(frozen=True)
class PatchBatch:
    """What became of n frames, in their order.

    Attributes
    ----------
    patches : (n, h, w) complex64 ndarray
        Object; pixel ``[h // 2, w // 2]`` lies at the frame's position. NaN where the frame is not valid.
    trust : (n,) float32 ndarray
        0 to 1, see `bluesky_ptychonn.recon.quality.trust`; 0 where the frame is not valid, NaN for valid ones without a
        probe to judge by.
    valid : (n,) bool ndarray
        False where the frame could not be used.
    flag : list of str
        What was found, comma separated, empty for a frame as it should be: ``nan``, ``masked``, ``negative``,
        ``saturated``, ``empty``, ``beam lost``, ``intensity out of range``, ``patch not finite`` (or beyond 1e9),
        ``memory ran out`` (on the CPU, for this frame alone, twice). A flagged frame may be valid.
    """

    patches: NDArray[np.complex64]
    trust: NDArray[np.float32]
    valid: NDArray[np.bool_]
    flag: list[str]

    def __len__(self) -> int:
        return len(self.flag)

    @classmethod
    def unusable(cls, n: int, patch_shape: tuple[int, int], flag: str) -> PatchBatch:
        """Of n frames of which nothing was made, for one reason."""
        patches = np.full((n, *patch_shape), np.nan, np.complex64)
        return cls(patches, np.zeros(n, np.float32), np.zeros(n, bool), [flag] * n)

    @classmethod
    def joined(cls, parts: Sequence[PatchBatch]) -> PatchBatch:
        """All of one or more, in their order."""
        return cls(
            np.concatenate([part.patches for part in parts]),
            np.concatenate([part.trust for part in parts]),
            np.concatenate([part.valid for part in parts]),
            [flag for part in parts for flag in part.flag],
        )


def summable(patches: NDArray[np.complex64]) -> NDArray[np.bool_]:
    """Tell which of patches (n, h, w) a mosaic can take, (n,): finite, and not so large that sums overflow."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray((np.abs(patches) < _LARGEST).all(axis=(1, 2)))
