"""Fakes of the parts of a reconstruction, without torch and without Tiled, and documents of small runs.

For tests here and in packages that build on this one.
"""

from __future__ import annotations

import itertools
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.catalog.results.block import Block
from bluesky_ptychonn.catalog.runs.data_keys import RunLayout
from bluesky_ptychonn.catalog.runs.frame_source import Fetched
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.recon.inference.patch_batch import PatchBatch
from bluesky_ptychonn.recon.mosaic.refine_config import Refinement
from bluesky_ptychonn.recon.mosaic.stitch import MosaicImage
from bluesky_ptychonn.recon.quality.verdict import Verdict

GEOMETRY = Geometry(energy_ev=8800, distance_m=2.0, pixel_pitch_m=75e-6, frame_shape=(16, 16))
Document = tuple[str, dict[str, Any]]


@dataclass
class FakeReconstructor:
    """A `FrameReconstructor` without a network; frames whose first pixel is negative or NaN are flagged."""

    pixel_m: float = 1e-8
    anchor: float = 0.02
    patch_shape: tuple[int, int] = (8, 8)
    calls: list[int] = field(default_factory=list)
    heard: list[float] = field(default_factory=list)
    judgement: Verdict | None = None
    refinement: Refinement | None = None
    probe_factor: float = 1.0

    @property
    def weight(self) -> NDArray[np.float32]:
        """Weight of one everywhere."""
        return np.ones(self.patch_shape, np.float32)

    def reconstruct(self, frames: NDArray[Any]) -> PatchBatch:
        """Make patches; ValueError for frames of another shape than the geometry's."""
        if frames.shape[1:] != GEOMETRY.frame_shape:
            raise ValueError(f"model takes frames of {GEOMETRY.frame_shape} px, got {frames.shape[1:]}")
        self.calls.append(len(frames))
        value = frames[:, 0, 0].astype(np.float32)
        valid = value >= 0
        patches = np.broadcast_to(np.where(valid, value, 0)[:, None, None], (len(frames), *self.patch_shape))
        flags = ["" if ok else "not finite or negative" for ok in valid]
        return PatchBatch(patches.astype(np.complex64), np.ones(len(frames), np.float32), valid, flags)

    def refine(self, image: MosaicImage, frames: NDArray[Any], *_: Any) -> tuple[MosaicImage, dict[str, Any]]:
        """Double the amplitude, and tell of how many frames."""
        return replace(image, amplitude=2 * image.amplitude), {"frames": len(frames), "seconds": 0.0}

    def settle(self) -> None:
        """See `FrameReconstructor.settle`; noted among the calls as -1."""
        self.calls.append(-1)

    def placed(self, patches: NDArray[np.complex64], y_m: NDArray[np.float64], x_m: NDArray[np.float64]) -> None:
        """See `FrameReconstructor.placed`; nothing is judged, the frames' x are kept."""
        self.heard += x_m.tolist()

    def verdict(self) -> Verdict | None:
        """Give the judgement that a test has set."""
        return self.judgement

    def describe(self) -> dict[str, Any]:
        """Describe the model, with the verdict."""
        verdict = {} if self.judgement is None else {"verdict": self.judgement.document()}
        return {"model": {"name": "fake", "version": "0"}, "device": "none", **verdict}


@dataclass
class FakeSource:
    """A `FrameReader` of frames in memory; row → frame; missing rows are not there (yet)."""

    frames: dict[int, NDArray[Any]] = field(default_factory=dict)
    broken: set[int] = field(default_factory=set)
    outage: bool = False
    withheld: bool = False
    reads: list[list[int]] = field(default_factory=list)
    closed: bool = False

    def read(self, rows: Sequence[int]) -> Fetched:
        """Read what is there."""
        self.reads.append(list(rows))
        found = np.array([row in self.frames and row not in self.broken for row in rows], bool)
        broken = np.array([row in self.broken for row in rows], bool)
        there = [self.frames[row] for row, is_found in zip(rows, found, strict=True) if is_found]
        frames = np.stack(there) if there else np.zeros((0, *GEOMETRY.frame_shape))
        problem = "no answer" if self.outage else "" if found.all() else "not there"
        return Fetched(frames, found, broken, problem, unreachable=self.outage, withheld=self.withheld)

    def close(self) -> None:
        """Note it."""
        self.closed = True


@dataclass
class FakeSink:
    """A `Sink` in memory: the table by sequence number, mosaics, metadata."""

    key: str = "result"
    table: dict[int, dict[str, Any]] = field(default_factory=dict)
    blocks: list[list[int]] = field(default_factory=list)
    mosaics: list[MosaicImage] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict)
    status: str = "live"
    errors: Iterator[Exception] = field(default_factory=lambda: iter(()))
    asked_s: float = 0.0
    written: Set[int] = frozenset()
    spooled: Set[int] = frozenset()
    spool_bytes: int = 0
    waits_since: float | None = None
    full: Exception | None = None
    problem: str = ""
    exit_status: str | None = None
    refused: str = ""

    @property
    def behind(self) -> bool:
        """Whether a test has put something into the spool."""
        return bool(self.spooled)

    def make_room(self) -> None:
        """Raise `full`, where a test has set it."""
        if self.full is not None:
            raise self.full

    def deliver(self) -> bool:
        """Whether nothing waits; a test empties `spooled`."""
        return not self.spooled

    def write_block(self, block: Block) -> None:
        """Keep the rows; raise the next of `errors` first."""
        error = next(self.errors, None)
        if error is not None:
            raise error
        self.blocks.append(block.seq_num.tolist())
        names = ("y_m", "x_m", "valid", "flag", "time_raw")
        for i, seq_num in enumerate(self.blocks[-1]):
            row = {name: getattr(block, name)[i] for name in names}
            self.table[seq_num] = {"value": float(block.amplitude[i, 0, 0]), **row}

    def write_mosaic(self, image: MosaicImage, **metadata: Any) -> None:
        """Keep the mosaic, and the metadata."""
        self.mosaics.append(image)
        self.metadata.update(metadata)

    def update(self, **metadata: Any) -> None:
        """Keep the metadata."""
        self.metadata.update(metadata)

    def finish(self, exit_status: str | None, counts: Mapping[str, Any], refused: str = "") -> str:
        """Complete when the run succeeded and every frame has a reconstruction."""
        self.exit_status, self.refused = exit_status, refused
        wanted = max(counts["expected"] or 0, counts["seen"] or 0)
        whole = exit_status == "success" and counts["reconstructed"] == wanted
        whole = whole and not counts.get("unusable_documents")
        self.counts = counts
        self.status = "failed" if refused or exit_status == "fail" or not counts["reconstructed"] else "partial"
        if whole and counts["reconstructed"]:
            self.status = "complete"
        return self.status


@dataclass
class FakeComponentFactory:
    """A `ComponentFactory` of fakes; one source and one sink a run, by its uid."""

    sources: dict[str, FakeSource] = field(default_factory=dict)
    sinks: dict[str, FakeSink] = field(default_factory=dict)
    fake: FakeReconstructor = field(default_factory=FakeReconstructor)
    model: str = "fake/0"
    model_folder: str = ""
    problem: str = ""
    made_by: list[str] = field(default_factory=list)
    behind: set[str] = field(default_factory=set)

    def for_run(self, made_by: str = "") -> FakeComponentFactory:
        """Give itself, with the model that a run began with."""
        self.made_by.append(made_by)
        return replace(self, model=made_by or self.model)

    def reconstructor(self, geometry: Geometry) -> FakeReconstructor:
        """Give the one reconstructor; ValueError for another frame shape."""
        if geometry.frame_shape != GEOMETRY.frame_shape:
            raise ValueError(f"model 'fake' takes {GEOMETRY.frame_shape} px, the detector gives {geometry.frame_shape}")
        return self.fake

    def source(self, start: Mapping[str, Any], stream: str, layout: RunLayout) -> FakeSource:
        """Give the run's frames."""
        return self.sources.setdefault(start["uid"], FakeSource())

    def is_raw_run_complete(self, start: Mapping[str, Any]) -> bool:
        """Whether a test has not put the run among those whose writer is `behind`."""
        return start["uid"] not in self.behind

    def sink(self, start: Mapping[str, Any], metadata: Mapping[str, Any], *_: Any) -> FakeSink:
        """Give the run's result; the same one when asked again."""
        sink = self.sinks.setdefault(start["uid"], FakeSink(key=f"result of {start['uid']}"))
        sink.metadata.update(metadata)
        return sink


def frame_of(seq_num: int) -> NDArray[np.uint16]:
    """Frame that tells its number: every pixel is `seq_num`."""
    return np.full(GEOMETRY.frame_shape, seq_num, np.uint16)


@dataclass
class RunMaker:
    """Documents of a ptychography run, point by point, as a RunEngine emits them.

    Parameters
    ----------
    kind : {"event", "datum", "stream"}
        Frames in the events, classic external, or streamed.
    uid : str
        Of the run.
    md : dict
        Goes into the start document.

    Examples
    --------
    >>> run = RunMaker("stream")
    >>> [name for name, _ in [*run.open(2), *run.point(1, 0.0, 0.0), *run.close()]]
    ['start', 'descriptor', 'stream_resource', 'stream_datum', 'event', 'stop']
    """

    kind: Literal["event", "datum", "stream"] = "stream"
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    md: dict[str, Any] = field(default_factory=dict)
    units: str | None = "um"
    resource: dict[str, Any] = field(default_factory=dict)
    rows: Iterator[int] = field(default_factory=itertools.count)
    dtype_numpy: str = "<u2"

    def __post_init__(self) -> None:
        self.descriptor, self.file, self._announced = str(uuid.uuid4()), str(uuid.uuid4()), False
        self._measured = Counter[int]()

    def start(self, points: int | None = None) -> Document:
        """Make the start document."""
        metadata = {"geometry": GEOMETRY.model_dump(mode="json"), "frame_key": "img", "x_key": "sx", "y_key": "sy"}
        doc = {"uid": self.uid, "time": 1.0, "scan_id": 7, "plan_name": "test", "ptychography": metadata, **self.md}
        return "start", doc if points is None else {**doc, "num_points": points}

    def open(self, points: int | None = None) -> Iterator[Document]:
        """Make start and descriptor."""
        yield self.start(points)
        axis = {"dtype": "number", "shape": [], "source": "motor", **({"units": self.units} if self.units else {})}
        external = {"event": {}, "datum": {"external": "FILESTORE:"}, "stream": {"external": "STREAM:"}}[self.kind]
        shape = list(GEOMETRY.frame_shape)
        image = {"dtype": "array", "shape": shape, "source": "det", "dtype_numpy": self.dtype_numpy, **external}
        keys = {"img": image, "sx": axis, "sy": dict(axis)}
        common = {"object_keys": {}, "configuration": {}, "hints": {}, "time": 1.0}
        yield (
            "descriptor",
            {"uid": self.descriptor, "run_start": self.uid, "name": "primary", "data_keys": keys, **common},
        )

    def point(
        self, seq_num: int, y: float | None, x: float | None, *, frame: bool = True, image: Any = None
    ) -> Iterator[Document]:
        """Make one event with its frame's documents; without them where the detector gave no `frame`."""
        row = next(self.rows) if frame else -1
        if self.kind != "event" and not self._announced and frame:
            self._announced = True
            yield self._announce()
        data: dict[str, Any] = {"sx": x, "sy": y}
        if self.kind == "event":
            data["img"] = frame_of(seq_num) if image is None else image
        elif self.kind == "datum":
            data["img"] = f"{self.file}/{row if frame else f'lost{seq_num}'}"
            if frame:
                yield "datum", {"datum_id": data["img"], "resource": self.file, "datum_kwargs": {"point_number": row}}
        elif frame:
            ranges = {"indices": {"start": row, "stop": row + 1}, "seq_nums": {"start": seq_num, "stop": seq_num + 1}}
            doc = {"uid": f"{self.file}/{row}", "stream_resource": self.file, "descriptor": self.descriptor, **ranges}
            yield "stream_datum", doc
        when = seq_num + 1e-3 * self._measured[seq_num]  # no two events are of one time
        self._measured[seq_num] += 1
        stamps = dict.fromkeys(data, when)
        filled = {"img": False} if self.kind == "datum" else {}
        event = {"uid": str(uuid.uuid4()), "descriptor": self.descriptor, "seq_num": seq_num, "time": when}
        yield "event", {**event, "data": data, "timestamps": stamps, "filled": filled}

    def _announce(self) -> Document:
        if self.kind == "datum":
            kwargs = {"resource_kwargs": {}, "path_semantics": "posix", **self.resource}
            return "resource", {"uid": self.file, "run_start": self.uid, "spec": "AD_HDF5_SWMR", **kwargs}
        parameters = {"dataset": "/entry/data/data", "swmr": True, "chunk_shape": [1, *GEOMETRY.frame_shape]}
        doc = {"uid": self.file, "run_start": self.uid, "data_key": "img", "mimetype": "application/x-hdf5"}
        return "stream_resource", {**doc, "parameters": parameters, **self.resource}

    def close(self, exit_status: str = "success", reason: str = "") -> Iterator[Document]:
        """Make the stop document."""
        doc = {"uid": str(uuid.uuid4()), "run_start": self.uid, "time": 9.0, "exit_status": exit_status}
        yield "stop", {**doc, "reason": reason, "num_events": {}}
