"""Raw runs while the catalog dies, hangs or is not there, and while the session itself is killed."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from bluesky_ptychonn.catalog.connection.server import CatalogServer, serve_catalog
from bluesky_ptychonn.catalog.raw import connection as raw_catalog
from bluesky_ptychonn.catalog.raw import delivery as raw_delivery
from bluesky_ptychonn.catalog.raw.event_count import read_back
from bluesky_ptychonn.catalog.raw.writer import RawWriter, raw_writer, recover
from bluesky_ptychonn.journal import append_file as run_file
from bluesky_ptychonn.journal.reader import JournalReader
from bluesky_ptychonn.journal.router import Journal
from bluesky_ptychonn.live.pipeline.testing import GEOMETRY, RunMaker, frame_of
from tests.system.faults.proxy import Proxy

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

Make = Callable[..., RawWriter]


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_catalog, "_REQUEST_S", 1.5)
    monkeypatch.setattr(raw_catalog, "_PROBE_S", 1.0)
    monkeypatch.setattr(raw_delivery, "_AWAY_S", (0.1, 0.2))
    monkeypatch.setattr(raw_delivery, "_IDLE_S", 0.1)
    monkeypatch.setattr(raw_delivery, "_SILENT_S", 2.0)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Make writers that are closed afterwards."""
    made: list[RawWriter] = []

    def make(catalog: Any, backup: Path | None = None) -> RawWriter:
        made.append(raw_writer(catalog, backup or tmp_path / "backup"))
        return made[-1]

    yield make
    for writer in made:
        writer.close(5)


def until(condition: Callable[[], Any], what: Any = "", timeout: float = 30.0) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def events(server: CatalogServer, uid: str, stream: str = "primary") -> list[int]:
    return sorted(read_back(server.raw, uid)[stream].tolist())


def whole(run: RunMaker, points: int = 3) -> list[tuple[str, dict[str, Any]]]:
    return [*run.open(points), *(doc for n in range(1, points + 1) for doc in run.point(n, 0.0, 0.1 * n)), *run.close()]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def feed(writer: Any, documents: Any) -> float:
    """Hand over documents; the longest time that one took."""
    longest = 0.0
    for name, doc in documents:
        began = time.perf_counter()
        writer(name, doc)
        longest = max(longest, time.perf_counter() - began)
    return longest


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[int], CatalogServer]]:
    """Serve one folder, again and again whatever became of the server before."""
    servers: list[CatalogServer] = []

    def serve(port: int) -> CatalogServer:
        for server in servers:
            server.close()
        servers.append(serve_catalog(tmp_path / "catalog", port=port, api_key="secret"))
        return servers[-1]

    yield serve
    for server in servers:
        server.close()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def test_a_catalog_that_goes_away_in_the_midst_of_a_run_gets_each_event_once(
    catalog_server: CatalogServer, proxy: Proxy, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way to it is cut; a server that dies is in the next test."""
    from tiled.client import utils

    monkeypatch.setattr(utils, "TILED_RETRY_ATTEMPTS", 1)
    writer, run = make(f"http://127.0.0.1:{proxy.port}?api_key={catalog_server.api_key}"), RunMaker("event")
    documents = whole(run, 6)
    feed(writer, documents[:4])
    until(lambda: run.uid in catalog_server.raw and "primary" in catalog_server.raw[run.uid], writer)
    proxy.refuse()
    assert feed(writer, documents[4:]) < 0.5
    until(lambda: "the catalog is away" in writer.problem, writer)
    assert writer.pending == [run.uid]
    proxy.mend()
    until(lambda: not writer.pending, writer)
    assert "all runs delivered" in repr(writer)
    assert events(catalog_server, run.uid) == [1, 2, 3, 4, 5, 6]
    assert catalog_server.raw[run.uid].stop["exit_status"] == "success"


@pytest.mark.slow
def test_a_catalog_that_is_late_dies_comes_back_elsewhere_and_hangs(
    serve: Callable[[int], CatalogServer], make: Make, RE: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One story, because a server takes seconds to start."""
    from bluesky.plans import list_scan
    from ophyd.sim import SynAxis, SynSignal
    from tiled.client import utils

    monkeypatch.setattr(utils, "TILED_RETRY_ATTEMPTS", 1)
    port, other_port = free_ports(2)
    early_writer = make(f"http://127.0.0.1:{port}?api_key=secret", tmp_path / "early")
    early = RunMaker("event")
    assert feed(early_writer, whole(early)) < 0.5
    assert "the catalog is away" in repr(early_writer)
    server = serve(port)
    until(lambda: not early_writer.pending, early_writer)
    assert events(server, early.uid) == [1, 2, 3]
    assert (early_writer.problem, early_writer.close()) == ("", True)

    motor = SynAxis(name="motor")
    camera = SynSignal(name="camera", func=lambda: np.full((8, 8), motor.position))
    times: list[float] = []
    writer = make(server.folder)
    RE.subscribe(writer)

    def kill_in_the_middle(name: str, doc: dict[str, Any]) -> None:
        times.append(time.monotonic())
        if name == "event" and doc["seq_num"] == 4:
            until(lambda: len(server.raw) == 2)  # a part of the run is in the catalog
            os.kill(server.pid, signal.SIGKILL)

    RE.subscribe(kill_in_the_middle)
    (uid,) = RE(list_scan([camera], motor, list(range(8))))
    assert max(np.diff(times[6:])) < 1.0
    assert writer.pending == [uid]
    until(lambda: "the catalog is away" in writer.problem)
    server = serve(other_port)
    until(lambda: not writer.pending, writer)
    assert "all runs delivered" in repr(writer)
    run = server.raw[uid]
    assert run.stop["exit_status"] == "success"
    np.testing.assert_array_equal(run["primary"]["motor"].read(), np.arange(8))
    assert run["primary"]["camera"].read().shape == (8, 8, 8)

    os.kill(server.pid, signal.SIGSTOP)  # and now it hangs
    hung, late = RunMaker("event"), RunMaker("event")
    assert feed(writer, whole(hung)) < 0.5
    until(lambda: "the catalog is away" in writer.problem)
    assert feed(writer, whole(late)) < 0.5
    began = time.monotonic()
    assert not writer.close(30)
    assert time.monotonic() - began < 6.0
    os.kill(server.pid, signal.SIGCONT)
    assert {one.outcome for one in recover(server.folder, writer.folder)} == {"recovered"}
    assert [events(server, run.uid) for run in (hung, late)] == [[1, 2, 3]] * 2
    for kept in writer.folder.iterdir():
        kept.rename(kept.with_suffix(""))  # as if the renaming had not happened
    assert [again.outcome for again in recover(server.folder, writer.folder)] == ["already there"] * 2


def test_a_server_that_refuses_for_a_while_gets_each_event_once(
    catalog_server: CatalogServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every third request is answered 503, half of those after the server did what was asked."""
    import httpx

    count = 0
    plain = httpx.Client.send

    def send(self: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        nonlocal count
        count += 1
        if count < 60 and count % 3 == 0:
            if count % 2:
                plain(self, request, **options)
            return httpx.Response(503, request=request)
        return plain(self, request, **options)

    monkeypatch.setattr(httpx.Client, "send", send)
    monkeypatch.setattr(raw_delivery, "_REFUSED_S", (0.05, 0.1))
    writer, run = make(catalog_server), RunMaker("event")
    feed(writer, whole(run, 5))
    until(lambda: not writer.pending, writer)
    assert count > 60
    assert events(catalog_server, run.uid) == [1, 2, 3, 4, 5]


SESSION = """
import sys, time
from pathlib import Path
from bluesky_ptychonn.catalog.raw.writer import raw_writer
from bluesky_ptychonn.live.pipeline.testing import RunMaker

writer = raw_writer(Path(sys.argv[1]), sys.argv[2])
run = RunMaker("event", uid=sys.argv[3])
for document in [*run.open(), *run.point(1, 0, 0), *run.point(2, 0, 0)]:
    writer(*document)
print("two", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("who", ["the next session", "recover"])
def test_what_a_killed_session_left_is_taken_in(
    catalog_server: CatalogServer, make: Make, tmp_path: Path, who: str
) -> None:
    run = RunMaker("event")
    command = [sys.executable, "-c", SESSION, str(catalog_server.folder), str(tmp_path / "backup"), run.uid]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as session:
        assert session.stdout is not None
        assert session.stdout.readline() == b"two\n"
        if who == "recover":
            (one,) = recover(catalog_server, tmp_path / "backup")
            assert "a running session holds it" in one.outcome
        session.kill()
    (left,) = (tmp_path / "backup").iterdir()
    os.link(left, tmp_path / "journal.jsonl")  # as a live reconstruction follows it
    with left.open("ab") as file:
        file.write(b'{"name":"event","doc":{"seq_')  # killed in the middle of a line
    if who == "recover":
        (one,) = recover(catalog_server, tmp_path / "backup")
        assert (one.uid, one.outcome) == (run.uid, "recovered")
        assert one.file.exists()
    else:
        writer = make(catalog_server)
        until(lambda: not writer.pending, writer)
    assert events(catalog_server, run.uid) == [1, 2]
    reader = JournalReader(tmp_path / "journal.jsonl", slimmed=True)
    assert [entry.name for entry in reader] == ["start", "descriptor", "event", "event", "stop"]
    assert reader.corrupt == 1
    stop = catalog_server.raw[run.uid].stop
    assert (stop["exit_status"], stop["num_events"]) == ("abort", {"primary": 2})
    assert "ended without a word" in stop["reason"]


def test_two_processes_on_one_folder_deliver_each_run_once(
    catalog_server: CatalogServer, make: Make, tmp_path: Path
) -> None:
    folder, runs = Journal(tmp_path / "backup"), [RunMaker("event") for _ in range(5)]
    feed(folder.append, (document for run in runs for document in whole(run)))
    for _, file in folder.take_over():
        file.release()
    code = "import sys; from pathlib import Path; from bluesky_ptychonn.catalog.raw.writer import recover; "
    code += "recover(Path(sys.argv[1]), sys.argv[2])"
    command = [sys.executable, "-c", code, str(catalog_server.folder), str(tmp_path / "backup")]
    with subprocess.Popen(command) as other:
        writer = make(catalog_server)
        until(lambda: not writer.pending, writer)
        assert other.wait(60) == 0
    assert [events(catalog_server, run.uid) for run in runs] == [[1, 2, 3]] * len(runs)
    assert {catalog_server.raw[run.uid].stop["exit_status"] for run in runs} == {"success"}


def test_closing_at_once_delivers_what_was_appended(catalog_server: CatalogServer, make: Make) -> None:
    """The thread may be in the middle of a look at a folder that was empty."""
    for _ in range(5):
        writer, run = make(catalog_server), RunMaker("event")
        feed(writer, whole(run))
        assert writer.close()
        assert events(catalog_server, run.uid) == [1, 2, 3]


def test_a_disk_that_is_full_for_a_while_loses_nothing(
    catalog_server: CatalogServer, make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write, full = os.write, threading.Event()

    def maybe(fd: int, data: Any) -> int:
        if full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(run_file.os, "write", maybe)
    writer, run = make(catalog_server), RunMaker("event")
    documents = whole(run, 6)
    feed(writer, documents[:3])
    full.set()
    with caplog.at_level(logging.WARNING):
        feed(writer, documents[3:])
    assert "No space left on device; documents wait in memory" in writer.problem
    assert caplog.text.count("No space left") == 1
    assert run.uid in writer.pending
    full.clear()
    until(lambda: not writer.pending, writer)
    assert (writer.problem, writer.lost, writer.errors) == ("", 0, 6)
    assert events(catalog_server, run.uid) == [1, 2, 3, 4, 5, 6]


def test_a_disk_that_fills_while_the_thread_looks_at_it_is_said_once(
    catalog_server: CatalogServer, make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread has just seen that nothing waits in memory when the next document does."""
    write, sync, full = os.write, run_file.AppendFile.sync, threading.Event()
    writer, run = make(catalog_server), RunMaker("event")
    first, *rest = whole(run)

    def maybe(fd: int, data: Any) -> int:
        if full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data)

    def filling(file: run_file.AppendFile) -> None:
        if not full.is_set() and rest:
            full.set()
            feed(writer, [rest.pop(0)])
        sync(file)

    monkeypatch.setattr(run_file.os, "write", maybe)
    monkeypatch.setattr(run_file.AppendFile, "sync", filling)
    with caplog.at_level(logging.INFO, logger=raw_delivery.__name__):
        feed(writer, [first])
        until(lambda: writer.errors, writer)
        time.sleep(0.5)  # five more looks
        assert [record.getMessage().partition(": ")[0] for record in caplog.records] == ["raw runs"]
        assert "documents wait in memory" in writer.problem
        monkeypatch.setattr(run_file.AppendFile, "sync", sync)
        full.clear()
        feed(writer, rest)
        until(lambda: not writer.pending, writer)
    assert (writer.problem, writer.lost) == ("", 0)
    assert events(catalog_server, run.uid) == [1, 2, 3]


def test_what_two_threads_find_at_once_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    problems, together = raw_delivery.ProblemLog(), threading.Barrier(2)

    class Slow(dict[str, str]):
        def __contains__(self, kind: object) -> bool:
            known = super().__contains__(kind)
            time.sleep(0.05)  # the other thread looks now
            return known

    problems._now = Slow()

    def report() -> None:
        together.wait()
        problems.report("disk", "full")

    threads = [threading.Thread(target=report) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [record.getMessage() for record in caplog.records] == ["raw runs: full"]
    problems.resolve("disk", unless=lambda: True)
    assert problems.message == "full"
    problems.resolve("disk")
    assert problems.message == ""


def test_points_that_are_repeated_after_a_pause_are_delivered(
    catalog_server: CatalogServer, make: Make, tmp_path: Path
) -> None:
    writer, run = make(catalog_server), RunMaker("event")
    points = [document for n in (1, 2, 1, 2, 3) for document in run.point(n, 0.0, float(n))]
    feed(writer, [*run.open(3), *points, *run.close()])
    until(lambda: not writer.pending, writer)
    assert events(catalog_server, run.uid) == [1, 1, 2, 2, 3]
    again = Journal(tmp_path / "again")
    feed(again.append, [*run.open(3), *points, *run.close()])
    for _, file in again.take_over():
        file.release()
    (one,) = recover(catalog_server, tmp_path / "again")
    assert one.outcome == "already there"


def test_interleaved_runs_pages_and_what_json_cannot_say(catalog_server: CatalogServer, make: Make) -> None:
    writer = make(catalog_server)
    one, two, three = (RunMaker("event", md={"odd": {1, 2}, "nan": np.nan, ("a", 1): b"\xff"}) for _ in range(3))
    page = {"uid": ["a", "b"], "descriptor": two.descriptor, "seq_num": [1, 2], "time": [1.0, 2.0]}
    images = [frame_of(1).tolist(), frame_of(2).tolist()]
    page |= {"data": {"sx": [np.nan, np.inf], "sy": [0.0, 1.0], "img": images}, "filled": {}}
    page |= {"timestamps": {key: [1.0, 2.0] for key in ("sx", "sy", "img")}}
    feed(writer, [*one.open(), *two.open(), *one.point(1, np.nan, -np.inf), ("event_page", page)])
    feed(writer, [*three.open(), *two.close(), *one.point(2, 1.0, 1.0), *three.close("abort"), *one.close()])
    until(lambda: not writer.pending, writer)
    assert (writer.problem, writer.lost) == ("", 0)
    assert [events(catalog_server, run.uid) for run in (one, two)] == [[1, 2]] * 2
    np.testing.assert_array_equal(catalog_server.raw[two.uid]["primary"]["sx"].read(), [np.nan, np.inf])
    image = catalog_server.raw[one.uid]["primary"]["img"].read()
    np.testing.assert_array_equal(image, [frame_of(1), frame_of(2)])
    assert image.dtype == np.uint16
    assert catalog_server.raw[three.uid].stop["exit_status"] == "abort"


@pytest.mark.parametrize("kind", ["stream", "datum"])
def test_external_frames_are_registered_and_never_deleted(
    catalog_server: CatalogServer, detector_folder: Path, make: Make, tmp_path: Path, kind: Any
) -> None:
    uid = f"external-{kind}-{os.getpid()}"
    path = detector_folder / f"{uid}.h5"
    with h5py.File(path, "w") as file:
        data = np.stack([frame_of(n) for n in range(1, 6)])
        file.create_dataset("/entry/data/data", data=data, chunks=(1, *GEOMETRY.frame_shape))
    where = {"uri": f"file://localhost{path}"} if kind == "stream" else {"root": "/", "resource_path": str(path)[1:]}
    run = RunMaker(kind, uid=uid, resource=where)
    documents = whole(run, 5)
    broken = Journal(tmp_path / "part")
    feed(broken.append, documents[:8])
    for _, file in broken.take_over():
        file.release()
    (one,) = recover(catalog_server, tmp_path / "part")  # a part of the run comes first, with a stop of ours
    assert one.outcome == "recovered"
    writer = make(catalog_server)
    feed(writer, documents)
    until(lambda: not writer.pending, writer)
    np.testing.assert_array_equal(catalog_server.raw[uid]["primary"]["img"].read(), data)
    assert events(catalog_server, uid) == [1, 2, 3, 4, 5]
    assert path.exists()


@pytest.mark.parametrize("kind", ["datum", "stream"])
def test_two_runs_at_once_whose_resources_do_not_say_whose_they_are(
    catalog_server: CatalogServer, detector_folder: Path, make: Make, kind: Any
) -> None:
    """As detectors used to emit them; each run gets its own frames, and nothing of the other's."""
    runs, data = [], {}
    for number in range(2):
        uid = f"unsaid-{kind}-{number}-{os.getpid()}"
        path = detector_folder / f"{uid}.h5"
        data[uid] = np.stack([frame_of(100 * number + n) for n in range(1, 4)])
        with h5py.File(path, "w") as file:
            file.create_dataset("/entry/data/data", data=data[uid], chunks=(1, *GEOMETRY.frame_shape))
        where = (
            {"uri": f"file://localhost{path}"} if kind == "stream" else {"root": "/", "resource_path": str(path)[1:]}
        )
        runs.append(RunMaker(kind, uid=uid, resource=where))
    one, two = runs
    documents = [*one.open(3), *two.open(3)]
    for n in range(1, 4):
        documents += [*one.point(n, 0.0, 0.1 * n), *two.point(n, 0.0, 0.2 * n)]
    writer = make(catalog_server)
    for name, doc in [*documents, *one.close(), *two.close()]:
        writer(name, {key: value for key, value in doc.items() if not (key == "run_start" and "resource" in name)})
    until(lambda: not writer.pending, writer)
    assert (writer.problem, writer.lost) == ("", 0)
    for uid, frames in data.items():
        np.testing.assert_array_equal(catalog_server.raw[uid]["primary"]["img"].read(), frames)
        assert events(catalog_server, uid) == [1, 2, 3]
        assert sorted(getattr(catalog_server.raw[uid]["primary"], "base", {})) == ["img", "internal"]


def test_many_runs_leave_no_file_and_no_descriptor_open(catalog_server: CatalogServer, make: Make) -> None:
    writer = make(catalog_server)
    feed(writer, whole(RunMaker("event"), 1))
    until(lambda: not writer.pending, writer)
    before, threads = open_files(), threading.active_count()
    for _ in range(5):
        feed(writer, whole(RunMaker("event"), 1))
    until(lambda: not writer.pending, writer)
    assert open_files() <= before + 1
    assert threading.active_count() <= threads
    assert list(writer.folder.iterdir()) == []
    assert writer.close()
    run = RunMaker("event")
    feed(writer, whole(run))  # nobody takes it in any more, and it is kept all the same
    assert writer.pending == [run.uid]
    assert open_files() <= before
    (one,) = recover(catalog_server, writer.folder)
    assert one.outcome == "recovered"


class Fatal:
    def __str__(self) -> str:
        raise SystemExit(1)


def test_what_cannot_be_written_is_counted_and_said(catalog_server: CatalogServer, make: Make) -> None:
    writer, run = make(catalog_server), RunMaker("event")
    feed(writer, [*run.point(1, 0, 0)])
    assert "of a run whose start was not seen" in writer.problem
    feed(writer, [*run.open(), ("event", {"descriptor": run.descriptor, "data": {"x": Fatal()}}), ("event", {})])
    assert (writer.lost, writer.errors) == (2, 2)
    assert "2 documents lost" in repr(writer)
    feed(writer, [*run.point(1, 0, 0), *run.close()])
    until(lambda: not writer.pending, writer)
    assert events(catalog_server, run.uid) == [1]


def test_a_run_that_the_catalog_cannot_hold_holds_up_no_other(catalog_server: CatalogServer, make: Make) -> None:
    writer, hostile, run = make(catalog_server), RunMaker("event", uid="../processed"), RunMaker("event")
    feed(writer, [*whole(hostile), *whole(run)])
    until(lambda: len(writer.pending) == 1, writer)
    until(lambda: "uid '../processed' can be no key" in writer.problem, writer)
    assert events(catalog_server, run.uid) == [1, 2, 3]


def test_events_of_another_origin_are_left(catalog_server: CatalogServer, tmp_path: Path) -> None:
    run = RunMaker("event")
    documents = whole(run)
    outcomes = []
    for name, left in (("a", documents), ("b", [*documents[:2], *documents[-1:]])):
        folder = Journal(tmp_path / name)
        feed(folder.append, left)
        for _, file in folder.take_over():
            file.release()
        outcomes += [one.outcome for one in recover(catalog_server, tmp_path / name)]
    assert outcomes == ["recovered", "the catalog has 3 events of this run that the file has not; both are left"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("not json\n", "not a backup of a run: there is no document in it"),
        ("", "not a backup of a run: there is no document in it"),
        (json.dumps({"name": "event", "doc": {}}) + "\n", "does not begin with a start document"),
        (json.dumps({"name": "start", "doc": {"uid": "u"}}) + "\n", "has no stop document"),
        (json.dumps({"name": "start", "doc": {"uid": "a/b"}, "t": 1}) + "\n", "uid 'a/b' can be no key of a catalog"),
    ],
)
def test_what_is_no_backup_is_said_and_kept(tmp_path: Path, catalog_server: Any, content: str, words: str) -> None:
    (tmp_path / "file.jsonl").write_text(content)
    (one,) = recover(catalog_server, tmp_path)
    assert words in one.outcome
    assert one.file.exists()
    assert one.file.suffix == ".jsonl"


@pytest.mark.parametrize("catalog", ["no-such-profile", 7])
def test_a_catalog_that_is_none_is_refused_at_once(tmp_path: Path, catalog: Any) -> None:
    threads = threading.active_count()
    with pytest.raises(ValueError, match="connect"):
        raw_writer(catalog, tmp_path)
    until(lambda: threading.active_count() <= threads)
