"""Frames and stored runs as TiledWriter really lays them out, through a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pytest

from bluesky_ptychonn.stream.catalog_run import documents_of, find_run
from bluesky_ptychonn.stream.keys import Keys, RunError
from bluesky_ptychonn.stream.pairing import NO_FRAME, RunPairing
from bluesky_ptychonn.stream.readers import ask
from bluesky_ptychonn.stream.server import CatalogServer
from bluesky_ptychonn.stream.source import TiledFrames, slices
from bluesky_ptychonn.stream.testing import GEOMETRY, RunMaker, frame_of

pytestmark = pytest.mark.system

Kind = Literal["event", "datum", "stream"]
KINDS: list[Kind] = ["event", "datum", "stream"]


class Detector:
    """Writes the frames of a `RunMaker` into a SWMR file, row by row."""

    def __init__(self, folder: Path, run: RunMaker, *, compressed: bool = False) -> None:
        self.path = folder / f"{run.uid}.h5"
        self.file: Any = h5py.File(self.path, "w", libver="latest")
        options: dict[str, Any] = {"compression": "gzip"} if compressed else {}
        shape = GEOMETRY.frame_shape
        self.data = self.file.create_dataset(
            "/entry/data/data", (0, *shape), maxshape=(None, *shape), chunks=(1, *shape), dtype=np.uint16, **options
        )
        self.file.swmr_mode = True
        root, name = str(self.path.parent), self.path.name
        if run.kind == "datum":
            run.resource = {"root": root, "resource_path": name}
        elif run.kind == "stream":
            run.resource = {"uri": f"file://localhost{self.path}"}

    def write(self, *numbers: int) -> None:
        for number in numbers:
            self.data.resize(len(self.data) + 1, axis=0)
            self.data[-1] = frame_of(number)
        self.data.flush()

    def spoil(self) -> None:
        row = len(self.data)
        self.data.resize(row + 1, axis=0)
        self.data.id.write_direct_chunk((row, 0, 0), b"\x00\xff" * 16)
        self.data.flush()


@pytest.fixture
def writer(catalog_server: CatalogServer) -> Any:
    from bluesky_tiled_plugins import TiledWriter

    return TiledWriter(catalog_server.raw, batch_size=1)


@pytest.fixture
def detector(detector_folder: Path) -> Iterator[Any]:
    made: list[Detector] = []

    def make(run: RunMaker, **options: Any) -> Detector:
        made.append(Detector(detector_folder, run, **options))
        return made[-1]

    yield make
    for one in made:
        one.file.close()


def send(writer: Any, documents: Any) -> None:
    for name, doc in documents:
        writer(name, dict(doc))


def frames_of(server: CatalogServer, run: RunMaker, *, local: bool) -> TiledFrames:
    return TiledFrames(server.client, ("raw", run.uid, "primary", "img"), GEOMETRY.frame_shape, local=local)


def numbers(frames: Any) -> list[int]:
    return [int(frame[0, 0]) for frame in frames]


@pytest.mark.parametrize(("kind", "local"), [("event", True), ("datum", False), ("datum", True), ("stream", False)])
def test_frames_are_read_while_the_run_grows(
    catalog_server: CatalogServer, writer: Any, detector: Any, kind: Kind, local: bool
) -> None:
    run = RunMaker(kind)
    camera = detector(run)
    source = frames_of(catalog_server, run, local=local)

    before = source.read([0])
    assert (before.found.tolist(), before.problem) == ([False], "frames are not in the catalog")
    assert not before.unreachable
    send(writer, run.open(4))
    for seq_num in (1, 2, 3):
        camera.write(seq_num)
        send(writer, run.point(seq_num, 0.0, float(seq_num)))
        got = source.read([seq_num - 1, seq_num])
        assert got.found.tolist() == [True, False]
        assert numbers(got.frames) == [seq_num]
    assert source.how == ("file" if local and kind != "event" else "http")
    camera.write(4)
    send(writer, [*run.point(4, 0.0, 4.0), *run.close()])
    got = source.read([0, 3])
    assert numbers(got.frames) == [1, 4]
    assert got.frames.dtype == np.uint16
    assert got.problem == ""
    source.close()


@pytest.mark.parametrize("local", [True, False])
def test_one_frame_that_cannot_be_decoded_is_told_apart(
    catalog_server: CatalogServer, writer: Any, detector: Any, local: bool
) -> None:
    run = RunMaker("stream")
    camera = detector(run, compressed=True)
    send(writer, run.open(5))
    for seq_num in range(1, 6):
        camera.spoil() if seq_num == 3 else camera.write(seq_num)
        send(writer, run.point(seq_num, 0.0, 0.0))
    send(writer, run.close())
    source = frames_of(catalog_server, run, local=local)
    got = source.read(range(6))
    assert got.found.tolist() == [True, True, False, True, True, False], got.problem
    assert got.broken.tolist() == [False, False, True, False, False, False]
    assert numbers(got.frames) == [1, 2, 4, 5]
    assert got.problem
    source.close()


def test_few_requests(catalog_server: CatalogServer, writer: Any, detector: Any) -> None:
    run = RunMaker("stream")
    camera = detector(run)
    send(writer, run.open())
    for seq_num in range(1, 11):
        camera.write(seq_num)
        send(writer, run.point(seq_num, 0.0, 0.0))
    source = frames_of(catalog_server, run, local=False)
    source.read([0])
    http = catalog_server.client.context.http_client
    sent: list[str] = []
    http.event_hooks["request"].append(hook := lambda request: sent.append(str(request.url)))
    try:
        assert numbers(source.read([1, 2, 4, 9]).frames) == [2, 3, 5, 10]
    finally:
        http.event_hooks["request"].remove(hook)
    assert len(sent) == 1


def test_shape_that_differs_from_the_descriptor_is_said(
    catalog_server: CatalogServer, writer: Any, detector: Any
) -> None:
    run = RunMaker("event")
    send(writer, [*run.open(), *run.point(1, 0.0, 0.0)])
    source = TiledFrames(catalog_server.client, ("raw", run.uid, "primary", "img"), (32, 32))
    with pytest.raises(RunError, match=r"has \[16, 16\] px per point, the descriptor promises \[32, 32\]"):
        source.read([0])


def test_catalog_that_does_not_answer_is_told_from_missing_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    def refuse() -> Any:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr("bluesky_ptychonn.stream.source.node_at", lambda root, path: ask(refuse))
    got = TiledFrames(None, ("raw", "x", "primary", "img"), (16, 16)).read([0, 1])
    assert got.unreachable
    assert got.problem == "catalog does not answer: refused"


def test_runs_at_the_root_of_a_catalog(catalog_server: CatalogServer, writer: Any) -> None:
    run = RunMaker("event")
    send(writer, [*run.open(), *run.point(1, 0.0, 0.0), *run.close()])
    assert find_run(catalog_server.raw, run.uid, raw="").metadata["start"]["uid"] == run.uid
    source = TiledFrames(catalog_server.raw, (run.uid, "primary", "img"), GEOMETRY.frame_shape)
    assert numbers(source.read([0]).frames) == [1]


@pytest.mark.parametrize(
    ("rows", "longest", "expected"),
    [
        ([3], 10, [(3, 4)]),
        ([0, 1, 2, 3], 2, [(0, 2), (2, 4)]),
        ([0, 9, 30], 100, [(0, 1), (9, 10), (30, 31)]),
        ([0, 8, 30], 100, [(0, 9), (30, 31)]),
    ],
)
def test_slices(rows: list[int], longest: int, expected: list[tuple[int, int]]) -> None:
    assert list(slices(rows, longest)) == expected


# -- a run that lies in the catalog


def pairing_of(server: CatalogServer, run: RunMaker) -> RunPairing:
    stored = find_run(server.client, run.uid)
    documents = list(documents_of(stored, Keys()))
    pairing = RunPairing(documents[0][1], Keys())
    for name, doc in documents:
        pairing.feed(name, doc)
    return pairing


@pytest.mark.parametrize("kind", KINDS)
def test_stored_run_gives_what_the_live_one_gave(
    catalog_server: CatalogServer, writer: Any, detector: Any, kind: Kind
) -> None:
    run = RunMaker(kind)
    camera = detector(run)
    live: RunPairing | None = None
    documents = [*run.open(3)]
    for seq_num in (1, 2, 2, 3):  # the second point was measured again after a pause
        documents += run.point(seq_num, 0.5, float(seq_num))
        camera.write(seq_num * 10)
    documents += run.close()
    for name, doc in documents:
        live = RunPairing(doc, Keys()) if live is None else live
        live.feed(name, doc)
    send(writer, documents)
    assert live is not None
    stored = pairing_of(catalog_server, run)
    assert stored.take() == sorted(live.take(), key=lambda ref: ref.seq_num)
    assert stored.stop is not None
    assert stored.stop["exit_status"] == "success"


def test_missed_frames_of_a_stored_run_are_found_by_the_file_plugins_counter(
    catalog_server: CatalogServer, writer: Any, detector: Any
) -> None:
    run = RunMaker("stream")
    camera = detector(run)
    documents, captured = [*run.open(4)], 0
    documents[1][1]["data_keys"]["img_hdf1_num_captured"] = {"dtype": "integer", "shape": [], "source": "hdf"}
    for seq_num in (1, 2, 3, 4):
        points = list(run.point(seq_num, 0.0, float(seq_num), frame=seq_num != 2))
        if seq_num != 2:
            camera.write(seq_num)
            captured += 1
        points[-1][1]["data"]["img_hdf1_num_captured"] = captured
        points[-1][1]["timestamps"]["img_hdf1_num_captured"] = 1.0
        documents += points
    send(writer, [*documents, *run.close()])
    pairing = pairing_of(catalog_server, run)
    assert [(ref.seq_num, ref.row) for ref in pairing.take()] == [(1, 0), (3, 1), (4, 2)]
    assert pairing.unpaired() == {2: NO_FRAME}


def test_what_cannot_be_found_is_said(catalog_server: CatalogServer, writer: Any) -> None:
    with pytest.raises(ValueError, match="no run 'deadbeef-0' in http.* under 'raw'"):
        find_run(catalog_server.client, "deadbeef-0")
    run = RunMaker("event")
    send(writer, [run.start(), *run.close()])
    with pytest.raises(RunError, match="has no stream 'primary'; it has none"):
        list(documents_of(find_run(catalog_server.client, run.uid), Keys()))


def test_a_run_is_found_by_the_beginning_of_its_uid(catalog_server: CatalogServer, writer: Any) -> None:
    run = RunMaker("event")
    send(writer, [*run.open(), *run.close()])
    assert find_run(catalog_server.client, run.uid[:8]).metadata["start"]["uid"] == run.uid
    stored = catalog_server.raw[run.uid]
    assert find_run(catalog_server.client, stored) is stored
