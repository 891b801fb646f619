"""Strangers' HDF5: what it is packed by."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest

from bluesky_ptychonn.optics.hdf5 import numeric_dataset, open_hdf5

FRAMES = np.arange(3 * 16 * 16, dtype=np.uint32).reshape(3, 16, 16)
PACKINGS = {
    "bitshuffle-lz4": hdf5plugin.Bitshuffle(cname="lz4"),
    "lz4": hdf5plugin.LZ4(),
    "zstd": hdf5plugin.Zstd(),
    "blosc": hdf5plugin.Blosc(),
}
_READER = """
import sys
from pathlib import Path
from bluesky_ptychonn.optics.hdf5 import open_hdf5, read_numeric
for path in map(Path, sys.argv[1:]):
    with open_hdf5(path) as file:
        print(path.stem, read_numeric(file, "data", path.name).sum())
"""


def test_frames_packed_as_detectors_do_are_read_by_whoever_opens_them_first(tmp_path: Path) -> None:
    for name, packing in PACKINGS.items():
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file.create_dataset("data", data=FRAMES, chunks=(1, 16, 16), **packing)
    # In a process of its own: here the filters are registered by the import above.
    command = [sys.executable, "-c", _READER, *(str(tmp_path / f"{name}.h5") for name in PACKINGS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [word for name in PACKINGS for word in (name, str(FRAMES.sum()))], done.stderr


def pack_by_unknown_filter(path: Path) -> Path:
    """One frame that says of itself that filter 305 packed it."""
    with h5py.File(path, "w") as file:
        options = {"chunks": (1, 16, 16), "compression": 305, "allow_unknown_filter": True}
        file.create_dataset("data", FRAMES.shape, FRAMES.dtype, **options).id.write_direct_chunk((0, 0, 0), b"packed")
    return path


def test_a_filter_that_is_missing_is_named(tmp_path: Path) -> None:
    path = pack_by_unknown_filter(tmp_path / "odd.h5")
    with open_hdf5(path) as file, pytest.raises(ValueError, match=r"odd.h5: data is packed by the HDF5 filter 305 .*"):
        numeric_dataset(file, "data", path.name)
