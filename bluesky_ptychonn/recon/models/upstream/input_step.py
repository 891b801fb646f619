"""What the authors of a published network did to counts before it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from bluesky_ptychonn.optics.numpy_files import read_npy


@dataclass(frozen=True)
class InputStep:
    """What goes into a network: ``(counts - mean) / deviation / scale``, of counts as preprocessing gives them.

    Without arguments counts go in as they are.

    Parameters
    ----------
    root : bool
        Whether the square root of the counts takes their place.
    mean : (N, N) array or float, optional
        Subtracted: the mean pattern of the data it was trained with.
    deviation : (N, N) array or float, optional
        Divided by: their standard deviation, above 0.
    scale : float
        Divided by.
    """

    root: bool = False
    mean: ArrayLike | None = None
    deviation: ArrayLike | None = None
    scale: float = 1.0

    @property
    def standardised(self) -> bool:
        """Whether something is subtracted, or divided by pixel by pixel."""
        return self.mean is not None or self.deviation is not None

    @property
    def words(self) -> str:
        """The step as a card says it."""
        words = "sqrt(counts)" if self.root else "counts"
        words = words if self.mean is None else f"({words} - mean)"
        words = words if self.deviation is None else f"{words} / deviation"
        return words if self.scale == 1 else f"{words} / {self.scale:g}"

    def tensors(self, side: int) -> dict[str, Tensor]:
        """Mean and deviation for a network of frames (N, N), N = `side`; ValueError where they are not for such."""
        if not self.standardised:
            return {}
        mean = _pattern("mean", 0.0 if self.mean is None else self.mean, side)
        deviation = _pattern("deviation", 1.0 if self.deviation is None else self.deviation, side)
        if wrong := int((deviation <= 0).sum()):
            raise ValueError(
                f"input step: the deviation is not above 0 in {wrong} of {side * side} pixels; give there what the "
                "authors' code divided by (often a small number was added, or 1 was taken)"
            )
        return {"input_mean": mean, "input_deviation": deviation}


def _pattern(what: str, given: ArrayLike, side: int) -> Tensor:
    array = np.asarray(given)
    if array.dtype.kind not in "buif" or (array.size != 1 and array.shape[-2:] != (side, side)) or array.size > side**2:
        raise ValueError(
            f"input step: the {what} has shape {array.shape}, {array.dtype}; one real number, or a pattern of "
            f"{side} x {side} px, as the network's frames are, is needed"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"input step: the {what} holds NaN or infinite values")
    return torch.from_numpy(np.array(np.broadcast_to(array.reshape(array.shape[-2:]), (side, side)), np.float32))


def number_or_file(text: str | None, option: str) -> ArrayLike | None:
    """Read what a command line gives for a mean or a deviation: a number, or a ``.npy``."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        path = Path(text)
    if path.suffix != ".npy" or not path.is_file():
        raise ValueError(f"import: {option} {text!r} is neither a number nor a .npy that is there")
    return read_npy(path)
