"""The simulated experiment: seeded, physical, and the same as its own truth."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bluesky_ptychonn.optics.simulate import (
    SimulatedExperiment,
    crop,
    illuminated_diameter_px,
    make_sample,
    zone_plate_probe,
)


def test_importing_the_simulator_does_not_import_torch() -> None:
    code = "import sys, bluesky_ptychonn.optics.simulate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("diameter", [20.0, 30.0, 60.0])
def test_probe_has_the_diameter_asked_for(diameter: float) -> None:
    probe = zone_plate_probe((128, 128), diameter)
    assert (np.abs(probe) ** 2).sum() == pytest.approx(1, abs=1e-5)
    assert illuminated_diameter_px(probe) == pytest.approx(diameter, rel=0.25)


def test_probe_has_a_central_stop_in_its_far_field() -> None:
    probe = zone_plate_probe((128, 128), 50, stop_fraction=0.5)
    far = np.abs(np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(probe), norm="ortho")))
    assert far[64, 64] < 0.05 * far.max()


def test_too_wide_a_probe_is_refused() -> None:
    with pytest.raises(ValueError, match="three quarters of the frame"):
        zone_plate_probe((64, 64), 60)


@pytest.mark.parametrize("kind", ["etched", "cells", "star", "texture", "mixed"])
def test_samples_are_seeded_passive_and_not_flat(kind: str) -> None:
    sample = make_sample(kind, (96, 128), 3)  # type: ignore[arg-type]
    np.testing.assert_array_equal(sample, make_sample(kind, (96, 128), 3))  # type: ignore[arg-type]
    assert sample.shape == (96, 128)
    assert np.abs(sample).max() <= 1.2
    assert np.angle(sample).std() > 0.01


def test_unknown_sample_names_the_allowed() -> None:
    with pytest.raises(ValueError, match="'granite' is unknown; allowed: etched, cells"):
        make_sample("granite", (64, 64), 0)  # type: ignore[arg-type]


def test_a_frame_follows_the_textbook_sum() -> None:
    """Oracle: the Fourier sum written out, at a handful of detector pixels."""
    experiment = SimulatedExperiment.demo(photons=1000)
    patch = crop(experiment.sample, 320, 320, 64)
    wave = experiment.probe * patch
    frame = experiment.intensity_at(0.0, 0.0)
    r = np.arange(64) - 32
    for ky, kx in [(0, 0), (5, -9), (-14, 3)]:
        far = np.sum(wave * np.exp(-2j * np.pi * (ky * r[:, None] + kx * r[None, :]) / 64)) / 64
        assert frame[32 + ky, 32 + kx] == pytest.approx(1000 * abs(far) ** 2, rel=1e-3, abs=1e-6)


def test_moving_the_beam_by_a_pixel_moves_the_sample_by_a_pixel() -> None:
    experiment = SimulatedExperiment.demo()
    moved = SimulatedExperiment(experiment.geometry, experiment.probe, np.roll(experiment.sample, -1, axis=0), 1e5)
    np.testing.assert_allclose(experiment.intensity_at(experiment.pixel_m, 0), moved.intensity_at(0, 0), rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5))
def test_sub_pixel_moves_conserve_photons_and_are_continuous(dy: float, dx: float) -> None:
    experiment = SimulatedExperiment.demo()
    pixel = experiment.pixel_m
    here, near = (
        experiment.intensity_at(dy * pixel, dx * pixel),
        experiment.intensity_at((dy + 0.01) * pixel, dx * pixel),
    )
    assert abs(here - near).sum() < 0.03 * here.sum()
    assert here.sum() <= 1.001e5


def test_vacuum_beyond_the_sample() -> None:
    experiment = SimulatedExperiment.demo()
    far_off = experiment.intensity_at(1.0, 1.0)
    assert far_off.sum() == pytest.approx(1e5, rel=1e-4)


def test_noise_is_poisson_and_bad_pixels_are_bad() -> None:
    experiment = SimulatedExperiment.demo(dead_fraction=0.02, hot_fraction=0.01)
    rng = np.random.default_rng(1)
    stack = np.stack([experiment.frame_at(0, 0, rng) for _ in range(400)])
    assert stack.dtype == np.uint16
    assert (stack[:, experiment.dead] == 0).all()
    assert (stack[:, experiment.hot] == 65535).all()
    good = ~(experiment.dead | experiment.hot) & (experiment.intensity_at(0, 0) > 20)
    ratio = stack[:, good].var(0) / stack[:, good].mean(0)
    assert ratio.mean() == pytest.approx(1, abs=0.02)


def test_truth_lies_where_frames_are_taken() -> None:
    experiment = SimulatedExperiment.demo()
    pixel = experiment.pixel_m
    truth = experiment.truth_on((-10 * pixel, 4 * pixel), (8, 8))
    np.testing.assert_allclose(truth, experiment.sample[310:318, 324:332], atol=1e-5)
