"""A probe that drifted, found again from the frames of a run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bluesky_ptychonn.optics.simulate import SimulatedExperiment, make_sample
from bluesky_ptychonn.recon.mosaic.probe_tuning import ABERRATIONS, aberrated, pupil_aberrations, tune_probe
from bluesky_ptychonn.recon.mosaic.stitch import Mosaic, MosaicImage
from tests.support.scans import scan_of

DEMO = SimulatedExperiment.demo(seed=3)
BELIEVED = torch.as_tensor(DEMO.probe * np.float32(1e5**0.5))
PHASES = pupil_aberrations(BELIEVED)


def frames_of(truth: list[float], side: int = 7) -> tuple[torch.Tensor, np.ndarray, np.ndarray, MosaicImage]:
    """Scan an etched sample with the believed probe aberrated by `truth`, rad; with a flat mosaic to start from."""
    true = aberrated(BELIEVED, PHASES, torch.tensor(truth)).numpy()
    rng = np.random.default_rng(7)
    unit = (true / np.sqrt((np.abs(true) ** 2).sum())).astype(np.complex64)
    experiment = SimulatedExperiment(DEMO.geometry, unit, make_sample("etched", (224, 224), rng), 1e5)
    line = (np.arange(side) - (side - 1) / 2) * 0.4 * DEMO.probe_diameter_m
    y, x = np.repeat(line, side), np.tile(line, side)
    y, x = y + rng.normal(0, 0.5, y.size) * DEMO.pixel_m, x + rng.normal(0, 0.5, x.size) * DEMO.pixel_m
    counts = np.stack([experiment.frame_at(a, b, rng) for a, b in zip(y, x, strict=True)]).astype(np.float32)
    mosaic = Mosaic(DEMO.pixel_m, np.ones((32, 32), np.float32))
    mosaic.add(np.ones((len(y), 32, 32), np.complex64), y, x, np.ones(len(y)))
    return torch.as_tensor(counts), y, x, mosaic.snapshot()


def test_aberrations_are_orthonormal_over_the_light() -> None:
    light = torch.fft.fft2(BELIEVED).abs().square()
    flat = PHASES.reshape(len(ABERRATIONS), -1)
    products = (flat * (light / light.sum()).reshape(-1)) @ flat.T
    torch.testing.assert_close(products, torch.eye(len(ABERRATIONS)), atol=1e-4, rtol=0)
    changed = aberrated(BELIEVED, PHASES, torch.full((7,), 0.3))
    torch.testing.assert_close(changed.abs().square().sum(), BELIEVED.abs().square().sum(), rtol=1e-4, atol=0)


def test_a_drift_is_found() -> None:
    truth = [0.4, -0.2, 0.0, 0.1, 0.0, 0.0, 0.0]
    counts, y, x, start = frames_of(truth)
    tuned = tune_probe(start, scan_of(counts, y, x, BELIEVED))
    assert list(tuned.aberrations_rad) == list(ABERRATIONS)
    np.testing.assert_allclose(list(tuned.aberrations_rad.values()), truth, atol=0.06)
    assert tuned.residual_after < 0.9 * tuned.residual_before
    assert tuned.rms_rad == pytest.approx(np.hypot(np.hypot(0.4, 0.2), 0.1), abs=0.05)
    assert tuned.as_record()["frames"] == len(y)


def test_a_probe_that_is_right_stays() -> None:
    counts, y, x, start = frames_of([0.0] * 7)
    tuned = tune_probe(start, scan_of(counts, y, x, BELIEVED))
    assert tuned.rms_rad < 0.06
    assert tuned.residual_after == pytest.approx(tuned.residual_before, rel=0.03)


def test_what_does_not_go_together_is_said() -> None:
    counts, y, x, start = frames_of([0.0] * 7, side=2)
    with pytest.raises(ValueError, match=r"and positions \(3, 2\) do not go together"):
        tune_probe(start, scan_of(counts, y[:3], x[:3], BELIEVED))
    with pytest.raises(ValueError, match="no frames to tune a probe to"):
        tune_probe(start, scan_of(counts[:0], y[:0], x[:0], BELIEVED))
