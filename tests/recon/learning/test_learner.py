"""A learner takes good runs, refuses bad ones, crowns only what is better, and forgets nothing when killed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bluesky_ptychonn.card import InputContract, ModelCard, ProbeReference
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.optics.simulate import SimulatedExperiment, make_sample, zone_plate_probe
from bluesky_ptychonn.recon.data.scans import LabelledScan, MeasuredScan
from bluesky_ptychonn.recon.data.simulated import SyntheticConfig
from bluesky_ptychonn.recon.evaluation.simulated_scans import ScanSeries
from bluesky_ptychonn.recon.evaluation.trust_calibration import refocused
from bluesky_ptychonn.recon.learning.candidate import KnownProbes
from bluesky_ptychonn.recon.learning.judge import compare_models, label_error
from bluesky_ptychonn.recon.learning.learner import Considered, Judgement, Learner, LearningConfig, Stage
from bluesky_ptychonn.recon.models.checkpoint import Model, load_model, save_model
from bluesky_ptychonn.recon.networks.base import ObjectNetwork
from bluesky_ptychonn.recon.networks.direct import DirectConfig
from bluesky_ptychonn.recon.networks.families import build_network
from bluesky_ptychonn.recon.networks.lifted import LiftedConfig
from bluesky_ptychonn.recon.quality.verdict import Reason, ReasonKind
from bluesky_ptychonn.recon.training.model import Effort

UNIT = torch.as_tensor(zone_plate_probe((32, 32), 14))
BELIEVED = (UNIT * 1e5**0.5).numpy()
GEOMETRY = Geometry(energy_ev=10_000, distance_m=1, pixel_pitch_m=75e-6, frame_shape=(32, 32))
CONFIG = LearningConfig(
    runs_a_round=1,
    frames=192,
    learning_rate=3e-3,
    simulated_frames=16,
    fewest_frames=16,
    margin_rad=0.02,
)
SAVING = CONFIG.model_copy(update={"save_every_s": 1e-6})  # after every step


@pytest.fixture(autouse=True, scope="module")
def _small_measurements() -> object:
    """A card measured in a second: what it says is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        effort = Effort(ScanSeries((0.4,), field_diameters=2.0), 256, {"frames": 128, "scans": 1})
        patch.setattr("bluesky_ptychonn.recon.learning.candidate._EFFORT", effort)
        yield


def model_of(folder: Path, config: DirectConfig | LiftedConfig) -> Model:
    torch.manual_seed(0)
    network = build_network(config).eval()
    card = ModelCard(
        name="tiny",
        version="1",
        family=config.family,
        network=config.model_dump(mode="json"),
        input=InputContract(
            frame_shape=(32, 32),
            patch_shape=(16, 16),
            object_pixel_m=GEOMETRY.object_pixel_m,
            counts_per_frame=(1e4, 3e5),
        ),
        probe=ProbeReference.from_probe(BELIEVED, GEOMETRY.object_pixel_m, "test"),
        weights_sha256="0" * 64,
    )
    save_model(folder, network, card, BELIEVED)
    return load_model(folder, "cpu")


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Untrained: what the lift alone gives, which training betters at once."""
    config = LiftedConfig(frame_size=32, patch_size=16, width=4, stages=2)
    return model_of(tmp_path_factory.mktemp("champion"), config)


def run_of(seed: int, defocus: float, side: int = 8) -> MeasuredScan:
    """Etched sample at 0.3 of the probe, through a probe out of focus."""
    rng = np.random.default_rng(seed)
    sample = make_sample("etched", (160, 160), seed, phase_rad=-0.9, absorption=0.1)
    e = SimulatedExperiment(GEOMETRY, refocused(UNIT, defocus).numpy(), sample, 1e5)
    step = 0.3 * e.probe_diameter_m
    line = (np.arange(side) - (side - 1) / 2) * step
    y, x = (a + rng.uniform(-0.2, 0.2, a.size) * step for a in (np.repeat(line, side), np.tile(line, side)))
    counts = np.stack([e.frame_at(a, b, rng) for a, b in zip(y, x, strict=True)])
    return MeasuredScan(counts, y, x, BELIEVED, GEOMETRY, f"run {seed}")


def scrambled(scan: MeasuredScan) -> MeasuredScan:
    order = np.random.default_rng(0).permutation(len(scan))
    return replace(scan, y_m=scan.y_m[order], x_m=scan.x_m[order], source=f"{scan.source} scrambled")


GOOD, LATER = run_of(2, 0.6), run_of(3, 0.7)
ALL = np.ones(len(GOOD))


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory, champion: Model) -> tuple[Path, Considered]:
    """State of a learner that took the good run and made a candidate."""
    folder = tmp_path_factory.mktemp("taught")
    learner = Learner(folder, champion, CONFIG)
    assert learner.propose() is None
    found = learner.consider(GOOD, trust=ALL, verdict_reasons=[Reason(ReasonKind.PROBE, "patches differ")])
    assert learner.propose() is not None
    return folder, found


@pytest.fixture
def taught(lesson: tuple[Path, Considered], tmp_path: Path) -> Path:
    """One to spoil."""
    return shutil.copytree(lesson[0], tmp_path / "taught")


@pytest.fixture(scope="module")
def made(lesson: tuple[Path, Considered]) -> LabelledScan:
    """Held-out half of the good run, labelled."""
    return LabelledScan.load(next((lesson[0] / "held_out").glob("*.npz")))


def test_a_drifted_run_is_taken_and_what_it_teaches_is_crowned(
    taught: Path, champion: Model, lesson: tuple[Path, Considered]
) -> None:
    found = lesson[1]
    assert found.taken, found.reason
    assert found.probe is not None
    assert found.probe.aberrations_rad["defocus"] == pytest.approx(0.6, abs=0.05)
    assert found.frames >= 8
    assert found.held_out >= 16
    learner = Learner(taught, champion, CONFIG)
    assert learner.pending == ("run 2",)
    candidate = learner.propose()
    assert candidate is not None
    assert candidate.record["runs"] == ["run 2"]
    card = candidate.model.card
    assert (card.name, card.version, card.training["command"]) == ("tiny", "1-learn1", "ptychonn learn")
    assert card.training["started_from"].startswith("tiny 1, sha256 ")
    assert card.probe is not None
    assert card.probe.source == "tuned to run 2"
    assert card.sampling
    assert card.trust is not None
    judged = learner.judge(candidate)
    assert judged.promote, judged.reason
    new = judged.numbers["new"]["run 2"]
    assert new["candidate_rad"] < 0.97 * new["champion_rad"]
    json.dumps(judged.numbers)
    assert learner.pending == ("run 2",)  # until somebody crowns it
    learner.set_champion(candidate.model)
    assert (learner.pending, learner.rounds) == ((), 1)


def test_a_state_of_the_first_version_is_read(tmp_path: Path, champion: Model) -> None:
    """Its reasons began with what became of the run, which is a field beside them."""
    answers = [("a", True, "taken: probe moved by 0.10 rad"), ("b", False, "not taken: 2 of 5 frames have any trust")]
    rest = {"frames": 3, "held_out": 2, "numbers": {}}
    considered = {source: {"taken": taken, "reason": reason, **rest} for source, taken, reason in answers}
    state = {"schema": 1, "rounds": 4, "champion": "0" * 64, "pending": ["a"], "best": {}, "considered": considered}
    (tmp_path / "state.json").write_text(json.dumps(state))
    for _ in range(2):  # as it was, and as it is written now
        learner = Learner(tmp_path, champion, CONFIG)
        assert (learner.rounds, learner.pending, learner.stage) == (4, ("a",), Stage.COLLECTING)
        for source, taken, reason in answers:
            found = learner.consider(replace(GOOD, source=source), trust=ALL)
            assert (found.taken, str(found)) == (taken, reason)
            assert found.reason == reason.partition("taken: ")[2]
    assert json.loads((tmp_path / "state.json").read_text())["schema"] == 2


@pytest.mark.parametrize(
    ("scan", "trust", "reasons", "words"),
    [
        (GOOD, ALL, (Reason(ReasonKind.SHIFTED, "by 3 px"),), "the verdict on the run says detector shifted: by 3 px"),
        (GOOD, np.where(np.arange(len(ALL)) < 9, 1.0, 0.0), (), "9 of 64 frames have any trust, 16 are needed"),
        (GOOD, ALL * np.nan, (), "0 of 64 frames have any trust"),
        (scrambled(GOOD), ALL, (), "its label foresees 0% of what the sample does to frames left out"),
    ],
)
def test_a_bad_run_is_not_taken_and_says_why(
    tmp_path: Path, champion: Model, scan: MeasuredScan, trust: np.ndarray, reasons: tuple[Reason, ...], words: str
) -> None:
    learner = Learner(tmp_path, champion, CONFIG)
    found = learner.consider(scan, trust=trust, verdict_reasons=reasons)
    assert not found.taken
    assert words in found.reason
    assert learner.propose() is None
    again = Learner(tmp_path, champion, CONFIG).consider(scan, trust=ALL)
    assert (again.taken, again.reason) == (False, found.reason)  # from memory


def test_a_probe_that_would_jump_is_not_believed(tmp_path: Path, champion: Model) -> None:
    learner = Learner(tmp_path, champion, CONFIG.model_copy(update={"most_tuning_rad": 0.3}))
    assert "up to 0.3 is believed" in learner.consider(GOOD, trust=ALL).reason


def test_a_bad_run_taken_on_insistence_is_stopped_by_the_judge_and_forgotten(taught: Path, champion: Model) -> None:
    learner = Learner(taught, champion, CONFIG)
    first = learner.propose()
    assert first is not None
    assert learner.judge(first).promote
    learner.set_champion(first.model)
    assert learner.consider(scrambled(LATER), trust=ALL, insist=True).taken
    candidate = learner.propose()
    assert candidate is not None
    judged = learner.judge(candidate)
    assert not judged.promote
    assert judged.reason.startswith("kept: ")
    assert (learner.pending, learner.rounds) == ((), 2)
    assert learner.champion is first.model
    for folder in ("buffer", "held_out"):
        assert len(list((taught / folder).glob("*.npz"))) == 1
    assert not (taught / "challenger").exists()


def test_a_killed_or_stopped_round_ends_as_it_would_have(taught: Path, tmp_path: Path, champion: Model) -> None:
    asked = 0

    def soon() -> bool:
        nonlocal asked
        asked += 1
        return asked == 7

    def learner(name: str) -> Learner:
        return Learner(tmp_path / name, champion, SAVING)

    learner("stopped").consider(GOOD, trust=ALL)
    whole = learner("taught").propose()
    assert learner("stopped").propose(soon) is None
    assert learner("stopped").stage is Stage.TRAINING
    steps: list[int] = []
    resumed = learner("stopped").propose(lambda: bool(steps.append(1)))
    assert whole is not None
    assert resumed is not None
    assert len(steps) <= 12 - 6  # it did not begin anew
    assert resumed.model.card.weights_sha256 == whole.model.card.weights_sha256
    first, second = (learner(name).judge(c) for name, c in (("taught", whole), ("stopped", resumed)))
    assert (first.promote, first.reason) == (second.promote, second.reason)
    # Killed after the judgement, before anybody crowned it: the same candidate again, without training.
    assert learner("stopped").stage is Stage.PROPOSED
    again = learner("stopped").propose(lambda: pytest.fail("it trained again"))
    assert again is not None
    assert again.model.card.weights_sha256 == whole.model.card.weights_sha256
    # Crowned elsewhere meanwhile: the round has ended.
    after = Learner(tmp_path / "stopped", again.model, CONFIG)
    assert (after.pending, after.rounds) == ((), 1)


def test_after_a_rollback_an_open_round_begins_anew(taught: Path, tmp_path: Path, champion: Model) -> None:
    learner = Learner(taught, champion, CONFIG)
    first = learner.propose()
    assert first is not None
    other = model_of(tmp_path / "other", LiftedConfig(frame_size=32, patch_size=16, width=6, stages=2))
    learner.set_champion(other)
    assert (learner.pending, learner.rounds) == (("run 2",), 0)
    second = learner.propose()
    assert second is not None
    assert second.record["champion"] == other.card.weights_sha256
    assert second.model.card.weights_sha256 != first.model.card.weights_sha256


@pytest.mark.slow
def test_a_direct_network_learns_the_same_way(tmp_path: Path) -> None:
    config = DirectConfig(frame_size=32, patch_size=16, width=0.25, batch_norm=True, input_root=True, input_scale=5.0)
    direct = model_of(tmp_path / "model", config)
    learner = Learner(tmp_path / "state", direct, CONFIG)
    assert learner.consider(GOOD, trust=ALL).taken  # although what the untrained network says is no object
    candidate = learner.propose()
    assert candidate is not None
    assert candidate.model.card.family == "direct"
    before, after = direct.network.state_dict(), candidate.model.network.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    judged = learner.judge(candidate)
    assert not judged.promote  # it takes more frames than that to learn anything
    assert judged.reason.startswith("kept: ")


@pytest.fixture
def judge_of(champion: Model, made: LabelledScan) -> Callable[..., Judgement]:
    """Judge the champion, told the probe it was trained for, against another network."""
    network, believed = champion.network, champion.probe
    assert isinstance(network, ObjectNetwork)
    assert believed is not None

    def judged(other: Any, *, scan: LabelledScan = made, older: tuple[LabelledScan, ...] = (), **best: float) -> Any:
        new = (other, torch.as_tensor(made.probe))
        return compare_models((network, believed), new, [scan], older, best, SyntheticConfig(photons=1e5), CONFIG)

    return judged


class Flat(torch.nn.Module):
    """Answers 1 everywhere, as a network would that learned to please labels of scrambled frames."""

    def __init__(self, network: ObjectNetwork) -> None:
        super().__init__()
        self.config, self.anchor = network.config, network.anchor

    def forward(self, counts: torch.Tensor, probe: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(counts), 16, 16, dtype=torch.complex64)


def test_a_network_that_pleases_wrong_labels_is_stopped_by_the_frames(
    champion: Model, made: LabelledScan, judge_of: Callable[..., Judgement]
) -> None:
    assert isinstance(champion.network, ObjectNetwork)
    wrong = replace(made, object=np.ones_like(made.object))
    flat: Any = Flat(champion.network)
    assert label_error(flat, wrong) < 1e-3  # by its labels it is perfect
    found = judge_of(flat, scan=wrong)
    assert not found.promote
    assert "of the light unforeseen" in found.reason


def test_small_losses_do_not_add_up(champion: Model, made: LabelledScan, judge_of: Callable[..., Judgement]) -> None:
    assert isinstance(champion.network, ObjectNetwork)
    old = replace(made, source="old")
    now = label_error(champion.network, old)
    fine, not_fine = (judge_of(champion.network, older=(old,), old=now - loss) for loss in (0.01, 0.03))
    assert "on run old" not in fine.reason
    assert "on run old it would lose 0.030 rad, 0.02 are allowed" in not_fine.reason


def test_known_probes_are_drawn_by_their_shares() -> None:
    family = KnownProbes.from_probes([BELIEVED, 2 * BELIEVED], [1, 3])
    drawn = [float(np.abs(family.draw(32, np.random.default_rng(k))).max()) for k in range(200)]
    assert 0.65 < np.mean(np.array(drawn) > 1.5 * min(drawn)) < 0.85


def test_what_does_not_fit_is_said(tmp_path: Path, champion: Model) -> None:
    learner = Learner(tmp_path, champion, CONFIG)
    with pytest.raises(ValueError, match=r"trust for \(3,\)"):
        learner.consider(GOOD, trust=np.ones(3))
    blind = Model(champion.card.model_copy(update={"probe": None}), champion.network, None)
    with pytest.raises(ValueError, match="has no probe"):
        Learner(tmp_path, blind)
    (tmp_path / "state.json").write_text("no")
    with pytest.raises(ValueError, match="is not a learner's state"):
        Learner(tmp_path, champion, CONFIG)


def test_a_gain_too_small_is_kept_for_the_next_round(taught: Path, champion: Model) -> None:
    learner = Learner(taught, champion, CONFIG.model_copy(update={"gain": 0.9}))
    candidate = learner.propose()
    assert candidate is not None
    assert {path.name for path in candidate.folder.iterdir()} == {"card.json", "model.safetensors", "record.json"}
    judged = learner.judge(candidate)
    assert not judged.promote
    assert judged.harmless
    assert "90.0% are asked" in judged.reason
    assert learner.consider(LATER, trust=ALL).taken
    second = learner.propose()
    assert second is not None
    assert second.record["went_on_from"] == "1-learn1"
    assert second.record["started_from"].startswith("tiny 1, ")
    assert second.model.card.version == "1-learn2"
    assert set(learner.judge(second).numbers["old"]) == {"run 2"}
    assert set(second.record["runs"]) == {"run 3"}
