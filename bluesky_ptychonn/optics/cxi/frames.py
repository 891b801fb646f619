"""Frames of a CXI file: they stay in it until asked for, and come corrected by what it says of its detector."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.optics.framing import PreprocessConfig, framed
from bluesky_ptychonn.optics.hdf5 import numeric_dataset, open_hdf5

#: Bit of a CXI mask that says something good of a pixel: signal above the background. All others condemn it.
HAS_SIGNAL = 0x1000


def marked_bad(mask: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels that a CXI bit mask condemns."""
    return np.asarray((mask.astype(np.int64) & ~HAS_SIGNAL) != 0)


@dataclass(frozen=True)
class FrameCorrection:
    """What becomes of frames as recorded: bad pixels NaN, dark subtracted, divided by the gain, oriented, cut, binned.

    Parameters
    ----------
    framing : PreprocessConfig
        Orientation, window and binning, see `framed`.
    bad : (H, W) bool ndarray, optional
        Pixels that no frame is believed at.
    masks : str, optional
        Dataset with a mask (n, H, W) for each frame.
    dark : (H, W) float32 ndarray, optional
        Counts to subtract.
    gain : (H, W) float32 ndarray or float, optional
        Counts a photon, to divide by.
    """

    framing: PreprocessConfig
    bad: NDArray[np.bool_] | None = None
    masks: str | None = None
    dark: NDArray[np.float32] | None = None
    gain: NDArray[np.float32] | float | None = None

    @property
    def changes_counts(self) -> bool:
        """Whether frames come as float32."""
        given = (self.bad, self.masks, self.dark, self.gain)
        return self.framing.bin > 1 or any(part is not None for part in given)

    def dtype(self, recorded: np.dtype[Any]) -> np.dtype[Any]:
        """Type that frames come in, which are `recorded` in another."""
        return np.dtype(np.float32) if self.changes_counts else recorded

    def apply(self, frames: NDArray[Any], masks: NDArray[Any] | None = None) -> NDArray[Any]:
        """Correct frames (n, H, W), with masks of the same shape where each has one: (n, h, w)."""
        if not self.changes_counts:
            return framed(frames, self.framing)
        counts = frames.astype(np.float32)
        counts[_not_there(frames)] = np.nan
        if self.bad is not None:
            counts[:, self.bad] = np.nan
        if masks is not None:
            counts[marked_bad(masks)] = np.nan
        if self.dark is not None:
            counts -= self.dark
        if self.gain is not None:
            counts /= self.gain
        return framed(counts, self.framing)


def _not_there(frames: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels (n, H, W) whose value is a sign, not counts: of integers the largest two, and -1 and -2.

    Counts below -2 mean that something was subtracted; then -1 and -2 are counts as well. So they are where the pixels
    around are dark: weak read noise.
    """
    if frames.dtype.kind not in "iu":
        return np.zeros(frames.shape, bool)
    marked = frames >= np.iinfo(frames.dtype).max - 1
    if frames.dtype.kind == "i":
        coded = (frames < 0) & (frames.min(axis=(1, 2), keepdims=True) >= -2)
        some = coded.any(axis=(1, 2))
        marked[some] |= coded[some] & _lit(frames[some])
    return np.asarray(marked)


def _lit(frames: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether the median of what a pixel's 5 x 5 neighbours count is 3 or more, or none of them counts, (n, H, W)."""
    from scipy.ndimage import uniform_filter

    known, bright = (
        np.rint(25 * uniform_filter((frames >= least).astype(np.float32), (1, 5, 5), mode="constant"))
        for least in (0, 3)  # read noise that nowhere reaches -3 does not reach 3
    )
    return np.asarray((2 * bright > known) | (known == 0))


@dataclass(frozen=True)
class LazyFrames:
    """Frames that stay in their file until they are asked for.

    Examples
    --------
    ``frames[3]`` is (rows, columns), ``frames[2:5]`` and ``frames[[2, 9]]`` are (n, rows, columns): counts, NaN where
    the file's mask condemns a pixel.
    """

    path: Path
    dataset: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    correction: FrameCorrection | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> NDArray[Any]:
        which, *within = index if isinstance(index, tuple) else (index,)
        with open_hdf5(self.path) as file:
            frames = np.asarray(numeric_dataset(file, self.dataset, self.path.name)[which])
            if self.correction is not None:
                masks = None
                if self.correction.masks is not None:
                    masks = np.asarray(numeric_dataset(file, self.correction.masks, self.path.name)[which])
                    masks = masks.reshape(-1, *masks.shape[-2:])
                corrected = self.correction.apply(frames.reshape(-1, *frames.shape[-2:]), masks)
                frames = corrected.reshape(*frames.shape[:-2], *corrected.shape[1:])
        return frames[(..., *within)] if frames.ndim == 2 else frames[(slice(None), *within)]
