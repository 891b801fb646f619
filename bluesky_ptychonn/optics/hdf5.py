"""Read a stranger's HDF5 file: sizes before data, and in words what the library says of damage."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Largest array that is read whole, bytes; a probe of 16 modes of 2048 px takes half of it.
MOST_BYTES = 1 << 30


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a file for reading.

    Raises
    ------
    ValueError
        When it, or what is read of it inside the block, is not HDF5, damaged, or cut short.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, RuntimeError) as error:  # a damaged file, a link to nowhere or to itself
        why = error.args[0] if error.args else type(error).__name__
        raise ValueError(f"{path.name}: not a readable HDF5 file, or damaged: {why}") from None


def numbers_at(group: Any, place: str, who: str) -> Any:
    """Dataset of numbers at a place, nothing of it read yet.

    Raises
    ------
    ValueError
        When something else stands there.
    """
    import h5py

    found = group[place]
    if not isinstance(found, h5py.Dataset) or found.shape is None or found.dtype.kind not in "biufc":
        what = f"{found.dtype}" if isinstance(found, h5py.Dataset) else f"a {type(found).__name__.lower()}"
        raise ValueError(f"{who}: {place} holds {what}; numbers are needed there")
    return found


def read_numbers(group: Any, place: str, who: str) -> NDArray[Any]:
    """Read an array of numbers whole.

    Raises
    ------
    ValueError
        When something else stands there, or it is larger than `MOST_BYTES`: a file of a kilobyte may claim any size.
    """
    found = numbers_at(group, place, who)
    size = math.prod(found.shape) * found.dtype.itemsize
    if size > MOST_BYTES:
        raise ValueError(f"{who}: {place} of shape {found.shape} takes {size} bytes; at most {MOST_BYTES} are read")
    return np.asarray(found[()])
