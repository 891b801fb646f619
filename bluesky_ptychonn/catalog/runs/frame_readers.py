"""The two ways to a frame in Tiled: a slice over HTTP, and the HDF5 file on this machine that the catalog names."""

from __future__ import annotations

import contextlib
import math
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.catalog.connection.circuit_breaker import CircuitBreaker
from bluesky_ptychonn.catalog.connection.errors import CatalogRefusedError, CatalogUnavailableError, TooLargeError
from bluesky_ptychonn.catalog.connection.http import TiledNode
from bluesky_ptychonn.catalog.runs.data_keys import RunError
from bluesky_ptychonn.optics.hdf5 import (
    MOST_BYTES,
    find_inside,
    import_h5py,
    refuse_external_data,
    refuse_missing_filter,
)

_MOST_FILES = 256
_COMPARED = 2  # frames of a file to try to compare, at a time
_NOT_NOW = (None, 429, 502, 503, 504)  # states of a catalog that say nothing of the frames


class HTTPFrames:
    """Frames by slices from the Tiled server, parameters as of `TiledFrames`. Made in one request.

    Attributes
    ----------
    shape : tuple of int
        Of the array, when it was looked up.
    dtype : dtype
        Of the frames.

    Raises
    ------
    KeyError
        When the catalog does not have them (any more): this and the following by every method.
    ConnectionError
        When it does not answer, or does not give them to this key: no matter of the frames.
    """

    def __init__(
        self, root: Any, path: Sequence[str], frame_shape: tuple[int, int], breaker: CircuitBreaker | None = None
    ) -> None:
        from tiled.structures.array import ArrayStructure

        self._array = TiledNode(root, path)
        self._frame_shape = frame_shape
        self._recording = contextlib.nullcontext if breaker is None else breaker.recording
        structure = ArrayStructure.from_json(self._look_up()["structure"])
        self.shape: tuple[int, ...] = tuple(structure.shape)
        self.dtype: np.dtype[Any] = structure.data_type.to_numpy_dtype()
        self._length = self.shape[0]

    def get(self, first: int, stop: int) -> NDArray[Any]:
        """Read rows; fewer where there are no more. OSError when that fails, RunError when something else is sent."""
        if first >= self._length and not self.has(first):
            return np.zeros((0, *self._frame_shape), self.dtype)
        pixels = math.prod(self._frame_shape)
        try:
            with self._recording():
                content = self._array.read_slice("", first, stop, pixels * self.dtype.itemsize)
        except TooLargeError:
            raise RunError(f"{self._array.path}: more than the {stop - first} frames asked for were sent") from None
        except CatalogUnavailableError as error:
            if error.status in _NOT_NOW:
                raise
            raise OSError(f"frames cannot be read through the catalog (HTTP {error.status})") from None
        except CatalogRefusedError as error:
            raise _refused(error) from None
        frames = np.frombuffer(content, self.dtype)
        if frames.size % pixels:
            raise RunError(f"{self._array.path}: frames are not {self._frame_shape} px, as the descriptor promises")
        return frames.reshape(-1, *self._frame_shape)

    def has(self, row: int) -> bool:
        """Whether the catalog knows the row by now."""
        if row >= self._length:
            self._length = int(self._look_up()["structure"]["shape"][0])
        return row < self._length

    def data_sources(self) -> list[Any]:
        """Look up where the frames are stored: ``tiled.structures.data_source.DataSource``."""
        from tiled.structures.data_source import DataSource

        return [DataSource.from_json(source) for source in self._look_up(sources=True)["data_sources"]]

    def _look_up(self, *, sources: bool = False) -> dict[str, Any]:
        try:
            with self._recording():
                found = self._array.attributes(sources=sources)
        except CatalogRefusedError as error:
            raise _refused(error) from None
        if found is None:
            raise KeyError("frames are not in the catalog")
        return found


def _refused(error: CatalogRefusedError) -> Exception:
    """Say why frames are not given: a matter of the key or the server is not one of the frames."""
    words = str(error).partition(" answered 422: ")[2]  # the only status with which Tiled says what is wrong
    message = error.lacks or f"HTTP {error.status}" + (words and f": {words}")
    if error.status == 404:  # its writer has taken the run back, to write it once more
        return KeyError(f"frames are not in the catalog ({message})")
    if error.status in (401, 403):
        return ConnectionError(f"catalog does not give frames to this key ({message})")
    return OSError(f"frames cannot be read through the catalog ({message})")


def why_not_given(sources: Sequence[Any], promised: str, *, differs: bool = False, readable_here: bool = False) -> str:
    """Say what to do about an array of which the server gives nothing, though its catalog has it.

    The server answers the same whatever it is; what is known of the file from here tells it apart. Nothing of the file
    itself is said, for see `LocalFrames`.

    Parameters
    ----------
    sources : sequence of DataSource
        Of the array in Tiled.
    promised : str
        What the descriptor says of the data.
    differs, readable_here : bool
        Whether the file, as it can be read on this machine, holds something else, or just that.
    """
    from tiled.utils import path_from_uri

    uris = [asset.data_uri for source in sources for asset in source.assets]
    paths = [Path(path_from_uri(uri)) if uri.startswith("file:") else Path(uri) for uri in uris]
    folders = ", ".join(sorted({str(path.parent) for path in paths})[:3]) or "the detector's files"
    allow = "readable_storage of its configuration (readable=[…] of serve_catalog)"
    if differs:
        names = ", ".join(path.name for path in paths[:3])
        return f"{names}: the descriptor says {promised}, the file holds something else; mend what the device describes"
    if readable_here:
        return f"the server may not read {folders}, or does not see it: add the folder to {allow}"
    return (
        f"the server may not read {folders} (add it to {allow}), does not see the files there, or finds something else "
        f"in them than {promised}, as the descriptor says; its log tells which"
    )


class DiffersError(ValueError):
    """A file does not hold what the catalog says."""


class UnprovenError(Exception):
    """It cannot be said yet whether a file holds what the server gives."""


def files_of(source: Any) -> tuple[list[str], str]:
    """Return the paths of a Tiled data source's HDF5 files, and the dataset in them; ValueError when it has none."""
    from tiled.utils import path_from_uri

    parameters = source.parameters
    if source.mimetype != "application/x-hdf5" or parameters.get("slice") or parameters.get("squeeze"):
        raise ValueError(f"data of type {source.mimetype} are read through the server")
    assets = sorted((asset for asset in source.assets if asset.parameter), key=lambda asset: asset.num or 0)
    if not assets:
        raise ValueError("the catalog names no file")
    return [str(path_from_uri(asset.data_uri)) for asset in assets], parameters["dataset"]


class LocalFrames:
    """Frames in HDF5 files on this machine, also while they are being written (SWMR).

    The catalog names the files, and whoever may write there could name any file of the user that this process runs
    for. So nothing of a file is given out before the server has given the same frame of it: what the server may not
    read (its ``readable_storage``) is not read here either. The file compared stays open, so it cannot be exchanged for
    another, and data that it keeps in other files are not followed.

    Files are opened without a lock, so that the detector's own writer is never in the way of a reader of ours.

    Parameters
    ----------
    paths : sequence of str
        The files, in order; their frames are joined.
    dataset : str
        Place of the frames in each.
    frame_shape, dtype
        Rows and columns of a frame, and its dtype.
    from_server : callable
        ``(row) -> (1, H, W)`` frame as the server gives it, or none where it does not have it yet.

    Raises
    ------
    ValueError
        When the files are not to be read from here, in words.
    OSError, KeyError
        When they are not here (yet), or are not readable.
    """

    def __init__(
        self,
        paths: Sequence[str],
        dataset: str,
        frame_shape: tuple[int, int],
        dtype: np.dtype[Any],
        from_server: Callable[[int], NDArray[Any]],
    ) -> None:
        self._frame_shape = frame_shape
        self._from_server = from_server
        self._handles: list[Any] = []
        self._datasets: list[Any] = []
        self._proven: set[int] = set()
        if len(paths) > _MOST_FILES:
            raise ValueError(f"{len(paths)} files; at most {_MOST_FILES} are kept open")
        try:
            for path in paths:
                self._open(path, dataset, dtype)
        except BaseException:
            self.close()
            raise

    def _open(self, path: str, dataset: str, dtype: np.dtype[Any]) -> None:
        h5py = import_h5py()
        if os.path.normpath(path) != path:
            raise ValueError(f"{path} goes back on its way")  # Tiled (0.2.20) compares such paths by their beginning
        if not os.access(path, os.R_OK):
            raise OSError(f"{path} is not readable from here")
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise ValueError(f"{path} is not a file")  # to open a pipe would wait for somebody to write into it
        handle = _open_hdf5(h5py.File, path)
        self._handles.append(handle)
        found = find_inside(handle, dataset, path)
        if not isinstance(found, h5py.Dataset) or found.shape is None:
            raise KeyError(f"{path} has no dataset {dataset}")
        refuse_missing_filter(found, f"{path}: {dataset}")
        frames_of = found.shape[1:] if found.shape[1:] == self._frame_shape else found.shape[2:]
        if frames_of != self._frame_shape or found.dtype != dtype:
            raise DiffersError(f"{path}: {dataset} of shape {found.shape} {found.dtype} is not what the catalog says")
        if found.chunks is not None and math.prod(found.chunks) * dtype.itemsize > MOST_BYTES:
            raise ValueError(f"{path}: {dataset} has chunks of {found.chunks}, which are unpacked whole")
        self._datasets.append(found)

    def get(self, first: int, stop: int) -> NDArray[Any]:
        """Read rows, files joined end to end; fewer where there are no more.

        Raises
        ------
        ValueError
            When the server does not give the same, or the data lie elsewhere by now: not to be read from here.
        OSError
            When a frame cannot be decoded.
        ConnectionError
            When the server does not answer and has to be asked.
        UnprovenError
            When the server's frame and the file's are not both written yet.
        """
        parts = []
        for number, (base, dataset) in enumerate(zip(self._bases(), self._datasets, strict=True)):
            low, high = max(first - base, 0), min(stop - base, len(dataset))
            if low >= high:
                continue
            refuse_external_data(dataset, dataset.file.filename)  # `refresh` reads anew where the data are
            if number not in self._proven:
                self._prove(number, base, low, high)
            parts.append(dataset[low:high].reshape(-1, *self._frame_shape))
        return np.concatenate(parts) if parts else np.zeros((0, *self._frame_shape), self._datasets[0].dtype)

    def _prove(self, number: int, base: int, low: int, high: int) -> None:
        """Compare one frame with the server's, which is one request."""
        dataset = self._datasets[number]
        for row in range(low, min(high, low + _COMPARED)):
            try:
                here = dataset[row].reshape(self._frame_shape)
                there = self._from_server(base + row)
            except ConnectionError:
                raise
            except OSError:
                continue  # a frame that cannot be decoded tells nothing
            if len(there) and np.array_equal(here, there[0], equal_nan=here.dtype.kind == "f"):
                self._proven.add(number)
                return
            if len(there) and here.any() and there.any():
                raise ValueError(f"{dataset.file.filename}: row {row} is not what the server gives")
            raise UnprovenError
        raise UnprovenError

    @property
    def proven(self) -> bool:
        """Whether any of the files was found to be what the server gives."""
        return bool(self._proven)

    def has(self, row: int) -> bool:
        """Whether the files hold the row."""
        return row < self._bases()[-1] + len(self._datasets[-1])

    def _bases(self) -> list[int]:
        for dataset in self._datasets:
            dataset.refresh()  # not its id: that leaves the length h5py remembers
        lengths = [len(dataset) for dataset in self._datasets]
        return [sum(lengths[:i]) for i in range(len(lengths))]

    def close(self) -> None:
        """Close the files."""
        for handle in self._handles:
            handle.close()
        self._handles.clear()
        self._datasets.clear()


def _open_hdf5(open_file: Callable[..., Any], path: str) -> Any:
    """Open for reading beside a writer: without a lock, else as a writer in this very process has it."""
    ways: tuple[dict[str, Any], ...] = (
        {"libver": "latest", "swmr": True, "locking": False},
        {"libver": "latest", "swmr": True},
        {"locking": False},
    )
    for way in ways[:-1]:
        with contextlib.suppress(OSError, ValueError):
            return open_file(path, "r", **way)
    return open_file(path, "r", **ways[-1])
