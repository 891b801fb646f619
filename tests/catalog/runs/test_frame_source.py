"""Frames and stored runs as TiledWriter really lays them out, through a real server."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import h5py
import httpx
import numpy as np
import pytest
from tiled.structures.array import ArrayStructure
from tiled.utils import safe_json_dump

from bluesky_ptychonn.catalog.connection.server import CatalogServer
from bluesky_ptychonn.catalog.raw.tiled_writer import BatchedTiledWriter
from bluesky_ptychonn.catalog.runs.data_keys import DataKeys, RunError
from bluesky_ptychonn.catalog.runs.frame_readers import HTTPFrames, LocalFrames, UnprovenError
from bluesky_ptychonn.catalog.runs.frame_source import TiledFrames, slices
from bluesky_ptychonn.catalog.runs.pairing import NoFrame, RunPairing
from bluesky_ptychonn.catalog.runs.stored_documents import documents_of, find_run
from bluesky_ptychonn.live.pipeline.testing import GEOMETRY, RunMaker, frame_of

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


@pytest.mark.parametrize("local", [False, True])
def test_a_file_that_is_ahead_of_stock_documents_is_read(
    catalog_server: CatalogServer, writer: Any, detector: Any, local: bool
) -> None:
    """Stock ophyd says (1, rows, columns) of a frame; an aborted run leaves a frame in the file that no event names."""
    run = RunMaker("datum")
    camera = detector(run)
    opening = list(run.open(4))
    opening[1][1]["data_keys"]["img"]["shape"] = [1, *GEOMETRY.frame_shape]
    send(writer, opening)
    source = frames_of(catalog_server, run, local=local)
    for seq_num in (1, 2):
        camera.write(seq_num)
        send(writer, run.point(seq_num, 0.0, 0.0))
    camera.write(3)
    running = source.read([0, 1])
    assert numbers(running.frames) == [1, 2], running.problem
    send(writer, run.close("abort"))
    assert numbers(frames_of(catalog_server, run, local=local).read([0, 1]).frames) == [1, 2]
    source.close()


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


@pytest.mark.parametrize("at_first", ["http", "file", "no file yet"])
def test_a_run_that_is_written_anew_is_read_again(
    catalog_server: CatalogServer, writer: Any, detector: Any, at_first: str
) -> None:
    """After an outage the raw writer takes its run back and writes it from the beginning: nothing is lost by that."""
    run = RunMaker("datum")
    camera = detector(run)
    aside = camera.path.with_suffix(".aside")
    camera.write(1)
    documents = [*run.open(4), *run.point(1, 0.0, 0.0)]
    send(writer, documents)
    if at_first == "no file yet":
        camera.path.rename(aside)
    source = frames_of(catalog_server, run, local=at_first != "http")
    assert not source.read([7]).found.any()
    if at_first == "no file yet":
        aside.rename(camera.path)

    catalog_server.raw[run.uid].delete(recursive=True, external_only=False)
    between = source.read([0])
    assert (between.found.tolist(), between.broken.tolist()) == ([False], [False])
    assert (between.problem, between.unreachable) == ("frames are not in the catalog", False)
    send(type(writer)(catalog_server.raw, batch_size=1), documents)
    assert numbers(source.read([0]).frames) == [1]
    assert source.how == ("http" if at_first == "http" else "file")
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


@contextlib.contextmanager
def counted(server: CatalogServer) -> Iterator[list[str]]:
    """Addresses that are asked for meanwhile."""
    hooks, sent = server.client.context.http_client.event_hooks["request"], []
    hooks.append(hook := lambda request: sent.append(str(request.url)))
    try:
        yield sent
    finally:
        hooks.remove(hook)


def test_few_requests(catalog_server: CatalogServer, writer: Any, detector: Any) -> None:
    run = RunMaker("stream")
    camera = detector(run)
    send(writer, run.open())
    for seq_num in range(1, 11):
        camera.write(seq_num)
        send(writer, run.point(seq_num, 0.0, 0.0))
    source = frames_of(catalog_server, run, local=False)
    source.read([0])
    with counted(catalog_server) as sent:
        assert numbers(source.read([1, 2, 4, 9]).frames) == [2, 3, 5, 10]
    assert len(sent) == 1


def test_a_local_file_costs_one_request_and_then_needs_no_catalog(
    catalog_server: CatalogServer, writer: Any, detector: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunMaker("stream")
    camera = detector(run)
    send(writer, run.open())
    for seq_num in range(1, 4):
        camera.write(seq_num)
        send(writer, run.point(seq_num, 0.0, 0.0))
    source = frames_of(catalog_server, run, local=True)
    with counted(catalog_server) as sent:
        assert numbers(source.read([0, 1]).frames) == [1, 2]
        assert source.how == "file"
        assert len([one for one in sent if "slice" in one]) == 1
        sent.clear()
        camera.write(4)  # by the detector, and not in the catalog
        assert numbers(source.read([1, 2, 3]).frames) == [2, 3, 4]
        assert sent == []
    source.close()


SECRET = 7


def secret_file(folder: Path, name: str = "secret.h5") -> Path:
    """A file of ours that the server has no business with."""
    with h5py.File(folder / name, "w") as file:
        file["/entry/data/data"] = np.full((3, *GEOMETRY.frame_shape), SECRET, np.uint16)
    return folder / name


def _elsewhere(readable: Path, private: Path) -> Path:
    return secret_file(private)


def _back_and_out(readable: Path, private: Path) -> Path:
    return readable / ".." / private.relative_to(readable.parent) / secret_file(private).name


def _linked(readable: Path, private: Path) -> Path:
    link = readable / f"{private.name}.h5"
    link.symlink_to(secret_file(private))
    return link


@pytest.mark.parametrize("place", [_elsewhere, _back_and_out, _linked])
def test_a_catalog_cannot_have_other_files_of_ours_read(
    catalog_server: CatalogServer, writer: Any, detector_folder: Path, place: Any, tmp_path_factory: Any
) -> None:
    private = tmp_path_factory.mktemp("private")
    path = place(detector_folder, private)
    run = RunMaker("stream", resource={"uri": f"file://localhost{path}"})
    send(writer, [*run.open(), *run.point(1, 0.0, 0.0), *run.point(2, 0.0, 0.0)])
    for _ in range(2):
        source = frames_of(catalog_server, run, local=True)
        got = source.read([0, 1])
        assert not got.found.any()
        assert SECRET not in got.frames
        assert "cannot be read through the catalog (HTTP 500)" in got.problem
        assert source.how == "http"
        source.close()


@pytest.mark.parametrize(
    ("kind", "local", "words"),
    [
        ("folder", False, r"may not read {folder} \(add it to readable_storage of its configuration .*, does not see"),
        (
            "folder",
            True,
            r"\(HTTP 500\): the server may not read {folder}, or does not see it: add .* readable_storage",
        ),
        ("gone", True, r"may not read {folder} \(add it to readable_storage .*, does not see the files there, or"),
        (
            "dtype",
            False,
            r"or finds something else in them than \[16, 16\] px of uint16 per point, as the descriptor says",
        ),
        ("dtype", True, r"{name}: the descriptor says \[16, 16\] px of uint16 per point, the file holds something"),
        (
            "shape",
            False,
            r"HTTP 422: .*reshape \(3, 32, 32\) array data to \(3, 16, 16\).* finds something else in them",
        ),
        ("shape", True, r"{name}: the descriptor says \[16, 16\] px of uint16 per point, the file holds something"),
    ],
)
def test_a_server_that_gives_no_frame_is_told_what_it_needs(
    catalog_server: CatalogServer,
    writer: Any,
    detector_folder: Path,
    tmp_path: Path,
    kind: str,
    local: bool,
    words: str,
) -> None:
    run = RunMaker("stream")
    folder = tmp_path if kind == "folder" else detector_folder
    path = folder / f"{run.uid}.h5"
    if kind != "gone":
        size, dtype = (32 if kind == "shape" else 16), (np.float32 if kind == "dtype" else np.uint16)
        with h5py.File(path, "w") as file:
            file["/entry/data/data"] = np.full((3, size, size), SECRET, dtype)
    run.resource = {"uri": f"file://localhost{path}"}
    send(writer, [*run.open(), *(doc for number in (1, 2, 3) for doc in run.point(number, 0.0, 0.0)), *run.close()])
    source = frames_of(catalog_server, run, local=local)
    for _ in range(4 if (kind, local) == ("folder", True) else 1):  # until the file here is given up
        got = source.read([0])
        assert got.withheld
        assert not got.found.any()
        found = re.search(words.format(folder=re.escape(str(folder)), name=path.name), got.problem)
        assert found, got.problem
    source.close()


def test_a_folder_of_positions_that_the_server_may_not_read_is_named(
    catalog_server: CatalogServer, writer: Any, tmp_path: Path
) -> None:
    run = RunMaker("stream")
    send(writer, fly_scan(run, tmp_path / "panda.h5", 2, 1))
    with pytest.raises(
        RunError, match=rf"position 'sy' cannot be read .*may not read {tmp_path} \(add it to readable_st"
    ):
        pairing_of(catalog_server, run)


def _external_link(file: h5py.File, private: Path) -> None:
    del file["/entry/data"]
    file["/entry/data"] = h5py.ExternalLink(str(secret_file(private)), "/entry/data")


def _virtual(file: h5py.File, private: Path) -> None:
    shape = (3, *GEOMETRY.frame_shape)
    layout = h5py.VirtualLayout(shape=shape, dtype=np.uint16)
    layout[:] = h5py.VirtualSource(str(secret_file(private)), "/entry/data/data", shape=shape)
    file.create_virtual_dataset("/entry/data/data", layout)


def _raw_outside(file: h5py.File, private: Path) -> None:
    outside = [(str(secret_file(private)), 0, 3 * 2 * 16 * 16)]
    file.create_dataset("/entry/data/data", (3, *GEOMETRY.frame_shape), np.uint16, external=outside)


def _giant_chunk(file: h5py.File, private: Path) -> None:
    del private
    shape, options = GEOMETRY.frame_shape, {"dtype": np.uint16, "compression": "gzip"}
    file.create_dataset("/entry/data/data", (3, *shape), maxshape=(None, *shape), chunks=(4_000_000, *shape), **options)


def _unknown_filter(file: h5py.File, private: Path) -> None:
    del private
    shape, options = GEOMETRY.frame_shape, {"compression": 305, "allow_unknown_filter": True}
    file.create_dataset("/entry/data/data", (3, *shape), np.uint16, chunks=(1, *shape), **options)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_unknown_filter, "packed by the HDF5 filter 305"),
        (_external_link, "a link to the file"),
        (_virtual, "a virtual dataset"),
        (_raw_outside, "kept in the file"),
        (_giant_chunk, "which are unpacked whole"),
    ],
)
def test_a_local_file_does_not_lead_elsewhere(tmp_path: Path, make: Any, words: str) -> None:
    with h5py.File(tmp_path / "frames.h5", "w") as file:
        file["/entry/data/other"] = 0
        make(file, tmp_path)

    def never(row: int) -> Any:
        raise AssertionError

    with pytest.raises(ValueError, match=words):
        LocalFrames([str(tmp_path / "frames.h5")], "/entry/data/data", GEOMETRY.frame_shape, np.dtype(np.uint16), never)


def test_a_file_is_used_when_it_is_what_the_server_gives(tmp_path: Path) -> None:
    def frames(path: Path, same: Any) -> LocalFrames:
        return LocalFrames([str(path)], "/entry/data/data", GEOMETRY.frame_shape, np.dtype(np.uint16), same)

    def away(row: int) -> Any:
        raise ConnectionError("catalog does not answer")

    path, server = secret_file(tmp_path), {"value": SECRET + 1}
    reader = frames(path, lambda row: np.full((1, *GEOMETRY.frame_shape), server["value"], np.uint16))
    with pytest.raises(ValueError, match="row 1 is not what the server gives"):
        reader.get(1, 2)
    server["value"] = 0  # the server saw the file before the frame was written
    with pytest.raises(UnprovenError):
        reader.get(1, 2)
    assert not reader.proven
    server["value"] = SECRET
    # The file was exchanged meanwhile: the one that was compared is the one that is read.
    path.unlink()
    with h5py.File(path, "w") as file:
        file["/entry/data/data"] = np.zeros((3, *GEOMETRY.frame_shape), np.uint16)
    assert numbers(reader.get(0, 3)) == [SECRET] * 3
    reader.close()
    reader = frames(path, away)
    with pytest.raises(ConnectionError):
        reader.get(0, 1)
    reader.close()
    os.mkfifo(tmp_path / "pipe.h5")
    with pytest.raises(ValueError, match=r"pipe.h5 is not a file"):
        frames(tmp_path / "pipe.h5", away)


def test_a_server_inside_this_process_can_open_the_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HDF5 does not open a file twice in one process, once with a lock and once without: a SimpleTiledServer cannot."""
    path, module = secret_file(tmp_path), "bluesky_ptychonn.catalog.runs.frame_source"

    def get(first: int, stop: int) -> Any:
        with h5py.File(path, "r") as file:
            return file["/entry/data/data"][first:stop]

    server = SimpleNamespace(
        shape=(3, *GEOMETRY.frame_shape), dtype=np.dtype(np.uint16), data_sources=lambda: [None], get=get, has=bool
    )
    monkeypatch.setattr(f"{module}.HTTPFrames", lambda *_: server)
    monkeypatch.setattr(f"{module}.files_of", lambda source: ([str(path)], "/entry/data/data"))
    source = TiledFrames(None, ("x", "img"), GEOMETRY.frame_shape)
    assert numbers(source.read([0, 1]).frames) == [SECRET] * 2
    source.close()


def test_sizes_are_looked_at_before_frames_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def source(shape: tuple[int, ...], kind: str) -> TiledFrames:
        monkeypatch.setattr(
            "bluesky_ptychonn.catalog.runs.frame_source.HTTPFrames",
            lambda *_: SimpleNamespace(shape=(1 << 40, *shape), dtype=np.dtype(kind)),
        )
        return TiledFrames(None, ("raw", "x", "primary", "img"), shape)

    with pytest.raises(RunError, match=r"a frame of \[65536, 65536\] px takes 8192 MiB; at most 256 MiB are read"):
        source((65536, 65536), "<u2").read([0])
    with pytest.raises(RunError, match=r"holds \|S1000000; counts, one number a pixel, are needed"):
        source((16, 16), "S1000000").read([0])


@contextlib.contextmanager
def root_of(answer: Any) -> Iterator[Any]:
    """Root of a catalog whose server answers so."""
    with httpx.Client(transport=httpx.MockTransport(answer)) as client:
        yield SimpleNamespace(context=SimpleNamespace(http_client=client, api_uri="http://here"), path_parts=())


def test_more_than_was_asked_for_is_not_taken() -> None:
    import gzip

    bomb = gzip.compress(bytes(1 << 24), 1)

    def answer(request: httpx.Request) -> httpx.Response:
        if "metadata" in request.url.path:
            structure = asdict(ArrayStructure.from_array(np.zeros((2, 16, 16), "<u2")))
            return httpx.Response(200, content=safe_json_dump({"data": {"attributes": {"structure": structure}}}))
        if request.url.params["slice"] == "1:2":
            return httpx.Response(403, text="Requires scopes ['read:data']. Request had scopes ['read:metadata']")
        return httpx.Response(200, content=bomb, headers={"Content-Encoding": "gzip"})

    with root_of(answer) as root:
        reader = HTTPFrames(root, ("raw", "img"), (16, 16))
        with pytest.raises(RunError, match="more than the 1 frames asked for were sent"):
            reader.get(0, 1)
        with pytest.raises(ConnectionError, match=r"to this key \(this key lacks the scope 'read:data'\)"):
            reader.get(1, 2)


def test_shape_that_differs_from_the_descriptor_is_said(
    catalog_server: CatalogServer, writer: Any, detector: Any
) -> None:
    run = RunMaker("event")
    send(writer, [*run.open(), *run.point(1, 0.0, 0.0)])
    source = TiledFrames(catalog_server.client, ("raw", run.uid, "primary", "img"), (32, 32))
    with pytest.raises(RunError, match=r"has \[16, 16\] px per point, the descriptor promises \[32, 32\]"):
        source.read([0])


def test_catalog_that_does_not_answer_is_told_from_missing_frames() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with root_of(refuse) as root:
        got = TiledFrames(root, ("raw", "x", "primary", "img"), (16, 16)).read([0, 1])
    assert got.unreachable
    assert got.problem == "catalog http://here does not answer: refused"


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
    documents = list(documents_of(stored, DataKeys()))
    pairing = RunPairing(documents[0][1], DataKeys())
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
        live = RunPairing(doc, DataKeys()) if live is None else live
        live.feed(name, doc)
    send(writer, documents)
    assert live is not None
    stored = pairing_of(catalog_server, run)
    assert stored.take() == sorted(live.take(), key=lambda ref: ref.seq_num)
    assert stored.stop is not None
    assert stored.stop["exit_status"] == "success"


def fly_scan(run: RunMaker, path: Path, points: int, samples: int) -> Iterator[Any]:
    """Documents of a fly scan as ophyd-async makes them: frames and an encoder's positions in files, and no event."""
    opening = list(run.open(points))
    keys = opening[1][1]["data_keys"]
    for key in ("sx", "sy"):
        keys[key] = {"dtype": "array", "shape": [samples], "source": "panda", "units": "mm", "dtype_numpy": "<f8"}
        keys[key]["external"] = "STREAM:"
    yield from opening
    places = {"img": "/entry/data/data", "sx": "/entry/sx", "sy": "/entry/sy"}
    for key, dataset in places.items():
        parameters = {"dataset": dataset, "chunk_shape": [1]}
        resource = {"uid": f"{run.uid}-{key}", "run_start": run.uid, "data_key": key, "parameters": parameters}
        yield "stream_resource", {**resource, "mimetype": "application/x-hdf5", "uri": f"file://localhost{path}"}
    span = {"indices": {"start": 0, "stop": points}, "seq_nums": {"start": 1, "stop": points + 1}}
    for key in places:
        uid = f"{run.uid}-{key}"
        yield "stream_datum", {"uid": f"{uid}/0", "stream_resource": uid, "descriptor": run.descriptor, **span}
    yield from run.close()


@pytest.mark.parametrize("samples", [1, 5])
def test_positions_of_a_fly_scan_are_read_where_they_lie(
    catalog_server: CatalogServer, writer: Any, detector_folder: Path, samples: int
) -> None:
    run, points = RunMaker("stream"), 4
    path = detector_folder / f"{run.uid}.h5"
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, points, samples))
    with h5py.File(path, "w") as file:
        file["/entry/data/data"] = np.stack([frame_of(number) for number in range(1, points + 1)])
        file["/entry/sx"], file["/entry/sy"] = (np.squeeze(values) for values in (x, y))
    send(writer, fly_scan(run, path, points, samples))
    refs = pairing_of(catalog_server, run).take()
    assert [(ref.seq_num, ref.row) for ref in refs] == [(1, 0), (2, 1), (3, 2), (4, 3)]
    np.testing.assert_allclose([ref.x_m for ref in refs], 1e-3 * x.mean(axis=1))
    np.testing.assert_allclose([ref.y_m for ref in refs], 1e-3 * y.mean(axis=1))


@pytest.mark.parametrize("samples", [1, 4, 40])
def test_samples_of_a_position_in_a_stored_event(catalog_server: CatalogServer, detector: Any, samples: int) -> None:
    """Few of them, as ours writes them too: a server with its tables in SQLite takes no lists in a table."""
    run = RunMaker("stream")
    camera = detector(run)
    documents = [*run.open(3)]
    documents[1][1]["data_keys"]["sx"] |= {"dtype": "array", "shape": [samples], "dtype_numpy": "<f8"}
    x = np.random.default_rng(4).normal(size=(3, samples))
    for seq_num in (1, 2, 3):
        points = list(run.point(seq_num, 0.0, 0.0))
        points[-1][1]["data"]["sx"] = x[seq_num - 1].tolist()
        documents += points
        camera.write(seq_num)
    writer = BatchedTiledWriter(catalog_server.raw, run.uid)
    for name, doc in [*documents, *run.close()]:
        writer.put(name, doc)
        writer.flush()
    refs = pairing_of(catalog_server, run).take()
    np.testing.assert_allclose([ref.x_m for ref in refs], 1e-6 * x.mean(axis=1))


@pytest.mark.parametrize("kind", ["datum", "stream"])
def test_a_counter_that_is_late_moves_no_frame(
    catalog_server: CatalogServer, writer: Any, detector: Any, kind: Kind
) -> None:
    """areaDetector counts a frame after it has said that the exposure is done."""
    run = RunMaker(kind)
    camera = detector(run)
    documents = [*run.open(4)]
    documents[1][1]["data_keys"]["img_hdf1_num_captured"] = {"dtype": "integer", "shape": [], "source": "hdf"}
    for seq_num, captured in ((1, 0), (2, 1), (3, 3), (4, 3)):
        points = list(run.point(seq_num, 0.0, float(seq_num)))
        camera.write(seq_num)
        points[-1][1]["data"]["img_hdf1_num_captured"] = captured
        points[-1][1]["timestamps"]["img_hdf1_num_captured"] = 1.0
        documents += points
    documents += run.close()
    send(writer, documents)
    live = RunPairing(documents[0][1], DataKeys())
    for document in documents:
        live.feed(*document)
    assert pairing_of(catalog_server, run).take() == live.take()


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
    assert pairing.unpaired() == {2: NoFrame.NOT_TAKEN}


def test_what_cannot_be_found_is_said(catalog_server: CatalogServer, writer: Any) -> None:
    with pytest.raises(ValueError, match="no run 'deadbeef-0' in http.*/raw: "):
        find_run(catalog_server.client, "deadbeef-0")
    run = RunMaker("event")
    send(writer, [run.start(), *run.close()])
    with pytest.raises(RunError, match="has no stream 'primary'; it has none"):
        list(documents_of(find_run(catalog_server.client, run.uid), DataKeys()))


def test_digits_are_a_scan_id_or_the_beginning_of_a_uid_whatever_their_number(
    catalog_server: CatalogServer, writer: Any
) -> None:
    def measure(uid: str, scan_id: int) -> str:
        run = RunMaker("event", uid=uid, md={"scan_id": scan_id})
        send(writer, [*run.open(), *run.close()])
        return uid

    def find(which: str | int) -> str:
        return str(find_run(catalog_server.client, which).metadata["start"]["uid"])

    digits = str(uuid.uuid4().int)
    first, second = digits[:8], "9" + digits[8:12]
    measure(f"a{uuid.uuid4()}"[:36], int(first))
    again = measure(f"b{uuid.uuid4()}"[:36], int(first))
    by_uid = measure(second + str(uuid.uuid4())[5:], 3)
    assert find(first) == find(int(first)) == again  # HXN counts in six digits and more
    assert find(second) == by_uid
    other = measure(f"c{uuid.uuid4()}"[:36], int(second))
    with pytest.raises(ValueError, match=f"'{second}' is the scan id of run {other} and the beginning of {by_uid}"):
        find(second)
    assert find(by_uid[:7]) == by_uid
    with pytest.raises(ValueError, match="no run '9{30}' in"):
        find("9" * 30)
    with pytest.raises(ValueError, match="no run '0' in"):
        find("0")


def test_a_run_is_found_by_the_beginning_of_its_uid(catalog_server: CatalogServer, writer: Any) -> None:
    run = RunMaker("event")
    send(writer, [*run.open(), *run.close()])
    assert find_run(catalog_server.client, run.uid[:8]).metadata["start"]["uid"] == run.uid
    stored = catalog_server.raw[run.uid]
    assert find_run(catalog_server.client, stored) is stored
