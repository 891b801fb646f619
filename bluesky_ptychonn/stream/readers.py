"""The two ways to a frame in Tiled: a slice over HTTP, and the HDF5 file on this machine that the catalog names."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.stream.keys import RunError


class HTTPFrames:
    """Frames by slices from the Tiled server."""

    def __init__(self, look_up: Callable[[], Any], node: Any, frame_shape: tuple[int, int]) -> None:
        self._look_up = look_up
        self._node = node
        self._length = int(node.shape[0])
        self._frame_shape = frame_shape

    def get(self, first: int, stop: int) -> NDArray[Any]:
        """Read rows; fewer where there are no more."""
        import httpx

        if first >= self._length and not self.has(first):
            return np.zeros((0, *self._frame_shape), self._node.dtype)
        try:
            response = self._ask_for(first, stop)
        except (httpx.ReadError, httpx.RemoteProtocolError):
            # After an answer of 500 the server closes the connection that the client would use again.
            try:
                response = self._ask_for(first, stop)
            except httpx.HTTPError as error:
                raise ConnectionError(f"catalog does not answer: {error!r}") from None
        except httpx.HTTPError as error:
            raise ConnectionError(f"catalog does not answer: {error!r}") from None
        if response.status_code != httpx.codes.OK:
            raise OSError(f"frames cannot be read through the catalog (HTTP {response.status_code})")
        frames = np.frombuffer(response.content, self._node.dtype)
        if frames.size % int(np.prod(self._frame_shape)):
            raise RunError(f"{self._node.uri}: frames are not {self._frame_shape} px, as the descriptor promises")
        return frames.reshape(-1, *self._frame_shape)

    def _ask_for(self, first: int, stop: int) -> Any:
        # Not node[first:stop]: that checks the slice against the shape the client saw when it looked the node up.
        return self._node.context.http_client.get(
            self._node.item["links"]["full"],
            params={"slice": f"{first}:{stop}"},
            headers={"Accept": "application/octet-stream"},
        )

    def has(self, row: int) -> bool:
        """Whether the catalog knows the row by now."""
        if row >= self._length:
            self._length = int(ask(self._look_up).shape[0])
        return row < self._length


def node_at(root: Any, path: Sequence[str]) -> Any:
    """Client of the node at `path`, in one request; KeyError where there is none, ConnectionError without an answer."""
    from tiled.client.container import Container

    # The base class's way: a catalog of runs takes a tuple for a list of runs.
    return ask(lambda: Container.__getitem__(root, tuple(path)))


def ask(look_up: Callable[[], Any]) -> Any:
    """Look a node up in Tiled; ConnectionError or KeyError when there is no server or no node."""
    import httpx
    from tiled.client.utils import ClientError

    try:
        return look_up()
    except (ClientError, httpx.HTTPError) as error:
        raise ConnectionError(f"catalog does not answer: {error}") from None


class LocalFrames:
    """Frames in HDF5 files on this machine, also while they are being written (SWMR).

    Files are opened without a lock, so that the detector's own writer is never in the way of a reader of ours.
    """

    def __init__(self, paths: Sequence[str], dataset: str, frame_shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
        self._frame_shape = frame_shape
        self._handles: list[Any] = []
        self._datasets: list[Any] = []
        try:
            for path in paths:
                self._open(path, dataset, dtype)
        except BaseException:
            self.close()
            raise

    @classmethod
    def from_data_source(cls, source: Any, frame_shape: tuple[int, int], dtype: np.dtype[Any]) -> LocalFrames:
        """Open the files of a Tiled data source.

        Raises
        ------
        ValueError, OSError, KeyError
            When they are not HDF5, not here, not readable, or not what the catalog says.
        """
        from tiled.utils import path_from_uri

        parameters = source.parameters
        if source.mimetype != "application/x-hdf5" or parameters.get("slice") or parameters.get("squeeze"):
            raise ValueError(f"data of type {source.mimetype} are read through the server")
        assets = sorted(source.assets, key=lambda asset: asset.num or 0)
        paths = [str(path_from_uri(asset.data_uri)) for asset in assets]
        return cls(paths, parameters["dataset"], frame_shape, dtype)

    def _open(self, path: str, dataset: str, dtype: np.dtype[Any]) -> None:
        import h5py
        import hdf5plugin  # noqa: F401  registers the filters that detectors compress with

        if not os.access(path, os.R_OK):
            raise OSError(f"{path} is not readable from here")
        handle = _open_hdf5(h5py.File, path)
        self._handles.append(handle)
        found = handle[dataset]
        frames_of = found.shape[1:] if found.shape[1:] == self._frame_shape else found.shape[2:]
        if frames_of != self._frame_shape or found.dtype != dtype:
            raise ValueError(f"{path}: {dataset} of shape {found.shape} {found.dtype} is not what the catalog says")
        self._datasets.append(found)

    def get(self, first: int, stop: int) -> NDArray[Any]:
        """Read rows, files joined end to end; fewer where there are no more.

        Raises
        ------
        OSError
            When a frame cannot be decoded.
        """
        parts = []
        for base, dataset in zip(self._bases(), self._datasets, strict=True):
            low, high = max(first - base, 0), min(stop - base, len(dataset))
            if low < high:
                parts.append(dataset[low:high].reshape(-1, *self._frame_shape))
        return np.concatenate(parts) if parts else np.zeros((0, *self._frame_shape), self._datasets[0].dtype)

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
