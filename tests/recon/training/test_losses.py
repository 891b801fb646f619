"""Losses without a truth: the likelihood is Poisson's, and neighbours agree where both are right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from bluesky_ptychonn.optics.forward import intensity
from bluesky_ptychonn.recon.data.batches import Batch, LabelFree
from bluesky_ptychonn.recon.data.simulated import SyntheticConfig
from bluesky_ptychonn.recon.networks.families import build_network
from bluesky_ptychonn.recon.networks.lifted import LiftedConfig
from bluesky_ptychonn.recon.training import losses
from bluesky_ptychonn.recon.training.losses import (
    batch_loss,
    disagreement,
    label_free_loss,
    merged,
    overlap,
    poisson_deviance,
)
from tests.support.scans import PROBE, labelled_scan, matching

SIZE = 24


@pytest.fixture(scope="module")
def neighbours() -> tuple[Batch, torch.Tensor]:
    """A label-free batch and what its patches should be."""
    scan = labelled_scan(seed=5)
    batch = LabelFree([scan], SIZE, 16, SyntheticConfig(scale_jitter=0), seed=1).batch(2)
    assert batch.held_counts is not None
    return batch, torch.as_tensor(scan.truth(matching(scan, batch.counts + batch.held_counts), SIZE))


def test_deviance_is_the_likelihood_less_the_best_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_STRAY", 1e-6)
    rng = np.random.default_rng(0)
    probe = torch.as_tensor(PROBE) * 300
    patch = torch.polar(torch.ones(2, 32, 32), torch.as_tensor(rng.normal(0, 0.3, (2, 32, 32)).astype(np.float32)))
    expected = intensity(patch, probe).numpy().astype(float)
    counts = rng.poisson(expected).astype(np.float32)
    said = stats.poisson.logpmf(counts, expected).sum(axis=(1, 2))
    best = stats.poisson.logpmf(counts, np.maximum(counts, 1e-12)).sum(axis=(1, 2))
    ours = poisson_deviance(patch, torch.as_tensor(counts), probe).numpy() * counts.sum(axis=(1, 2))
    np.testing.assert_allclose(ours, best - said, rtol=2e-3)


def test_true_neighbours_agree_and_misplaced_ones_do_not(neighbours: tuple[Batch, torch.Tensor]) -> None:
    batch, truth = neighbours
    assert batch.offsets is not None
    assert batch.pairs is not None
    turned = truth * torch.exp(1j * torch.linspace(0, 6, len(truth)))[:, None, None]  # nobody knows a frame's phase
    met = overlap(turned, batch.offsets, batch.pairs, batch.probe)
    assert float(disagreement(turned, batch.pairs, met)) < 1e-3
    together = merged(turned, batch.pairs, met)
    assert float((together - turned).abs().mean()) < 0.05
    wrong = overlap(turned, -batch.offsets, batch.pairs, batch.probe)
    assert float(disagreement(turned, batch.pairs, wrong)) > 20 * float(disagreement(turned, batch.pairs, met))


def test_the_truth_has_the_lower_label_free_loss(neighbours: tuple[Batch, torch.Tensor]) -> None:
    batch, truth = neighbours
    best = float(label_free_loss(truth, batch))
    blurred = torch.fft.ifft2(torch.fft.fft2(truth) * (torch.fft.fftfreq(SIZE)[:, None].abs() < 0.2))
    assert best < float(label_free_loss(blurred, batch))
    assert best < float(label_free_loss(truth * 1.05, batch))
    assert best < float(label_free_loss(torch.ones_like(truth), batch))


def test_every_stage_learns_from_the_physics(neighbours: tuple[Batch, torch.Tensor]) -> None:
    batch, _ = neighbours
    torch.manual_seed(0)
    network = build_network(LiftedConfig(frame_size=32, patch_size=SIZE, width=4, stages=2)).train()
    torch.stack([batch_loss(e, batch, "complex") for e in network.stages(batch.counts, batch.probe)]).sum().backward()  # type: ignore[no-untyped-call]
    for stage in ("nets.0.out.weight", "nets.1.out.weight"):
        assert float(dict(network.named_parameters())[stage].grad.abs().max()) > 0  # type: ignore[union-attr]


def test_a_batch_with_a_truth_has_no_physics_to_be_judged_by() -> None:
    ones = torch.ones(1, 16, 16, dtype=torch.complex64)
    with pytest.raises(ValueError, match="a labelled batch has no counts to be judged by; it has a truth"):
        label_free_loss(ones, Batch("labelled", torch.ones(1, 32, 32), torch.as_tensor(PROBE), ones))


def test_unknown_pixels_of_a_label_do_not_count() -> None:
    truth = torch.ones(2, 16, 16, dtype=torch.complex64)
    known = torch.zeros(2, 16, 16)
    known[:, :, :8] = 1
    wrong = truth.clone()
    wrong[:, :, 8:] = 5j
    batch = Batch("labelled", torch.ones(2, 32, 32), torch.as_tensor(PROBE), truth, known)
    for kind in ("complex", "amplitude_phase"):
        assert float(batch_loss(wrong, batch, kind)) < 1e-3  # type: ignore[arg-type]
        assert float(batch_loss(wrong.flip(-1), batch, kind)) > 0.1  # type: ignore[arg-type]
