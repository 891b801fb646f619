"""What a training is fed: decided by seed and number, mixed as asked, physically what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bluesky_ptychonn.recon.data.batches import LabelFree, Labelled, Mix, MixedBatches, TrainingData, make_sources
from bluesky_ptychonn.recon.data.simulated import SyntheticConfig
from tests.support.scans import PROBE, labelled_scan, matching

SCAN = labelled_scan(seed=5)
CONFIG = SyntheticConfig(photons=1e5, sample="texture", dose_spread=4)


@pytest.fixture
def supply() -> MixedBatches:
    mix = Mix(simulated=1, labelled=1, label_free=2)
    sources = make_sources(mix, TrainingData(PROBE, [SCAN], [SCAN]), CONFIG, (32, 16, 12), seed=3)
    return MixedBatches(mix, sources)


def test_seed_and_number_decide_whatever_came_before(supply: MixedBatches) -> None:
    batches = [supply.batch(k) for k in range(8)]
    again = [supply.batch(k) for k in reversed(range(8))][::-1]
    for one, other in zip(batches, again, strict=True):
        assert one.source == other.source
        assert torch.equal(one.counts, other.counts)
        assert torch.equal(one.probe, other.probe)
    assert {b.source for b in batches} == {"simulated", "labelled", "label_free"}


def test_shares_are_kept_in_a_short_training() -> None:
    drawn = [Mix(simulated=1, labelled=1, label_free=2).source(k) for k in range(40)]
    assert [drawn.count(s) for s in ("simulated", "labelled", "label_free")] == pytest.approx([10, 10, 20], abs=2)
    assert {Mix(labelled=0).source(k) for k in range(40)} == {"simulated"}
    with pytest.raises(ValueError, match="all shares are 0"):
        Mix(simulated=0)


def test_a_labelled_batch_is_a_shorter_exposure_of_frames_with_their_truth() -> None:
    batch = Labelled([SCAN], 16, 12, CONFIG.model_copy(update={"scale_jitter": 0.0}), seed=0).batch(4)
    rng = np.random.default_rng((0, 4, 2))  # the first draws are the scan and the frames
    rng.choice(1, p=[1.0])
    chosen = rng.choice(len(SCAN), 12, replace=False)
    full = torch.as_tensor(SCAN.counts[chosen])
    dose = float(batch.probe.abs().square().sum()) / 1e5
    assert 0.25 <= dose <= 1
    assert (batch.counts <= full).all()
    assert float(batch.counts.sum() / full.sum()) == pytest.approx(dose, rel=0.01)
    assert batch.truth is not None
    assert batch.known is not None
    np.testing.assert_array_equal(batch.truth, SCAN.truth(chosen, 16))
    assert float(batch.known.min()) == 1


def test_a_label_free_batch_deals_each_frame_out_and_shows_neighbours() -> None:
    batch = LabelFree([SCAN], 16, 12, CONFIG.model_copy(update={"scale_jitter": 0.0}), seed=0).batch(4)
    assert batch.truth is None
    assert batch.held_counts is not None
    assert batch.held_probe is not None
    assert batch.offsets is not None
    assert batch.pairs is not None
    chosen = matching(SCAN, batch.counts + batch.held_counts)  # each photon is in one of the two
    light = sum(float(p.abs().square().sum()) for p in (batch.probe, batch.held_probe))
    assert light == pytest.approx(1e5, rel=1e-3)
    pixel = SCAN.geometry.object_pixel_m
    positions = np.stack([SCAN.y_m[chosen], SCAN.x_m[chosen]], 1) / pixel
    np.testing.assert_allclose(batch.offsets, positions - positions.mean(0), atol=1e-3)
    first, second = batch.pairs.T
    apart = (batch.offsets[first] - batch.offsets[second]).norm(dim=1) * pixel
    assert float(apart.max()) < 2 * SCAN.probe_diameter_m
    assert len(batch.pairs) == 8 * 7 + 4 * 3
    assert len(np.unique(chosen[:8])) == 8


def test_a_scan_of_few_frames_still_fills_a_batch() -> None:
    few = SCAN.select(np.arange(2))
    assert len(LabelFree([few], 16, 12, CONFIG, seed=0).batch(0).counts) == 12
    assert len(Labelled([few], 16, 12, CONFIG, seed=0).batch(0).counts) == 12
    assert len(LabelFree([SCAN.select(np.arange(1))], 16, 3, CONFIG, seed=0).batch(0).pairs) == 0  # type: ignore[arg-type]
