"""Learning beside a beamline: each run once, promotion with a reason, people's decisions respected, kills survived."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bluesky_ptychonn.beamline.plans import ptycho_scan
from bluesky_ptychonn.beamline.sim import SimulatedBeamline
from bluesky_ptychonn.card import ProbeReference, load_card
from bluesky_ptychonn.catalog.connection.server import CatalogServer
from bluesky_ptychonn.catalog.registry.learning_log import LearningLog, LearningRecord
from bluesky_ptychonn.catalog.registry.registry import Registry
from bluesky_ptychonn.catalog.runs.run_list import Listed, RunList
from bluesky_ptychonn.live.batch.reconstruct import reconstruct
from bluesky_ptychonn.live.learning.config import LearnerConfig
from bluesky_ptychonn.live.learning.service import CatalogLearner
from bluesky_ptychonn.recon.learning.config import LearningConfig
from bluesky_ptychonn.recon.learning.intake import Considered
from bluesky_ptychonn.recon.learning.judge import Judgement
from bluesky_ptychonn.recon.learning.learner import Candidate
from bluesky_ptychonn.recon.models.checkpoint import load_model, save_model

WAIT_S = 120.0
CONFIG = LearnerConfig(share=1.0, device="cpu", poll_s=0.01, settle_s=0.0, free_disk_bytes=0)


@dataclass
class FakeLearner:
    """Takes every run with trust; its candidates are the models it was given, its judgements those it was told."""

    candidates: list[Path]
    promote: list[bool]
    pending: tuple[str, ...] = ()
    rounds: int = 0
    seen: list[tuple[str, float, tuple[str, ...]]] = field(default_factory=list)
    champions: list[str] = field(default_factory=list)
    meanwhile: Callable[[], object] = lambda: None
    stopped: int = 0
    runs_a_round: int = 1
    proposed: Path | None = None

    def consider(self, scan: Any, *, trust: Any, verdict_reasons: Any = ()) -> Considered:
        self.seen.append((scan.source, float(trust.mean()), tuple(verdict_reasons)))
        assert len(trust) == len(scan)
        self.pending = (*self.pending, scan.source)
        return Considered(True, "it is a test", scan.source, len(scan) // 2, 2, None, {"rms_rad": float("nan")})

    def propose(self, stop: Callable[[], bool]) -> Candidate | None:
        if len(self.pending) < self.runs_a_round or not self.candidates:
            return None
        if stop():
            self.stopped += 1
            return None
        folder = self.proposed = self.candidates[0]
        return Candidate(load_model(folder, "cpu"), folder, {"round": self.rounds + 1, "runs": list(self.pending)})

    def judge(self, candidate: Candidate) -> Judgement:
        self.meanwhile()
        promote = self.promote.pop(0)
        if not promote:
            self._end()
        return Judgement(promote, "0.08 rad against 0.10" if promote else "no gain", {"gain_rad": 0.02})

    def set_champion(self, model: Any) -> None:
        self.champions.append(model.card.version)
        if self.proposed is not None and model.card.weights_sha256 == load_card(self.proposed).weights_sha256:
            self._end()

    def _end(self) -> None:
        self.candidates, self.pending, self.proposed = self.candidates[1:], (), None
        self.rounds += 1


@pytest.fixture
def registry(catalog_server: CatalogServer) -> Registry:
    return Registry(catalog_server)


@pytest.fixture
def name(registry: Registry, make_model: Any) -> str:
    """A champion to begin with."""
    registry.publish(make_model("1"))
    found = load_card(make_model("1")).name
    registry.promote(found, "1", "what we begin with")
    return found


@pytest.fixture
def since() -> float:
    """Other tests' runs are in the catalog too."""
    return time.time()


@pytest.fixture
def scan(RE: Any, catalog_server: CatalogServer, detector_folder: Path) -> Callable[..., str]:
    """Measure a run of so many points a side."""
    from bluesky_tiled_plugins import TiledWriter

    beamline = SimulatedBeamline.demo(detector_folder)
    RE.subscribe(TiledWriter(catalog_server.raw))

    def measure(side: int = 2) -> str:
        width = 0.3 * (side - 1)
        plan = ptycho_scan([beamline.camera], beamline.stage.x, beamline.stage.y, width, width, 0.3, pattern="raster")
        (uid,) = RE(plan)
        return str(uid)

    return measure


@pytest.fixture
def learns(catalog_server: CatalogServer, name: str, since: float, tmp_path: Path) -> Any:
    """Start a learner with a fake inside; like after a kill when it is asked again."""
    made: list[CatalogLearner] = []

    def start(fake: FakeLearner, **changes: Any) -> CatalogLearner:
        for one in made:
            one.close()
        config = CONFIG.model_copy(update=changes)
        learner = CatalogLearner(
            catalog_server, name, tmp_path / "learner", config, since=since, make_learner=lambda *_: fake
        )
        made.append(learner)
        return learner

    yield start
    for one in made:
        one.close()


def kinds(registry: Registry, name: str) -> list[tuple[str, str]]:
    return [(lesson.kind, lesson.champion) for lesson in registry.learning(name)]


def test_each_run_is_considered_once_and_each_candidate_ruled_on(
    catalog_server: CatalogServer, registry: Registry, make_model: Any, name: str, scan: Any, learns: Any
) -> None:
    first, second = scan(3), scan()
    reconstruct(first, name, catalog_server, threads=1)
    fake = FakeLearner([make_model("1-learn1", 1), make_model("1-learn2", 2)], [True, False], runs_a_round=2)
    learns(fake).run(threading.Event(), once=True)
    assert [source for source, _, _ in fake.seen] == [first, second]
    assert fake.seen[0][1] <= 1.0
    assert fake.seen[1][1] == 1.0  # not reconstructed by anybody
    assert kinds(registry, name) == [("taken", "1"), ("taken", "1"), ("promote", "1")]
    assert registry.champion(name) == "1-learn1"
    taken, _, promoted = registry.learning(name)
    assert (taken.key, taken.reason, taken.by) == (first, "it is a test", "ptychonn learn")
    assert taken.numbers["rms_rad"] is None
    assert (taken.numbers["frames"], taken.numbers["reconstructed_by"]) == (4, f"{name}/1")
    decision = registry.history(name)[-1]
    assert (decision.kind, decision.by, decision.reason) == ("promote", "ptychonn learn", "0.08 rad against 0.10")
    assert decision.numbers == promoted.numbers
    assert promoted.numbers["runs"] == [first, second]
    assert fake.champions[-1] == "1-learn1"

    third = scan()
    again = FakeLearner([make_model("1-learn2", 2)], [False], rounds=1)
    learns(again).run(threading.Event(), once=True)  # a new process, and one more run
    assert [source for source, _, _ in again.seen] == [third]
    assert kinds(registry, name)[3:] == [("taken", "1-learn1"), ("keep", "1-learn1")]
    assert len(registry.history(name)) == 2  # a keep changes no champion, and no rollback's way
    assert registry.rollback(name).version == "1"


def test_a_rollback_is_respected(registry: Registry, make_model: Any, name: str, scan: Any, learns: Any) -> None:
    scan()
    made = make_model("1-learn1", 1)
    fake = FakeLearner([made, made], [True, True])
    learner = learns(fake)
    learner.run(threading.Event(), once=True)
    registry.rollback(name, "streaks in the sky", by="ada")
    scan()
    learner.run(threading.Event(), once=True)  # comes to the same candidate once more
    assert registry.champion(name) == "1"
    assert fake.champions[-1] == "1"
    kept = registry.learning(name)[-1]
    assert kept.kind == "keep"
    assert kept.reason == "these weights were champion as 1-learn1, until ada rolled them back: streaks in the sky"


def test_what_a_person_promotes_meanwhile_stays(
    registry: Registry, make_model: Any, name: str, scan: Any, learns: Any
) -> None:
    scan()
    registry.publish(make_model("2", 2))
    fake = FakeLearner([make_model("1-learn1", 1)], [True])
    fake.meanwhile = lambda: registry.promote(name, "2", "trained for a week", by="ada")
    learns(fake).run(threading.Event(), once=True)
    assert registry.champion(name) == "2"
    assert "its champion became '2' meanwhile, not '1'" in registry.learning(name)[-1].reason
    assert fake.champions[-1] == "2"


def test_no_work_while_a_run_is_under_way(
    catalog_server: CatalogServer, registry: Registry, make_model: Any, name: str, scan: Any, learns: Any
) -> None:
    from bluesky_tiled_plugins import TiledWriter

    scan()
    fake = FakeLearner([make_model("1-learn1", 1)], [True])
    learner = learns(fake)
    assert learner.turn()
    assert fake.pending
    writer = TiledWriter(catalog_server.raw, batch_size=1)
    run = str(uuid.uuid4())

    def begin() -> bool:
        writer("start", {"uid": run, "time": time.time(), "scan_id": 77})
        time.sleep(0.02)
        return False

    was = learner._stop
    learner._stop = lambda: begin() or was()  # in the midst of the training
    assert not learner.turn()
    assert fake.stopped == 1
    assert learner.waiting_for == f"scan 77, run {run[:8]} is under way"
    assert not learner.turn()
    assert registry.champion(name) == "1"
    writer("stop", {"uid": str(uuid.uuid4()), "run_start": run, "time": time.time(), "exit_status": "success"})
    learner._stop = was
    assert learner.turn()
    assert registry.champion(name) == "1-learn1"
    assert learner.waiting_for == ""


def test_what_a_kill_left_half_done_is_made_good(
    registry: Registry, make_model: Any, name: str, scan: Any, learns: Any
) -> None:
    run = scan()
    learner = learns(FakeLearner([], []))
    for _ in range(4):  # dies in the midst of this run again and again
        learner._follow_champion()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(learner._promotions, "keep", lambda lesson: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                learner.turn()
    learner.turn()
    (lesson,) = registry.learning(name)
    assert (lesson.key, lesson.kind) == (run, "passed over")
    assert "the learner ended in the midst of it 3 times" in lesson.reason

    numbers = {"round": 1, "learner": learner._promotions._learner}
    registry.publish(make_model("2", 2))
    registry.promote(name, "2", "better", numbers, by="ptychonn learn")  # and killed; then a round that said no, killed
    learns(FakeLearner([], [], rounds=2)).turn()
    learns(FakeLearner([], [], rounds=2)).turn()
    promoted, kept = registry.learning(name)[1:]
    assert (promoted.kind, promoted.version, promoted.champion, promoted.reason) == ("promote", "2", "1", "better")
    assert (kept.kind, kept.reason) == ("keep", "kept; a kill just then lost the numbers")


def test_what_cannot_be_learned_from_is_said(
    catalog_server: CatalogServer, registry: Registry, name: str, scan: Any, learns: Any, tmp_path: Path
) -> None:
    scan(3)
    fake = FakeLearner([], [])
    learner = learns(fake, memory_bytes=2**17)
    learner.turn()
    assert not fake.seen
    (lesson,) = registry.learning(name)
    assert lesson.kind == "passed over"
    assert "its 9 frames would take 1 MiB to learn from, 0 MiB are allowed (memory_bytes)" in lesson.reason
    with pytest.raises(ValueError, match="another learner is at work in"):
        CatalogLearner(catalog_server, name, tmp_path / "learner")
    with pytest.raises(ValueError, match="the catalog has no champion 'm-nobody' to begin with; 'ptychonn models"):
        CatalogLearner(catalog_server, "m-nobody", tmp_path / "other")
    full = learns(fake, free_disk_bytes=2**60)
    assert not full.turn()
    assert "are to stay free" in full.waiting_for


def test_lessons_are_kept_in_order_and_once(catalog_server: CatalogServer) -> None:
    name = f"m-{uuid.uuid4().hex[:12]}"
    one, other = LearningLog(catalog_server, name), LearningLog(catalog_server, name)
    assert one.read() == ()
    made = [LearningRecord(f"run-{i}", "taken", "1", f"reason {i}", numbers={"frames": i}) for i in range(4)]
    assert [(one, other)[i % 2].add(lesson) for i, lesson in enumerate(made)] == [True] * 4
    assert not other.add(made[1])
    assert list(one.read()) == made
    assert str(made[0]).endswith("run run-0, champion 1: taken: reason 0")
    barrier = threading.Barrier(2)

    def add(lessons: LearningLog, key: str) -> None:
        barrier.wait()
        lessons.add(LearningRecord(key, "keep", "1", "at the same time"))

    threads = [threading.Thread(target=add, args=(lessons, key)) for lessons, key in ((one, "a"), (other, "b"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(lesson.key for lesson in one.read()[4:]) == ["a", "b"]
    with pytest.raises(ValueError, match="allowed: taken, passed over, promote, keep"):
        LearningRecord("key", "praise", "1", "why")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs a reason"):
        LearningRecord("key", "keep", "1", " ")


def test_runs_are_listed_a_page_a_request(catalog_server: CatalogServer, scan: Any, since: float) -> None:
    uids = [scan(), scan()]
    asked: list[int] = []
    runs = RunList(catalog_server.client, before_request=lambda: asked.append(1))
    assert [run.uid for run in runs.page(since=since)] == uids[::-1]
    assert [run.uid for run in runs.page(1, since=since)] == uids[:1]
    assert len(asked) == 2
    assert all(run.ptychography and run.stop for run in runs.page(since=since))
    open_run = Listed({"uid": "u", "time": 100.0}, None)
    assert [open_run.under_way(now, 10.0) for now in (105.0, 115.0)] == [True, False]


@pytest.mark.slow
@pytest.mark.system
def test_killed_in_the_midst_of_training_it_goes_on(
    catalog_server: CatalogServer,
    registry: Registry,
    small_model: Path,
    name: str,
    scan: Any,
    since: float,
    tmp_path: Path,
) -> None:
    """The real command with the real learner: kill -9 in a round, then to the end here."""
    tiny = load_model(small_model, "cpu")
    assert tiny.probe is not None
    probe = tiny.probe.numpy() * 300  # as of a trained model: root of the photons
    reference = ProbeReference.from_probe(probe, tiny.card.input.object_pixel_m, "simulated")
    card = tiny.card.model_copy(update={"name": name, "version": "2", "probe": reference})
    save_model(tmp_path / "lit", tiny.network, card, probe)
    registry.promote(name, registry.publish(tmp_path / "lit"), "knows its light")
    run = scan(8)
    reconstruct(run, name, catalog_server, threads=1)
    folder, toml = tmp_path / "own", tmp_path / "ptychonn.toml"
    round_ = LearningConfig(
        frames=256,
        runs_a_round=1,
        simulated_frames=16,
        fewest_frames=8,
        least_foreseen=0.0,
        least_trust=0.0,
        most_tuning_rad=10.0,
        save_every_s=0.05,
    )
    toml.write_text(
        '[catalog]\naddress = "x"\n[reconstruction]\nmodel = "x"\n[learning]\nshare = 1.0\nnice = 0\ndevice = "cpu"\n'
        'poll_s = 0.2\nfolder = "own"\n[learning.round]\n'
        + "".join(f"{key} = {value}\n" for key, value in round_.model_dump(exclude_defaults=True).items())
    )
    code = "from bluesky_ptychonn.cli import main; main()"
    begun = datetime.fromtimestamp(since, UTC).isoformat()
    command = ["learn", name, "--catalog", catalog_server.uri, "--config", str(toml), "--since", begun]
    environment = {**os.environ, "TILED_API_KEY": catalog_server.api_key}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command], env=environment, stderr=subprocess.PIPE, text=True
    )
    state = folder / "learner" / "round" / "training.pt"
    end = time.monotonic() + WAIT_S
    while not state.exists() and time.monotonic() < end and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    _, said = process.communicate()
    assert state.exists(), said
    assert f"run {run[:8]}, champion 2: taken:" in said
    assert [lesson.key for lesson in registry.learning(name)] == [run]

    config = CONFIG.model_copy(update={"round": round_})
    learner = CatalogLearner(catalog_server, name, folder, config, since=since)
    learner.run(threading.Event(), once=True)
    learner.close()
    considered, ruled = registry.learning(name)
    assert considered.key == run
    assert ruled.kind in ("keep", "promote")
    assert ruled.numbers["runs"] == [run]
    assert (registry.champion(name) == "2") == (ruled.kind == "keep")
