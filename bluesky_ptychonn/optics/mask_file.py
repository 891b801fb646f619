"""Read a detector's mask of bad pixels from the files beamlines keep it in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.optics.hdf5 import find_first, open_hdf5, read_numeric
from bluesky_ptychonn.optics.numpy_files import read_npy, read_npz

_HDF5 = (".h5", ".hdf5", ".nxs")
_SUFFIXES = (".npy", ".npz", ".tif", ".tiff", *_HDF5)
# NeXus, as Dectris' master files have it, and what they had before; then what people call it.
_PLACES = (
    "entry/instrument/detector/pixel_mask",
    "entry/instrument/detector/detectorSpecific/pixel_mask",
    "pixel_mask",
    "mask",
)


def read_mask(source: str | os.PathLike[str]) -> NDArray[np.bool_]:
    """Read which pixels of a recorded frame are never believed.

    Parameters
    ----------
    source : str or path
        ``.npy``, ``.npz`` (array ``mask``), ``.tif``, or HDF5 with ``mask`` or the ``pixel_mask`` of NeXus. In all of
        them 0 is a good pixel, and anything else a bad one, as pyFAI and NeXus have it.

    Returns
    -------
    (H, W) bool ndarray
        True at bad pixels.

    Raises
    ------
    ValueError
        In words: no such file, no mask in it, not rows and columns, or most of it bad: the other way round.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        raise ValueError(f"mask {str(source)!r}: no such file; give {', '.join(_SUFFIXES)}")
    array = _read(path)
    if array.ndim != 2 or not array.size or array.dtype.kind not in "biuf":
        raise ValueError(f"{path.name}: mask of shape {array.shape}, {array.dtype}; rows and columns are needed")
    bad = array != 0
    if bad.mean() > 0.5:
        raise ValueError(
            f"{path.name}: {bad.mean():.0%} of the pixels would be bad. 0 is a good pixel and anything else a bad one; "
            "is the mask the other way round?"
        )
    return np.asarray(bad)


def _read(path: Path) -> NDArray[Any]:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return read_npy(path)
    if suffix == ".npz":
        return read_npz(path, ("mask",), "mask")["mask"]
    if suffix in (".tif", ".tiff"):
        import tifffile

        try:
            return np.asarray(tifffile.imread(path))
        except Exception as error:  # noqa: BLE001  # a stranger's file: whatever the decoder makes of it
            raise ValueError(f"{path.name}: not a readable TIFF: {error}") from None
    if suffix in _HDF5:
        with open_hdf5(path) as file:
            if (place := find_first(file, _PLACES, path.name)) is not None:
                return read_numeric(file, place, path.name)
        raise ValueError(f"{path.name}: no mask in it; looked for {', '.join(_PLACES)}")
    raise ValueError(f"{path.name}: a mask is read from {', '.join(_SUFFIXES)}")
