"""The whole road: RunEngine, TiledWriter, real server, worker, result; in a thread and in a process."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bluesky_ptychonn.beamline.sim import SimulatedBeamline
from bluesky_ptychonn.catalog.connection.server import CatalogServer
from bluesky_ptychonn.live.batch.reconstruct import reconstruct
from bluesky_ptychonn.live.callback import LiveReconstruction
from bluesky_ptychonn.live.pipeline.progress import Timing

pytestmark = pytest.mark.system

WAIT_S = 120.0
PACE = Timing(flush_s=0.1, patience_s=2.0)


def scan(beamline: Any, points: int = 9, **options: Any) -> Any:
    """A square scan of `points` points."""
    from bluesky_ptychonn.beamline.plans import ptycho_scan

    side = round(points**0.5) - 1
    fields = (0.3 * side, 0.3 * side) if side and (side + 1) ** 2 == points else (0.3 * (points - 1), 0.0)
    stage = beamline.stage
    return ptycho_scan([beamline.camera], stage.x, stage.y, *fields, 0.3, pattern="raster", **options)


@pytest.fixture
def beamline(detector_folder: Path) -> Any:
    return SimulatedBeamline.demo(detector_folder)


@pytest.fixture(scope="module")
def threaded(catalog_server: CatalogServer, small_model: Path, tmp_path_factory: Any) -> Iterator[LiveReconstruction]:
    """One live reconstruction in a thread, as it would serve a session of many scans."""
    journal = tmp_path_factory.mktemp("journal")
    with LiveReconstruction(small_model, catalog_server, worker="thread", journal_dir=journal, pace=PACE) as live:
        live.wait_ready(WAIT_S)
        yield live


def test_complete_run(RE: Any, tiled_writer: Any, threaded: LiveReconstruction, beamline: Any) -> None:
    RE.subscribe(threaded)
    (uid,) = RE(scan(beamline, 9))
    (ended,) = threaded.wait(uid, WAIT_S)
    assert (ended.state, ended.done, ended.rejected) == ("complete", 9, {}), ended
    result = threaded.result(uid)
    assert result.metadata["status"] == "complete"
    assert result.metadata["raw"]["uid"] == uid
    assert result.metadata["model"]["name"] == "tiny"
    assert result.metadata["geometry"]["energy_ev"] == beamline.geometry.energy_ev
    assert result.metadata["counts"] == {"expected": 9, "seen": 9, "reconstructed": 9, "rejected": {}}
    frames = result.frames
    assert frames.seq_num.tolist() == list(range(1, 10))
    assert frames.valid.all()
    raw = tiled_writer.client[uid]["primary"]
    np.testing.assert_allclose(frames.x_m, raw["stage_x"].read() * 1e-3, atol=1e-12)
    np.testing.assert_allclose(frames.y_m, raw["stage_y"].read() * 1e-3, atol=1e-12)
    assert (frames.time_done > frames.time_raw).all()
    assert np.isfinite(result.phase.read()).any()


def test_what_was_made_live_is_made_again_to_the_bit(
    RE: Any, tiled_writer: Any, threaded: LiveReconstruction, beamline: Any, small_model: Path, catalog_server: Any
) -> None:
    RE.subscribe(threaded)
    (uid,) = RE(scan(beamline, 16))
    threaded.wait(uid, WAIT_S)
    live = threaded.result(uid)
    again = reconstruct(uid, small_model, catalog_server, threads=2)
    assert live.metadata["photons_from"] == "frames"  # the first ones knew too little of it
    for name in ("amplitude_patches", "phase_patches", "amplitude", "phase", "coverage", "trust"):
        np.testing.assert_array_equal(live[name].read(), again[name].read(), err_msg=name)
    for name in ("level", "reasons"):  # its figures are of frames as they were first made
        assert live.metadata["verdict"].get(name) == again.metadata["verdict"].get(name)
    assert live.metadata["software"]["code_sha256"] == again.metadata["software"]["code_sha256"]


@pytest.mark.parametrize(("documents", "points"), [("classic", 3), ("stream", 1)])
def test_short_runs_of_either_kind_of_documents(
    RE: Any, tiled_writer: Any, threaded: LiveReconstruction, detector_folder: Path, documents: Any, points: int
) -> None:
    RE.subscribe(threaded)
    (uid,) = RE(scan(SimulatedBeamline.demo(detector_folder, documents=documents), points))
    (ended,) = threaded.wait(uid, WAIT_S)
    assert (ended.state, ended.done) == ("complete", points), ended


def test_detector_that_misses_and_spoils_frames(
    RE: Any, tiled_writer: Any, threaded: LiveReconstruction, detector_folder: Path
) -> None:
    beamline = SimulatedBeamline.demo(detector_folder, drop_frames={2, 5}, corrupt_frames={7})
    RE.subscribe(threaded)
    (uid,) = RE(scan(beamline, 9))
    (ended,) = threaded.wait(uid, WAIT_S)
    assert ended.rejected == {"detector gave no frame": 2, "frame cannot be decoded": 1}, ended
    assert ended.state == "partial"
    frames = threaded.result(uid).frames.set_index("seq_num")
    assert frames.index.tolist() == list(range(1, 10))
    assert frames.flag[[2, 5, 7]].tolist() == ["detector gave no frame"] * 2 + ["frame cannot be decoded"]
    raw = tiled_writer.client[uid]["primary"]["stage_x"].read()
    good = [1, 3, 4, 6, 8, 9]
    np.testing.assert_allclose(frames.x_m[good], np.asarray(raw)[[n - 1 for n in good]] * 1e-3, atol=1e-12)


def test_aborted_run_is_partial(RE: Any, tiled_writer: Any, threaded: LiveReconstruction, beamline: Any) -> None:
    RE.subscribe(threaded)
    uids: list[str] = []
    RE.subscribe(lambda name, doc: uids.append(doc["uid"]), "start")
    with pytest.raises(RuntimeError, match="beam lost"):
        RE(_failing(scan(beamline, 9), after_events=4))
    (ended,) = threaded.wait(uids[0], WAIT_S)
    assert (ended.state, ended.done) == ("partial", 4), ended
    metadata = threaded.result(uids[0]).metadata
    assert metadata["exit_status"] == "fail"
    assert metadata["exit_reason"] == "beam lost"


def _failing(plan: Any, after_events: int) -> Any:
    """The plan, broken off after some events."""
    saved = 0

    def break_off(message: Any) -> Any:
        nonlocal saved
        if message.command == "create" and saved == after_events:
            raise RuntimeError("beam lost")
        saved += message.command == "save"
        return message

    from bluesky.preprocessors import msg_mutator

    return msg_mutator(plan, break_off)


def test_model_that_does_not_fit_is_said_in_the_result(
    RE: Any, tiled_writer: Any, threaded: LiveReconstruction, beamline: Any
) -> None:
    geometry = {**beamline.geometry.model_dump(mode="json"), "energy_ev": 12_000}
    RE.subscribe(threaded)
    (uid,) = RE(scan(beamline, 4, geometry=geometry))
    (ended,) = threaded.wait(uid, WAIT_S)
    assert ended.state == "failed"
    metadata = threaded.result(uid).metadata
    assert metadata["status"] == "failed"
    assert "was trained at an object pixel of" in metadata["problem"]
    (uid,) = RE(scan(beamline, 1))
    assert threaded.wait(uid, WAIT_S)[0].state == "complete"


def test_paused_and_rewound_run(RE: Any, tiled_writer: Any, threaded: LiveReconstruction, beamline: Any) -> None:
    from bluesky.utils import RunEngineInterrupted

    RE.subscribe(threaded)
    uids: list[str] = []
    RE.subscribe(lambda name, doc: uids.append(doc["uid"]), "start")
    with pytest.raises(RunEngineInterrupted):
        RE(_pausing(scan(beamline, 4), after_events=2))
    RE.resume()
    (ended,) = threaded.wait(uids[0], WAIT_S)
    assert (ended.state, ended.done) == ("complete", 4), ended
    result = threaded.result(uids[0])
    assert result.metadata["counts"]["measured_again"] == 1
    assert result.frames.seq_num.tolist() == [1, 2, 3, 4]


def _pausing(plan: Any, after_events: int) -> Any:
    from bluesky.preprocessors import plan_mutator
    from bluesky.utils import Msg

    saved = 0

    def pause(message: Any) -> Any:
        nonlocal saved
        saved += message.command == "save"
        if message.command == "save" and saved == after_events:

            def after() -> Any:
                yield Msg("pause")

            return None, after()
        return None, None

    return plan_mutator(plan, pause)


def test_callback_before_the_writer_and_two_run_engines_at_once(
    catalog_server: CatalogServer, threaded: LiveReconstruction, detector_folder: Path
) -> None:
    """Two RunEngines take turns, and the callback knows of frames before Tiled does."""
    from bluesky_tiled_plugins import TiledWriter

    documents = [_documents(SimulatedBeamline.demo(detector_folder, documents=kind)) for kind in ("stream", "classic")]
    writer = TiledWriter(catalog_server.raw, batch_size=1)
    uids = [docs[0][1]["uid"] for docs in documents]
    while any(documents):
        for docs in documents:
            if docs:
                name, doc = docs.pop(0)
                threaded(name, doc)
                writer(name, doc)
    for uid in uids:
        (ended,) = threaded.wait(uid, WAIT_S)
        assert (ended.state, ended.done) == ("complete", 4), ended
        assert threaded.result(uid).metadata["raw"]["uid"] == uid


def _documents(beamline: Any) -> list[Any]:
    """Record the documents of a scan of four points."""
    import copy

    from bluesky import RunEngine

    engine, kept = RunEngine({}, context_managers=[]), []
    engine.subscribe(lambda name, doc: kept.append((name, copy.deepcopy(doc))))
    engine(scan(beamline, 4))
    engine.loop.call_soon_threadsafe(engine.loop.stop)
    engine._th.join()
    engine.loop.close()
    return kept


def nowhere(key: str, shown: list[Any], folder: Path, pid: int) -> None:
    """Look for a catalog's key where others could read it."""
    for thing in shown:
        assert key not in repr(thing)
    for path in folder.rglob("*"):
        assert path.is_dir() or key.encode() not in path.read_bytes(), path
    process = Path("/proc") / str(pid)
    if process.is_dir():
        assert key.encode() not in (process / "cmdline").read_bytes()
        assert stat.S_IMODE((process / "environ").stat().st_mode) == 0o400  # where the worker finds it


def test_worker_process_survives_its_own_death(
    RE: Any, tiled_writer: Any, catalog_server: CatalogServer, small_model: Path, detector_folder: Path, tmp_path: Path
) -> None:
    beamline = SimulatedBeamline.demo(detector_folder, exposure_s=0.05)
    live = LiveReconstruction(small_model, catalog_server, journal_dir=tmp_path, pace=PACE)
    supervisor: Any = live._supervisor
    first, killed = supervisor.pid, []

    def kill_once(name: str, doc: Any) -> None:
        if not killed and doc["seq_num"] == 5:
            end = time.monotonic() + WAIT_S
            while live.status.done < 2 and time.monotonic() < end:
                time.sleep(0.05)
            killed.append(live.status.done)
            os.kill(first, signal.SIGKILL)

    try:
        live.wait_ready(WAIT_S)
        nowhere(catalog_server.api_key, [live, live.settings, live.status], tmp_path, supervisor.pid)
        RE.subscribe(live)
        RE.subscribe(kill_once, "event")
        (one,) = RE(scan(beamline, 9))
        (two,) = RE(scan(beamline, 3))
        assert killed[0] >= 2
        ended = live.wait(timeout=WAIT_S)
        assert [(run.uid, run.state, run.done) for run in ended] == [(one, "complete", 9), (two, "complete", 3)]
        assert live.status.restarts == 1
        assert supervisor.pid != first
        result = live.result(one)
        assert result.frames.seq_num.tolist() == list(range(1, 10))
        found = [r for r in catalog_server.processed.values() if r.metadata["raw"]["uid"] == one]
        assert len(found) == 1
        assert len(live.results) == 2
        nowhere(catalog_server.api_key, [result, result.metadata, live.status], tmp_path, supervisor.pid)
    finally:
        live.close()
    assert live.status.worker == "stopped"


def test_scan_process_that_is_killed_leaves_a_marked_result(
    catalog_server: CatalogServer, small_model: Path, detector_folder: Path, tmp_path: Path
) -> None:
    script = f"""
import time
from pathlib import Path
from bluesky import RunEngine
from bluesky_tiled_plugins import TiledWriter
from bluesky_ptychonn.beamline.sim import SimulatedBeamline
from bluesky_ptychonn.beamline.plans import ptycho_scan
from bluesky_ptychonn.live.callback import LiveReconstruction
from bluesky_ptychonn.live.pipeline.progress import Timing
from bluesky_ptychonn.catalog.connection.server import connect
beamline = SimulatedBeamline.demo({str(detector_folder)!r}, exposure_s=0.05)
RE = RunEngine({{}}, context_managers=[])
catalog = connect(Path({str(catalog_server.folder)!r}))
live = LiveReconstruction({str(small_model)!r}, catalog, journal_dir={str(tmp_path)!r}, pace=Timing(flush_s=0.1))
live.wait_ready()
RE.subscribe(TiledWriter(catalog["raw"], batch_size=1))
RE.subscribe(live)
RE.subscribe(lambda name, doc: print(name, doc["uid"], flush=True))
RE(ptycho_scan([beamline.camera], beamline.stage.x, beamline.stage.y, 6, 6, 0.3))
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    uid = process.stdout.readline().split()[1]
    events = 0
    while events < 10:
        events += process.stdout.readline().startswith("event")
    process.kill()
    process.wait()
    process.stdout.close()
    end = time.monotonic() + WAIT_S
    found: list[Any] = []
    while time.monotonic() < end:
        processed = catalog_server.processed
        found = [r for r in processed.values() if r.metadata["raw"]["uid"] == uid and r.metadata["status"] != "live"]
        if found:
            break
        time.sleep(0.5)
    (result,) = found
    assert result.metadata["status"] == "partial"
    assert result.metadata["exit_status"] == "unknown"
    assert "without a stop document" in result.metadata["exit_reason"]
    assert result.metadata["counts"]["seen"] >= 10
