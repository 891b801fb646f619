"""Trust is the probability it says it is, on frames that nothing was fitted to."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import spearmanr

from bluesky_ptychonn.calibration import TrustCalibration
from bluesky_ptychonn.card import ModelCard, find_model
from bluesky_ptychonn.optics.simulate import SimulatedExperiment, zone_plate_probe
from bluesky_ptychonn.recon.evaluation.trust_calibration import (
    calibrated,
    disturbed_frames,
    fit_table,
    refocused,
    scored,
    synthetic_config,
)
from bluesky_ptychonn.recon.inference.reconstructor import Reconstructor
from bluesky_ptychonn.recon.models.checkpoint import Model, load_model
from bluesky_ptychonn.recon.networks.base import ObjectNetwork
from bluesky_ptychonn.recon.quality.trust import frame_score, frame_trust, movement

TABLE = TrustCalibration(
    score=(0.02, 0.05, 0.1),
    right=(0.95, 0.6, 0.05),
    error_rad=(0.05, 0.1, 0.4),
    frames=100,
    rank_correlation=0.8,
    trained_trust=0.7,
)


@pytest.fixture(scope="module")
def shipped() -> Model:
    return load_model("simulated-zp64", "cpu")


@pytest.fixture(scope="module")
def fresh(shipped: Model) -> tuple[np.ndarray, np.ndarray]:
    """Scores and errors of 768 frames of a seed that no table was fitted to."""
    assert shipped.probe is not None
    assert isinstance(shipped.network, ObjectNetwork)
    parts = [
        scored(shipped.network, counts, told, truth)
        for counts, told, truth, _ in disturbed_frames(
            shipped.probe.numpy(), synthetic_config(shipped), shipped, 768, seed=77
        )
    ]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def test_of_frames_with_one_trust_that_part_is_right(shipped: Model, fresh: tuple[np.ndarray, np.ndarray]) -> None:
    table = shipped.card.trust
    assert table is not None
    trust, right = table.trust(fresh[0]), fresh[1] < table.tolerance_rad
    for low, high in ((0, 0.2), (0.2, 0.6), (0.6, 0.85), (0.85, 1.01)):
        here = (trust >= low) & (trust < high)
        n, p = int(here.sum()), float(trust[here].mean())
        assert n > 60
        # Two frames in eight of a batch see one sample, so fewer than n are independent: four sigma, not three.
        assert abs(right[here].mean() - p) < 4 * np.sqrt(p * (1 - p) / n) + 1 / n, (low, high)


def test_nine_in_ten_errors_stay_below_the_expected_one(shipped: Model, fresh: tuple[np.ndarray, np.ndarray]) -> None:
    table = shipped.card.trust
    assert table is not None
    assert (fresh[1] < table.error(fresh[0])).mean() == pytest.approx(table.quantile, abs=0.05)


def test_the_score_ranks_the_error_better_than_the_residual_alone(
    shipped: Model, fresh: tuple[np.ndarray, np.ndarray]
) -> None:
    assert spearmanr(*fresh).statistic > 0.75
    assert shipped.card.trust is not None
    assert shipped.card.trust.rank_correlation == pytest.approx(spearmanr(*fresh).statistic, abs=0.07)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_trust_never_rises_and_the_error_never_falls_with_the_score(scores: list[float]) -> None:
    ascending = np.sort(scores)
    assert (np.diff(TABLE.trust(ascending)) <= 0).all()
    assert (np.diff(TABLE.error(ascending)) >= 0).all()
    assert ((TABLE.trust(ascending) >= 0) & (TABLE.trust(ascending) <= 1)).all()


def test_a_score_that_is_no_number_is_not_trusted() -> None:
    assert TABLE.trust([np.nan, np.inf, 0.0]).tolist() == pytest.approx([0, 0, 0.95])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), slope=st.floats(-3, 3))
def test_whatever_the_frames_the_table_is_monotone(seed: int, slope: float) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.lognormal(-3, 1, 200)
    errors = np.abs(slope * scores + rng.normal(0, 0.1, 200))
    table = fit_table(scores, errors)  # validates on construction
    # Fitted where it was, it cannot be far off on the whole; one right and one wrong frame are added to each group.
    assert table.trust(scores).mean() == pytest.approx((errors < 0.1).mean(), abs=0.06)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"score": (0.02, 0.02, 0.1)}, "scores must ascend"),
        ({"right": (0.5, 0.6, 0.1)}, "never rise"),
        ({"right": (1.5, 0.6, 0.1)}, "0 to 1"),
        ({"error_rad": (0.1, 0.05, 0.4)}, "never fall"),
        ({"right": (0.5, 0.1)}, "one of each for every knot"),
        ({"tolerance_rad": 0.0}, "tolerance_rad"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TrustCalibration(**{**TABLE.model_dump(), **changes})


def test_the_engine_uses_the_table_and_says_so(shipped: Model) -> None:
    experiment = SimulatedExperiment.demo()
    rng = np.random.default_rng(5)
    frames = np.stack([experiment.frame_at(0, k * 3e-7, rng) for k in range(6)]).astype(np.float32)
    engine = Reconstructor(shipped, device="cpu")
    made = engine.reconstruct(frames)
    assert shipped.probe is not None
    assert shipped.card.trust is not None
    with torch.inference_mode():
        probe = shipped.probe * engine._flux.probe_factor
        truth = torch.zeros(6, 32, 32, dtype=torch.complex64)
        score, _ = scored(shipped.network, torch.from_numpy(frames), probe, truth)  # type: ignore[arg-type]
    assert made.trust == pytest.approx(shipped.card.trust.trust(score), abs=1e-3)
    told = engine.describe()
    assert (told["trust"], told["trust_tolerance_rad"]) == ("calibrated", 0.1)


def test_a_card_without_a_table_keeps_the_old_trust_and_says_so(shipped: Model) -> None:
    bare = replace(shipped, card=shipped.card.model_copy(update={"trust": None}))
    frames = np.stack([SimulatedExperiment.demo().frame_at(0, 0, np.random.default_rng(1))]).astype(np.float32)
    engine = Reconstructor(bare, device="cpu")
    made = engine.reconstruct(frames)
    assert shipped.probe is not None
    patch, probe = torch.from_numpy(made.patches), shipped.probe * engine._flux.probe_factor
    assert made.trust == pytest.approx(frame_trust(patch, torch.from_numpy(frames), probe).numpy(), abs=1e-3)
    assert engine.describe()["trust"] == "uncalibrated"
    assert engine.describe()["trust_tolerance_rad"] is None


def test_calibrating_changes_the_card_and_not_the_weights(shipped: Model) -> None:
    bare = replace(shipped, card=shipped.card.model_copy(update={"trust": None}))
    made = calibrated(bare, frames=128, scans=2, seed=3)
    assert made.network is shipped.network
    assert made.card.model_copy(update={"trust": None}) == bare.card
    table = made.card.trust
    assert table is not None
    assert table.frames == 128
    assert set(table.runs) == {"shift_px", "scale", "width", "overlap_rad", "mean_trust"}
    assert ModelCard.model_validate_json(made.card.model_dump_json()) == made.card
    without = Model(bare.card.model_copy(update={"probe": None, "family": "direct", "network": {}}), bare.network, None)
    assert calibrated(without).card.trust is None


def test_the_shipped_weights_are_those_of_the_card() -> None:
    folder = find_model("simulated-zp64")
    digest = hashlib.sha256(Path(folder, "model.safetensors").read_bytes()).hexdigest()
    assert ModelCard.load(folder).weights_sha256 == digest


def test_movement_is_the_turn_under_the_light() -> None:
    probe = torch.zeros(8, 8, dtype=torch.complex64)
    probe[3:5, 3:5] = 2.0
    before = torch.ones(1, 4, 4, dtype=torch.complex64)
    after = before.clone()
    after[0, 0, 0] = 1j  # in the dark
    assert float(movement(before, after, probe)) == pytest.approx(0, abs=1e-6)
    # Half of the light turned by 0.4 rad: 0.2 either side of the global phase.
    after[0, 1] *= np.exp(0.4j)
    assert float(movement(before, after * np.exp(2j), probe)) == pytest.approx(0.2, abs=1e-5)
    assert float(frame_score(torch.tensor([-0.1]), torch.tensor([0.3]))) == pytest.approx(0.3)
    assert float(frame_score(torch.tensor([0.3]), torch.tensor([0.0]))) == pytest.approx(0.3)


def test_refocusing_keeps_the_far_field_and_undoes() -> None:
    probe = torch.from_numpy(zone_plate_probe((64, 64), 30))
    moved = refocused(probe, 1.5)
    assert torch.allclose(torch.fft.fft2(moved).abs(), torch.fft.fft2(probe).abs(), atol=1e-5)
    assert float((moved - probe).abs().square().sum()) > 0.5
    assert torch.allclose(refocused(moved, -1.5), probe, atol=1e-5)
