"""The worker and its supervisors, with fakes for network and catalog: no server, no torch."""

from __future__ import annotations

import errno
import gc
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bluesky_ptychonn.catalog.runs.data_keys import DataKeys
from bluesky_ptychonn.files import lock
from bluesky_ptychonn.journal import router
from bluesky_ptychonn.journal.append_file import journal_path
from bluesky_ptychonn.journal.router import Journal
from bluesky_ptychonn.live.pipeline.problems import ProblemKind
from bluesky_ptychonn.live.pipeline.progress import Progress, Timing
from bluesky_ptychonn.live.pipeline.settings import ReconstructionSettings
from bluesky_ptychonn.live.pipeline.testing import (
    GEOMETRY,
    FakeComponentFactory,
    FakeSink,
    FakeSource,
    RunMaker,
    frame_of,
)
from bluesky_ptychonn.live.session import (
    WORKER_LOCK,
    WorkerStatus,
    finished_progress,
    left_behind,
    mark_finished,
    new_session,
    tidy,
)
from bluesky_ptychonn.live.worker import Worker
from bluesky_ptychonn.optics.framing import PreprocessConfig
from bluesky_ptychonn.recon.mosaic.refine_config import Refinement
from tests.live.pipeline.test_verdict import verdict_of

SETTINGS = ReconstructionSettings(model="fake", catalog="http://nowhere", pace=Timing(flush_s=0.02, patience_s=0.3))


class Session:
    """A worker in a thread over a folder, and a journal to feed it."""

    def __init__(self, folder: Path, factory: FakeComponentFactory) -> None:
        self.folder, self.factory = folder, factory
        self.journal = Journal(folder, slimmed=True)
        self.closing = threading.Event()
        self.worker = Worker(folder, SETTINGS, lambda: factory)
        self.thread = threading.Thread(target=self.worker.run, args=(self.closing,))
        self.thread.start()

    def send(self, documents: Any) -> None:
        for name, doc in documents:
            self.journal.append(name, doc)

    def scan(self, run: RunMaker, points: int, **stop: Any) -> None:
        frames = self.factory.sources.setdefault(run.uid, FakeSource()).frames
        self.send(run.open(points))
        for seq_num in range(1, points + 1):
            frames[seq_num - 1] = frame_of(seq_num)
            self.send(run.point(seq_num, 0.0, 0.0))
        self.send(run.close(**stop))

    def close(self) -> WorkerStatus:
        self.closing.set()
        self.thread.join(20)
        assert not self.thread.is_alive()
        return WorkerStatus.load(self.folder)


@pytest.fixture
def factory() -> FakeComponentFactory:
    return FakeComponentFactory()


@pytest.fixture
def session(tmp_path: Path, factory: FakeComponentFactory) -> Any:
    made = Session(new_session(tmp_path), factory)
    yield made
    made.closing.set()
    made.thread.join(20)


def test_several_runs_of_one_session(session: Session, factory: FakeComponentFactory) -> None:
    runs = [RunMaker("stream"), RunMaker("datum"), RunMaker("event")]
    for run, points in zip(runs, (1, 3, 70), strict=True):
        session.scan(run, points)
    status = session.close()
    assert status.state == "stopped"
    assert [status.runs[run.uid].state for run in runs] == ["complete"] * 3
    assert [len(factory.sinks[run.uid].table) for run in runs] == [1, 3, 70]
    assert status.runs[runs[0].uid].key == f"result of {runs[0].uid}"


def test_interleaved_runs(session: Session, factory: FakeComponentFactory) -> None:
    one, two = RunMaker("stream"), RunMaker("datum")
    for run in (one, two):
        factory.sources[run.uid] = FakeSource({i: frame_of(i + 1) for i in range(20)})
        session.send(run.open(20))
    for seq_num in range(1, 21):
        session.send([*one.point(seq_num, 0.0, 1.0), *two.point(seq_num, 0.0, 2.0)])
        time.sleep(0.005)
    session.send([*one.close(), *two.close()])
    status = session.close()
    for run, x in ((one, 1e-6), (two, 2e-6)):
        assert status.runs[run.uid].state == "complete"
        table = factory.sinks[run.uid].table
        assert [row["value"] for _, row in sorted(table.items())] == list(range(1, 21))
        assert all(row["x_m"] == pytest.approx(x) for row in table.values())


def test_run_without_an_end_is_partial_when_the_session_closes(session: Session, factory: FakeComponentFactory) -> None:
    run = RunMaker("stream")
    factory.sources[run.uid] = FakeSource({0: frame_of(1)})
    session.send([*run.open(5), *run.point(1, 0.0, 0.0)])
    status = session.close()
    assert status.runs[run.uid].state == "partial"
    assert factory.sinks[run.uid].metadata["exit_reason"] == "the session ended without a stop document"


def test_journal_that_holds_no_start_is_passed_over(session: Session) -> None:
    path = journal_path(session.folder, "torn")
    path.write_bytes(b'{"name":"start","doc":{"ui')
    assert session.close().state == "stopped"
    ended = finished_progress(path)
    assert ended is not None
    assert ended.state == "ignored"


def test_next_worker_takes_up_unfinished_runs_only(tmp_path: Path, factory: FakeComponentFactory) -> None:
    folder = new_session(tmp_path)
    first = Session(folder, factory)
    finished, broken_off = RunMaker("stream"), RunMaker("stream")
    first.scan(finished, 2)
    first.close()
    journal = Journal(folder, slimmed=True)
    factory.sources[broken_off.uid] = FakeSource({i: frame_of(i + 1) for i in range(3)})
    for document in [*broken_off.open(3), *broken_off.point(1, 0.0, 0.0), *broken_off.point(2, 0.0, 0.0)]:
        journal.append(*document)
    factory.sinks[finished.uid].table.clear()

    second = Session(folder, factory)
    second.journal = journal
    second.send([*broken_off.point(3, 0.0, 0.0), *broken_off.close()])
    status = second.close()
    assert status.runs[finished.uid].state == "complete"  # told from its mark, not done again
    assert factory.sinks[finished.uid].table == {}
    assert status.runs[broken_off.uid].state == "complete"
    assert sorted(factory.sinks[broken_off.uid].table) == [1, 2, 3]


def test_model_that_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    folder = new_session(tmp_path)

    def make() -> Any:
        raise ValueError("model 'fake': its weights are missing")

    with pytest.raises(ValueError, match="weights are missing"):
        Worker(folder, SETTINGS, make).run(threading.Event())
    status = WorkerStatus.load(folder)
    assert status.state == "failed"
    assert status.problem == "ValueError: model 'fake': its weights are missing"


def test_catalog_that_is_away_when_the_worker_begins_is_waited_for(
    tmp_path: Path, factory: FakeComponentFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bluesky_ptychonn.live.worker._AWAY_S", 0.05)
    answers = iter([ConnectionError("refused"), ConnectionError("refused")])

    def make() -> FakeComponentFactory:
        error = next(answers, None)
        if error is not None:
            raise error
        return factory

    folder, closing = new_session(tmp_path), threading.Event()
    thread = threading.Thread(target=Worker(folder, SETTINGS, make).run, args=(closing,))
    thread.start()
    end = time.monotonic() + 10
    while WorkerStatus.load(folder).state != "ready" and time.monotonic() < end:
        time.sleep(0.01)
    assert WorkerStatus.load(folder).state == "ready"
    closing.set()
    thread.join(10)


def test_a_full_disk_in_the_sessions_folder_neither_kills_the_worker_nor_loses_a_run(
    session: Session, factory: FakeComponentFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bluesky_ptychonn.live.worker._DISK_S", 0.05)
    while WorkerStatus.load(session.folder).state != "ready":
        time.sleep(0.01)
    run, refused = RunMaker("stream"), []

    def full(path: Path, values: Any, **how: bool) -> None:
        refused.append(path.name)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("bluesky_ptychonn.live.session.write_json", full)
        session.scan(run, 5)
        end = time.monotonic() + 20
        while not {"status.json", f"{run.uid}.done"} <= set(refused) and time.monotonic() < end:
            time.sleep(0.01)
        assert session.thread.is_alive()
        assert WorkerStatus.load(session.folder).runs == {}
    path, end = journal_path(session.folder, run.uid), time.monotonic() + 20
    while finished_progress(path) is None and time.monotonic() < end:
        time.sleep(0.01)
    ended = finished_progress(path)
    assert ended is not None
    assert (ended.state, ended.done) == ("complete", 5)
    assert session.close().runs[run.uid].state == "complete"
    assert len(factory.sinks[run.uid].blocks[0]) <= 5


def test_a_run_that_cannot_begin_does_not_end_the_others(
    session: Session, factory: FakeComponentFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt, good = RunMaker("stream"), RunMaker("stream")
    for_run = FakeComponentFactory.for_run

    def break_once(self: FakeComponentFactory, made_by: str = "") -> FakeComponentFactory:
        monkeypatch.setattr(FakeComponentFactory, "for_run", for_run)
        raise ZeroDivisionError("a mistake")

    while WorkerStatus.load(session.folder).state != "ready":
        time.sleep(0.01)
    monkeypatch.setattr(FakeComponentFactory, "for_run", break_once)
    session.scan(spoilt, 2)
    while FakeComponentFactory.for_run is break_once:
        time.sleep(0.01)
    session.scan(good, 2)
    status = session.close()
    assert (status.state, status.runs[good.uid].state) == ("stopped", "complete")
    assert (status.runs[spoilt.uid].state, status.runs[spoilt.uid].problem) == (
        "failed",
        "ZeroDivisionError: a mistake",
    )
    assert finished_progress(journal_path(session.folder, spoilt.uid)) == status.runs[spoilt.uid]


def test_half_a_status_is_taken_off_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(values: Any, option: int) -> bytes:
        raise OSError(28, "No space left on device")

    WorkerStatus("ready").save(tmp_path)
    monkeypatch.setattr("orjson.dumps", full)
    with pytest.raises(OSError, match="No space left"):
        WorkerStatus("stopped").save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
    assert WorkerStatus.load(tmp_path).state == "ready"


def test_status_of_another_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(
        '{"state": "ready", "new": 1, "runs": {"u": {"uid": "u", "state": "live", "done": 3, "newer": 2}}}'
    )
    status = WorkerStatus.load(tmp_path)
    assert (status.state, status.runs["u"].done, status.runs["u"].spooled) == ("ready", 3, 0)


def test_status_of_the_first_version_names_problems_without_their_kind(tmp_path: Path) -> None:
    run = {"uid": "u", "state": "live", "problem": "run ended (abort) before its first frame"}
    status = {"state": "ready", "problem": "catalog http://c does not answer", "runs": {"u": run}}
    (tmp_path / "status.json").write_text(json.dumps(status))
    found = WorkerStatus.load(tmp_path)
    assert (found.problem, found.problem_kind) == (status["problem"], ProblemKind.UNKNOWN)
    assert (found.runs["u"].problem, found.runs["u"].problem_kind) == (run["problem"], ProblemKind.UNKNOWN)


def test_two_workers_do_not_share_a_session(session: Session) -> None:
    while WorkerStatus.load(session.folder).state != "ready":
        time.sleep(0.01)
    with pytest.raises(RuntimeError, match="another worker has this session"):
        Worker(session.folder, SETTINGS, lambda: FakeComponentFactory()).run(threading.Event())


# -- the session's folder


def test_settings_survive_the_folder_and_holds_no_key(tmp_path: Path) -> None:
    cropped = PreprocessConfig(crop=192, bin=3)
    settings = ReconstructionSettings(
        model="m",
        catalog="http://c",
        geometry=GEOMETRY,
        keys=DataKeys("img", x_sign=-1),
        pace=Timing(block=7),
        device="cpu",
        batch_size=4,
        raw="runs",
        threads=2,
        nice=5,
        precision="bf16",
        preprocess=cropped,
        refine=Refinement(sweeps=3),
    )
    folder = new_session(tmp_path)
    settings.save(folder)
    assert ReconstructionSettings.load(folder) == settings
    assert (folder / "order.json").stat().st_mode & 0o077 == 0
    assert folder.stat().st_mode & 0o077 == 0
    with pytest.raises(ValueError, match=r"no session of LiveReconstruction \(order.json is missing\)"):
        ReconstructionSettings.load(tmp_path)


def test_settings_of_the_first_version_are_read_and_written_alike(tmp_path: Path) -> None:
    written = (Path(__file__).parent / "data" / "order_0_1_0.json").read_text()
    (tmp_path / "order.json").write_text(written)
    settings = ReconstructionSettings.load(tmp_path)
    assert (settings.keys, settings.refine) == (DataKeys("img", x_sign=-1), Refinement(sweeps=3))
    assert (settings.geometry, settings.pace.block, settings.threads) == (GEOMETRY, 7, 2)
    settings.save(tmp_path)
    assert json.loads((tmp_path / "order.json").read_text()) == {**json.loads(written), "mask": None}  # new since


def test_status_is_empty_before_the_worker_begins(tmp_path: Path) -> None:
    assert WorkerStatus.load(tmp_path) == WorkerStatus()


def test_sessions_left_behind_are_found_and_old_ones_removed(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    model = str(tmp_path / "model")

    def session(run: str, *, finished: bool, catalog: str = "http://c") -> Path:
        folder = new_session(tmp_path)
        ReconstructionSettings(model=model, catalog=catalog).save(folder)
        journal_path(folder, run).touch()
        if finished:
            mark_finished(journal_path(folder, run), Progress(run, state="complete"))
        return folder

    finished = [session(f"done{i}", finished=True) for i in range(52)]
    orphan, owned, elsewhere = (session(name, finished=False) for name in ("a", "b", "c"))
    ReconstructionSettings(model=model, catalog="http://other").save(elsewhere)
    fd = lock(owned / WORKER_LOCK)
    assert fd is not None
    for same in ("http://c", "http://c/", "http://c/api/v1", "http://c/api/v1/"):  # as people, servers, clients say
        assert left_behind(tmp_path, same) == [orphan]
    os.close(fd)
    assert sum(folder.exists() for folder in finished) == 50
    assert left_behind(tmp_path / "nowhere", "http://c") == []


def test_journals_of_finished_runs_are_tidied_up(tmp_path: Path) -> None:
    for i in range(5):
        path = journal_path(tmp_path, f"run{i}")
        path.touch()
        mark_finished(path, Progress(f"run{i}", state="complete"))
        os.utime(path.with_suffix(".done"), (i, i))
    journal_path(tmp_path, "open").touch()
    tidy(tmp_path, keep=2)
    assert sorted(path.stem for path in tmp_path.glob("*.jsonl")) == ["open", "run3", "run4"]


def test_of_journals_with_images_in_them_no_more_are_kept_than_fit(tmp_path: Path) -> None:
    for i, size in enumerate((10, 10, 80, 10)):
        path = journal_path(tmp_path, f"run{i}")
        path.write_bytes(b"x" * size)
        mark_finished(path, Progress(f"run{i}", state="complete"))
        os.utime(path.with_suffix(".done"), (i, i))
    tidy(tmp_path, keep=20, keep_bytes=95)
    assert sorted(path.stem for path in tmp_path.glob("*.jsonl")) == ["run2", "run3"]


def test_pace_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="block 0 must be at least 1 frame"):
        Timing(block=0)
    with pytest.raises(ValueError, match="flush_s -1 must not be below 0 s"):
        Timing(flush_s=-1)


# -- the callback


@pytest.fixture
def fake_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_model: Path) -> Any:
    """LiveReconstruction with a thread of fakes behind it."""
    from bluesky_ptychonn.catalog.connection import connect as connecting
    from bluesky_ptychonn.live.callback import LiveReconstruction
    from bluesky_ptychonn.live.pipeline import factory as real

    made: list[Any] = []
    factory = FakeComponentFactory()
    monkeypatch.setattr(real, "TiledComponentFactory", lambda *arguments, **options: factory)
    monkeypatch.setattr(connecting, "connect", lambda *names: SimpleNamespace(path_parts=()))

    class Handle:
        uri, api_key = "http://nowhere/api/v1", "secret"

    def make(**options: Any) -> Any:
        options = {"worker": "thread", "journal_dir": tmp_path / "journal", "pace": SETTINGS.pace, **options}
        live = LiveReconstruction(small_model, Handle(), **options)
        live.factory = factory
        made.append(live)
        return live

    yield make
    for live in made:
        live.close()


def feed(live: Any, run: RunMaker, points: int) -> None:
    live.factory.sources[run.uid] = FakeSource({i: frame_of(i + 1) for i in range(points)})
    documents = [*run.open(points)]
    for seq_num in range(1, points + 1):
        documents += run.point(seq_num, 0.0, 0.0)
    for document in [*documents, *run.close()]:
        live(*document)


def test_live_tells_where_it_stands(fake_live: Any) -> None:
    live = fake_live()
    live.wait_ready(20)
    run = RunMaker("stream")
    feed(live, run, 3)
    (ended,) = live.wait(timeout=20)
    assert (ended.uid, ended.state, ended.done) == (run.uid, "complete", 3)
    status = live.status
    assert (status.worker, status.seen, status.done, status.waiting, status.rejected) == ("ready", 3, 3, 0, {})
    assert f"run {run.uid[:8]}, complete, 3/3 frames reconstructed" in repr(live)
    assert "http://nowhere/api/v1" in repr(live)
    assert "secret" not in repr(live)
    assert "secret" not in repr(vars(live))


def test_trouble_is_told_in_the_session_once_and_shown(
    fake_live: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bluesky_ptychonn.live.notifier._EVERY_S", 0.02)
    live = fake_live()
    live.wait_ready(20)
    run = RunMaker("stream")
    sink = live.factory.sinks.setdefault(run.uid, FakeSink())
    sink.spooled, sink.spool_bytes, sink.problem = {2, 3}, 3 << 20, "catalog http://c does not answer: refused"
    feed(live, run, 3)
    end = time.monotonic() + 20
    told: list[str] = []
    while not told and time.monotonic() < end:
        time.sleep(0.2)
        told = [record.message for record in caplog.records if record.name.endswith("notifier")]
    words = "catalog http://c does not answer: refused; 2 frames wait on disk. The scan is not affected. See "
    assert told == [f"{words}{live.log}"]
    status = live.status
    assert (status.done, status.spooled, status.spool_bytes) == (1, 2, 3 << 20)
    assert "2 on disk until the catalog takes them (3.0 MiB)" in repr(live)
    sink.spooled, sink.spool_bytes, sink.problem = set(), 0, ""
    assert live.wait(timeout=20)[0].state == "complete"


def test_trouble_of_a_finished_run_is_over_with_the_next_that_is_whole(fake_live: Any) -> None:
    live = fake_live()
    live.wait_ready(20)
    bad, good = RunMaker("stream", md={"ptychography": {}}), RunMaker("stream")
    feed(live, bad, 1)
    assert live.wait(bad.uid, 20)[0].state == "failed"
    ((problem, _),) = live._find_problems()
    assert problem.kind == ProblemKind.FAILED
    assert "start document: no geometry" in problem.message
    feed(live, good, 2)
    assert live.wait(good.uid, 20)[0].state == "complete"
    assert live._find_problems() == []
    assert "start document: no geometry" in live.status.problem  # still the last one there was


def test_how_a_run_ended_and_how_to_open_it(fake_live: Any, caplog: pytest.LogCaptureFixture) -> None:
    live = fake_live()
    live.factory.fake.judgement = verdict_of("doubtful", "low trust: mean trust 0.2")
    bad, good = RunMaker("stream", md={"ptychography": {}}), RunMaker("stream")
    with caplog.at_level(logging.INFO):
        for run in (bad, good):
            feed(live, run, 2)
        live.wait(timeout=20)
        live._notifier.update()
    failed, complete = (record.message for record in caplog.records if record.message.startswith("scan"))
    assert failed == "scan 7: reconstruction failed, 0 of 2 frames"
    assert complete.startswith("scan 7: reconstruction complete, 2 of 2 frames, verdict doubtful (low trust); ")
    assert complete.endswith(f"; live.result({good.uid[:8]!r}).plot('image.png') draws it")
    with pytest.raises(LookupError, match="no reconstruction: nosuch"):
        live.result("nosuch")


@pytest.mark.parametrize("kind", ["event", "datum", "stream"])
def test_a_run_that_the_raw_writer_keeps_is_written_once(
    fake_live: Any, tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Writer:
        journal = Journal(tmp_path / "backup")

    live, run = fake_live(raw_writer=Writer()), RunMaker(kind)
    live.factory.sources[run.uid] = FakeSource({i: frame_of(i + 1) for i in range(5)})
    encoded: list[str] = []
    encode = router.encode
    monkeypatch.setattr(router, "encode", lambda name, *rest: encoded.append(name) or encode(name, *rest))
    documents = [*run.open(5), *(doc for n in range(1, 6) for doc in run.point(n, 0.0, 0.0)), *run.close()]
    for document in documents:
        Writer.journal.append(*document)
        live(*document)
    assert encoded == [name for name, _ in documents]
    ((_, kept),) = Writer.journal.take_over()
    assert kept.path.samefile(journal_path(live.folder, run.uid))
    kept.remove()  # it is in the catalog: that is nothing to us
    (ended,) = live.wait(timeout=20)
    assert (ended.uid, ended.state, ended.done) == (run.uid, "complete", 5)
    assert live.status.journal_errors == 0


@pytest.mark.parametrize("why", ["another disk", "subscribed before", "disk full"])
def test_a_run_that_the_raw_writer_does_not_keep_here_has_a_journal(
    fake_live: Any, tmp_path: Path, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Writer:
        journal = Journal(tmp_path / "backup")

    def refuse(*paths: Any) -> None:
        raise OSError({"another disk": errno.EXDEV, "disk full": errno.ENOSPC}[why], "no link")

    if why != "subscribed before":
        monkeypatch.setattr(os, "link", refuse)
    live, run = fake_live(raw_writer=Writer()), RunMaker("event")
    for document in [*run.open(2), *run.point(1, 0.0, 0.0), *run.point(2, 0.0, 0.0), *run.close()]:
        order = [live, Writer.journal.append]
        for callback in order if why == "subscribed before" else reversed(order):
            callback(*document)
    live.factory.sources[run.uid] = FakeSource({i: frame_of(i + 1) for i in range(2)})
    (ended,) = live.wait(timeout=20)
    assert (ended.state, ended.done) == ("complete", 2)
    assert not journal_path(live.folder, run.uid).samefile(journal_path(tmp_path / "backup", run.uid))
    for _, file in Writer.journal.take_over():
        file.release()


def test_wait_says_what_it_waited_for(fake_live: Any) -> None:
    live = fake_live()
    run = RunMaker("stream")
    for document in run.open(3):
        live(*document)
    with pytest.raises(TimeoutError, match=r"not finished after 0.2 s: worker .*\nrun .*, 0 frames|0/3 frames"):
        live.wait(timeout=0.2)
    with pytest.raises(LookupError, match="no reconstruction"):
        live.result(run.uid)


def test_journal_that_breaks_never_reaches_the_scan(fake_live: Any, RE: Any) -> None:
    import shutil

    import bluesky.plans as bp
    from ophyd.sim import det, motor

    live = fake_live()
    live.wait_ready(20)
    RE.subscribe(live)
    live.close()
    shutil.rmtree(live.folder)
    live.folder.write_text("a file where the folder was")
    (uid,) = RE(bp.scan([det], motor, 0, 1, 3))
    assert len(uid) == 36
    assert live.status.journal_errors > 0
    assert "NotADirectoryError" in live.status.problem


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), MemoryError(), RecursionError()])
def test_callback_lets_nothing_through(fake_live: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    live = fake_live()

    def fail(name: str, doc: Any) -> None:
        raise error

    monkeypatch.setattr(live._journal, "append", fail)
    live("start", {"uid": "x"})
    assert live.status.journal_errors == 1
    assert type(error).__name__ in live.status.problem


@pytest.mark.parametrize("bound", [False, True])
def test_instance_lives_as_long_as_it_is_subscribed(fake_live: Any, RE: Any, bound: bool) -> None:
    import bluesky.plans as bp
    from ophyd.sim import det, motor

    live = fake_live()
    folder = live.folder
    RE.subscribe(live.__call__ if bound else live)
    del live
    gc.collect()
    (uid,) = RE(bp.scan([det], motor, 0, 1, 2))
    assert journal_path(folder, uid).exists()


def test_scans_without_ptychography_are_passed_over(fake_live: Any, RE: Any) -> None:
    import bluesky.plans as bp
    from ophyd.sim import det, motor

    live = fake_live()
    RE.subscribe(live)
    RE(bp.scan([det], motor, 0, 1, 3))
    (ended,) = live.wait(timeout=20)
    assert ended.state == "ignored"
    assert "no geometry" in ended.problem


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("no-such-model", "http://nowhere"), {}, "model 'no-such-model' is unknown"),
        (("{model}", "http://nowhere"), {"worker": "fork"}, "worker: .*'process' or 'thread', got 'fork'"),
        (("{model}", 3.5), {}, "float is not a catalog"),
        (("{model}", "http://nowhere"), {"precision": "fp8"}, "precision: .*'tf32', 'bf16' or 'fp16', got 'fp8'"),
        (("{model}", "http://nowhere"), {"x_sign": 0}, "x_sign=0: a sign is 1 or -1"),
    ],
)
def test_construction_says_what_is_wrong_and_starts_nothing(
    tmp_path: Path, small_model: Path, arguments: tuple[Any, ...], options: dict[str, Any], words: str
) -> None:
    from bluesky_ptychonn.live.callback import LiveReconstruction

    model, catalog = arguments
    with pytest.raises(ValueError, match=words):
        LiveReconstruction(str(model).format(model=small_model), catalog, journal_dir=tmp_path / "j", **options)
    assert not (tmp_path / "j").exists()


@pytest.mark.system
def test_worker_process_that_keeps_dying_is_tried_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bluesky_ptychonn.live import supervisor as supervisor

    monkeypatch.setattr(supervisor, "_LONGEST_S", 0.1)
    folder = new_session(tmp_path)
    (folder / "order.json").write_text("not an order")
    kept = supervisor.WorkerSupervisor(folder, SETTINGS, "secret")
    assert b"secret" not in Path(f"/proc/{kept.pid}/cmdline").read_bytes()
    end = time.monotonic() + 60
    while kept.restarts < 2 and time.monotonic() < end:
        time.sleep(0.05)
    assert kept.alive
    status = WorkerStatus.load(folder)
    assert status.state == "starting"
    words = "worker ended with code 1, 2 times in a row; starting it again in 0.1 s; frames stay in the journal"
    assert status.problem == kept.problem == words
    kept.close(5.0)
    assert not kept.alive
    assert "order.json is missing" in (folder / "worker.err").read_text()


@pytest.mark.parametrize("fails", ["and hangs", "again and again"])
def test_a_worker_that_failed_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    """It may hang at its end; and one that is begun anew imports for seconds, on a busy machine for a minute."""
    from bluesky_ptychonn.live import supervisor as supervisor

    folder = new_session(tmp_path)
    ends = iter(["raise SystemExit(1)"] * 2 if fails == "again and again" else [])

    def start(*_: Any) -> subprocess.Popen[bytes]:
        code = next(ends, "import time; time.sleep(60)")
        process = subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE)
        if fails == "and hangs":
            WorkerStatus("failed", process.pid, problem="ValueError: device 'cuda:9'").save(folder)
        return process

    monkeypatch.setattr(supervisor, "_start", start)
    monkeypatch.setattr(supervisor, "_LONGEST_S", 0.05)
    kept = supervisor.WorkerSupervisor(folder, SETTINGS, None)
    end = time.monotonic() + 20
    while kept.restarts < 2 and fails == "again and again" and time.monotonic() < end:
        time.sleep(0.02)
    began = time.monotonic()
    assert not kept.close(30.0)
    assert time.monotonic() - began < 5.0


@pytest.mark.system
def test_worker_process_that_cannot_do_as_asked_is_not_tried_again(
    tmp_path: Path, small_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from bluesky_ptychonn.live.callback import LiveReconstruction

    live = LiveReconstruction(small_model, "http://127.0.0.1:9", journal_dir=tmp_path, device="cuda:99")
    with pytest.raises(RuntimeError, match="worker failed: ValueError: device 'cuda:99': torch .* sees"):
        live.wait_ready(60)
    assert live.status.restarts == 0
    journal_path(live.folder, "one").touch()
    began = time.monotonic()
    live.close()
    assert time.monotonic() - began < 5.0
    told = caplog.records[-1].message
    assert told.startswith("worker failed: ValueError: device 'cuda:99': torch ")
    assert ". 1 runs are not finished, the next LiveReconstruction with this catalog takes them up; see " in told


@pytest.mark.system
def test_worker_process_that_is_killed_starts_again(tmp_path: Path, small_model: Path) -> None:
    from bluesky_ptychonn.live.supervisor import WorkerSupervisor

    folder = new_session(tmp_path)
    # Nobody is there: it tries to connect.
    settings = ReconstructionSettings(model=str(small_model), catalog="http://127.0.0.1:9/api/v1")
    settings.save(folder)
    kept = WorkerSupervisor(folder, settings, None)
    first = kept.pid
    os.kill(first, signal.SIGKILL)
    end = time.monotonic() + 30
    while kept.pid == first and time.monotonic() < end:
        time.sleep(0.05)
    assert kept.pid != first
    assert kept.restarts == 1
    kept.close(0.1)
