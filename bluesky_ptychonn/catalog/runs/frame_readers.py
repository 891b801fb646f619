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
from bluesky_ptychonn.optics.hdf5 import MOST_BYTES, inside, stay

_MOST_FILES = 256
_COMPARED = 2  # frames of a file to try to compare, at a time
_NOT_NOW = (None, 429, 502, 503, 504)  # states of a catalog that say nothing of the frames


class HTTPFrames:
    """Frames by slices from the Tiled server."""

    def __init__(
        self,
        look_up: Callable[[], Any],
        node: Any,
        frame_shape: tuple[int, int],
        breaker: CircuitBreaker | None = None,
    ) -> None:
        self._look_up = look_up
        self._recording = contextlib.nullcontext if breaker is None else breaker.recording
        self._array = TiledNode(node)
        self._name = node.uri
        self._dtype = node.dtype
        self._length = int(node.shape[0])
        self._frame_shape = frame_shape

    def get(self, first: int, stop: int) -> NDArray[Any]:
        """Read rows; fewer where there are no more.

        Raises
        ------
        KeyError
            When the catalog does not have them (any more).
        ConnectionError
            When it does not answer, or does not give them to this key: no matter of the frames.
        OSError
            When they cannot be read.
        RunError
            When something else than frames is sent.
        """
        if first >= self._length and not self.has(first):
            return np.zeros((0, *self._frame_shape), self._dtype)
        pixels = math.prod(self._frame_shape)
        try:
            # Not node[first:stop]: that checks the slice against the shape the client saw when it looked the node up.
            with self._recording():
                content = self._array.read_slice("", first, stop, pixels * self._dtype.itemsize)
        except TooLargeError:
            raise RunError(f"{self._name}: more than the {stop - first} frames asked for were sent") from None
        except CatalogUnavailableError as error:
            if error.status in _NOT_NOW:
                raise
            raise OSError(f"frames cannot be read through the catalog (HTTP {error.status})") from None
        except CatalogRefusedError as error:
            message = error.lacks or f"HTTP {error.status}"
            if error.status == 404:  # its writer has taken the run back, to write it once more
                raise KeyError(f"frames are not in the catalog ({message})") from None
            if error.status in (401, 403):
                raise ConnectionError(f"catalog does not give frames to this key ({message})") from None
            raise OSError(f"frames cannot be read through the catalog ({message})") from None
        frames = np.frombuffer(content, self._dtype)
        if frames.size % pixels:
            raise RunError(f"{self._name}: frames are not {self._frame_shape} px, as the descriptor promises")
        return frames.reshape(-1, *self._frame_shape)

    def has(self, row: int) -> bool:
        """Whether the catalog knows the row by now."""
        if row >= self._length:
            self._length = int(self._look_up().shape[0])
        return row < self._length


def node_at(root: Any, path: Sequence[str], breaker: CircuitBreaker | None = None) -> Any:
    """Client of the node at `path`, in one request; KeyError where there is none, ConnectionError without an answer."""
    from tiled.client.container import Container

    # The base class's way: a catalog of runs takes a tuple for a list of runs.
    return ask(lambda: Container.__getitem__(root, tuple(path)), breaker)


def ask(look_up: Callable[[], Any], breaker: CircuitBreaker | None = None) -> Any:
    """Look a node up in Tiled; ConnectionError or KeyError when there is no server or no node."""
    import httpx
    from tiled.client.utils import ClientError

    try:
        return look_up()
    except (ClientError, httpx.HTTPError) as error:
        if isinstance(error, ClientError) and error.response.status_code == 404:
            raise KeyError(str(error)) from None
        timed_out = isinstance(error, httpx.TimeoutException)
        unavailable = CatalogUnavailableError(f"catalog does not answer: {error}", timed_out=timed_out)
        if breaker is not None:
            breaker.record_failure(unavailable)
        raise unavailable from None


class UnprovenError(Exception):
    """It cannot be said yet whether a file holds what the server gives."""


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
    frame_shape : tuple of int
        Rows and columns.
    dtype : dtype
        Of the frames.
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

    @classmethod
    def from_data_source(
        cls, source: Any, frame_shape: tuple[int, int], dtype: np.dtype[Any], from_server: Callable[[int], NDArray[Any]]
    ) -> LocalFrames:
        """Open the files of a Tiled data source; see the class.

        Raises
        ------
        ValueError, OSError, KeyError
            When they are not HDF5, not here, not readable, or not what the catalog says.
        """
        from tiled.utils import path_from_uri

        parameters = source.parameters
        if source.mimetype != "application/x-hdf5" or parameters.get("slice") or parameters.get("squeeze"):
            raise ValueError(f"data of type {source.mimetype} are read through the server")
        assets = sorted((asset for asset in source.assets if asset.parameter), key=lambda asset: asset.num or 0)
        if not assets:
            raise ValueError("the catalog names no file")
        paths = [str(path_from_uri(asset.data_uri)) for asset in assets]
        return cls(paths, parameters["dataset"], frame_shape, dtype, from_server)

    def _open(self, path: str, dataset: str, dtype: np.dtype[Any]) -> None:
        import h5py
        import hdf5plugin  # noqa: F401  registers the filters that detectors compress with

        if os.path.normpath(path) != path:
            raise ValueError(f"{path} goes back on its way")  # Tiled (0.2.20) compares such paths by their beginning
        if not os.access(path, os.R_OK):
            raise OSError(f"{path} is not readable from here")
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise ValueError(f"{path} is not a file")  # to open a pipe would wait for somebody to write into it
        handle = _open_hdf5(h5py.File, path)
        self._handles.append(handle)
        found = inside(handle, dataset, path)
        if not isinstance(found, h5py.Dataset) or found.shape is None:
            raise KeyError(f"{path} has no dataset {dataset}")
        frames_of = found.shape[1:] if found.shape[1:] == self._frame_shape else found.shape[2:]
        if frames_of != self._frame_shape or found.dtype != dtype:
            raise ValueError(f"{path}: {dataset} of shape {found.shape} {found.dtype} is not what the catalog says")
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
            stay(dataset, dataset.file.filename)  # `refresh` reads anew where the data are
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
