"""How a camera tells Bluesky where its frames are: Resource and Datum, or StreamResource and StreamDatum.

Both follow what real areaDetector devices emit: ophyd's `FileStoreHDF5IterativeWrite` the first, ophyd-async the
second. The camera composes one of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from event_model import compose_resource, compose_stream_resource

from bluesky_ptychonn.beamline.frames import DATASET

Documents = Literal["stream", "classic"]
Asset = tuple[str, dict[str, Any]]


class ClassicAssets:
    """Resource and Datum, spec ``AD_HDF5_SWMR``, as ophyd's file store mixins emit them.

    `root` is the part of the path that may change when files move; ``resource_path`` is relative to it.
    """

    kind: Documents = "classic"

    def __init__(self, root: Path) -> None:
        self._root = root
        self._pending: deque[Asset] = deque()
        self._bundle: Any = None
        self._reading: dict[str, Any] | None = None

    def open(self, path: Path, frame_shape: tuple[int, int]) -> None:
        """Announce a new file."""
        self._reading = None
        self._bundle = compose_resource(
            spec="AD_HDF5_SWMR",
            root=str(self._root),
            resource_path=str(path.relative_to(self._root)),
            resource_kwargs={"frame_per_point": 1},
            path_semantics="posix",
        )
        self._pending = deque([("resource", self._bundle.resource_doc)])

    def note(self, index: int, timestamp: float) -> None:
        """Make the datum of the frame at `index`."""
        datum = self._bundle.compose_datum(datum_kwargs={"point_number": index})
        self._pending.append(("datum", datum))
        self._reading = {"value": datum["datum_id"], "timestamp": timestamp}

    def data_key(self, frame_shape: tuple[int, int]) -> dict[str, Any]:
        """Describe one point: frames of the exposure, rows, columns, as areaDetector does."""
        return {"shape": [1, *frame_shape], "external": "FILESTORE:"}

    def reading(self) -> dict[str, Any] | None:
        """Datum id of the last frame."""
        return self._reading

    def collect(self) -> Iterator[Asset]:
        """Hand over what was not handed over yet."""
        while self._pending:
            yield self._pending.popleft()


class StreamAssets:
    """StreamResource and StreamDatum, mimetype ``application/x-hdf5``, as ophyd-async emits them for one data key."""

    kind: Documents = "stream"

    def __init__(self, data_key: str) -> None:
        self._data_key = data_key
        self._bundle: Any = None
        self._announced = False
        self._index: int | None = None

    def open(self, path: Path, frame_shape: tuple[int, int]) -> None:
        """Announce a new file."""
        self._bundle = compose_stream_resource(
            mimetype="application/x-hdf5",
            uri=f"file://localhost{path.absolute().as_posix()}",
            data_key=self._data_key,
            parameters={"dataset": DATASET, "swmr": True, "chunk_shape": [1, *frame_shape]},
        )
        self._announced, self._index = False, None

    def note(self, index: int, timestamp: float) -> None:
        """Keep the index for the next `collect`."""
        self._index = index

    def data_key(self, frame_shape: tuple[int, int]) -> dict[str, Any]:
        """Describe one event: rows and columns of its frame."""
        return {"shape": list(frame_shape), "dims": ["row", "column"], "external": "STREAM:"}

    def reading(self) -> dict[str, Any] | None:
        """Return None: events do not mention streamed data."""
        return None

    def collect(self) -> Iterator[Asset]:
        """Hand over the file once, then one StreamDatum a frame; the RunEngine fills in sequence numbers."""
        if self._index is None:
            return
        if not self._announced:
            self._announced = True
            yield "stream_resource", self._bundle.stream_resource_doc
        index, self._index = self._index, None
        yield "stream_datum", self._bundle.compose_stream_datum(indices={"start": index, "stop": index + 1})


def make_assets(documents: Documents, data_key: str, root: Path) -> ClassicAssets | StreamAssets:
    """Choose the form of a camera's external-data documents; ValueError for one that is unknown."""
    if documents == "stream":
        return StreamAssets(data_key)
    if documents == "classic":
        return ClassicAssets(root)
    raise ValueError(f"camera: documents={documents!r} is unknown; allowed: 'stream', 'classic'")
