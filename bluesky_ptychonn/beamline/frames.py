"""Detector frames on disk: the HDF5 layout of areaDetector's file plugin, readable while it is written."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.optics.geometry import Geometry

DATASET = "/entry/data/data"
"""Where areaDetector's HDF5 plugin puts the frames."""
ATTRIBUTES = "/entry/instrument/NDAttributes"

# Not a zlib stream: whoever inflates this chunk gets an error from HDF5, as from a disk block gone bad.
_GARBAGE = b"\x00\xff" * 16


class FrameProvider(Protocol):
    """What a camera looks at: a simulated experiment or a recorded one."""

    @property
    def geometry(self) -> Geometry:
        """Where the detector stands and what light it sees."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the counts."""

    @property
    def probe_diameter_m(self) -> float | None:
        """Illuminated diameter in m, where it is known."""

    def frame_at(self, y_m: float, x_m: float, exposure: int) -> NDArray[Any]:
        """Frame (N, N) in counts for the beam at object coordinate (y_m, x_m) in m; `exposure` counts from 0."""


class FrameFile:
    """One HDF5 file of frames, one chunk a frame, in single-writer multiple-reader (SWMR) mode.

    Beside the frames it holds what areaDetector adds of its own accord: ``NDArrayUniqueId`` (counts exposures from 1,
    so a gap in it is a frame that never reached the file) and ``NDArrayTimeStamp`` (s since the epoch).

    Only a chunk with a filter (`compression`) can be written unreadable. FileExistsError when the file exists.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = FrameFile(Path(folder) / "frames.h5", (8, 8))
    ...     file.write(0, np.ones((8, 8), np.uint16), unique_id=1, timestamp=0.0)
    ...     file.close()
    ...     file.count
    1
    """

    def __init__(
        self,
        path: Path,
        frame_shape: tuple[int, int],
        dtype: Any = np.uint16,
        compression: Literal["none", "zlib"] = "none",
    ) -> None:
        import h5py

        if path.exists():
            raise FileExistsError(
                f"FrameFile: {path} exists; frames are never overwritten, give another folder or name"
            )
        self.path = path
        self.frame_shape = frame_shape
        self.dtype = np.dtype(dtype)
        self.compression = compression
        self.count = 0
        self._lock = threading.Lock()
        # SWMR needs the latest file format, and all objects in place before it is switched on.
        self._file: Any = h5py.File(path, "w", libver="latest")
        entry = self._file.create_group("entry")
        entry.attrs["NX_class"] = "NXentry"
        entry.attrs["default"] = "data"
        data = entry.create_group("data")
        data.attrs["NX_class"] = "NXdata"
        data.attrs["signal"] = "data"
        self._data = data.create_dataset(
            "data",
            shape=(0, *frame_shape),
            maxshape=(None, *frame_shape),
            chunks=(1, *frame_shape),
            dtype=self.dtype,
            compression="gzip" if compression == "zlib" else None,
            compression_opts=1 if compression == "zlib" else None,
        )
        attributes = self._file.create_group(ATTRIBUTES)
        attributes.attrs["NX_class"] = "NXcollection"
        self._ids = attributes.create_dataset("NDArrayUniqueId", (0,), maxshape=(None,), chunks=(1024,), dtype=np.int32)
        self._times = attributes.create_dataset(
            "NDArrayTimeStamp", (0,), maxshape=(None,), chunks=(1024,), dtype=np.float64
        )
        self._file.swmr_mode = True

    @property
    def closed(self) -> bool:
        """Whether the file was closed."""
        return not self._file

    def write(
        self, index: int, frame: NDArray[Any], *, unique_id: int, timestamp: float, readable: bool = True
    ) -> None:
        """Write one frame (N, N) at `index`, where an earlier one is replaced, and flush it to readers.

        `unique_id` is the number of the exposure, from 1, `timestamp` in s since the epoch. A frame that is not
        `readable` is a chunk that HDF5 cannot decode, a fault for tests. ValueError when the frame does not fit the
        file, or a gap would open.
        """
        if frame.shape != self.frame_shape or frame.dtype != self.dtype:
            raise ValueError(
                f"FrameFile {self.path.name}: got a frame {frame.shape} {frame.dtype}; "
                f"this file holds {self.frame_shape} px {self.dtype}"
            )
        if not readable and self.compression == "none":
            raise ValueError(f"FrameFile {self.path.name}: an unreadable frame needs compression='zlib', got 'none'")
        with self._lock:
            if not 0 <= index <= self.count:
                raise ValueError(f"FrameFile {self.path.name}: index {index} opens a gap; allowed 0 to {self.count}")
            if index == self.count:
                for dataset in (self._data, self._ids, self._times):
                    dataset.resize(index + 1, axis=0)
                self.count = index + 1
            if readable:
                self._data[index] = frame
            else:
                self._data.id.write_direct_chunk((index, 0, 0), _GARBAGE)
            self._ids[index] = unique_id
            self._times[index] = timestamp
            for dataset in (self._ids, self._times, self._data):
                dataset.flush()

    def close(self) -> None:
        """Close the file; again is harmless."""
        with self._lock:
            if self._file:
                self._file.close()
