"""Cutting, turning and binning frames in NumPy, and the probe that goes with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bluesky_ptychonn.optics.framing import PreprocessConfig, framed, framed_probe
from bluesky_ptychonn.optics.simulate import zone_plate_probe
from bluesky_ptychonn.recon.inference.preprocess import Preprocess


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"crop": 16},
        {"crop": 12, "centre": (3, 30), "bin": 2},
        {"crop": 48, "bin": 3, "flip_x": True},
        {"transpose": True, "flip_y": True, "centre": (9, 4), "crop": 24},
        {"transpose": True, "flip_x": True},
    ],
)
def test_the_reader_frames_as_the_reconstruction_does(options: dict[str, Any]) -> None:
    frames = np.random.default_rng(0).integers(1, 100, (3, 21, 34)).astype(np.uint16)
    config = PreprocessConfig(**options)
    ours = framed(frames, config)
    np.testing.assert_array_equal(ours, Preprocess(config)(frames).counts.numpy())
    assert ours.dtype == (np.uint16 if config.bin == 1 else np.float32)


def test_a_summed_pixel_is_unknown_where_a_part_of_it_is() -> None:
    frames = np.ones((1, 8, 8), np.float32)
    frames[0, 3, 4] = np.nan
    assert np.argwhere(np.isnan(framed(frames, PreprocessConfig(bin=2))[0])).tolist() == [[1, 2]]


def _frame(probe: np.ndarray) -> np.ndarray:
    far = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(probe), norm="ortho"))
    return np.asarray(np.abs(far) ** 2)


@pytest.mark.parametrize(
    "options",
    [
        {"crop": 40},
        {"crop": 80},
        {"transpose": True},
        # Frames flipped about the beam's pixel lose their first row; what is compared is the rest.
        {"flip_y": True, "crop": 48},
        {"transpose": True, "flip_x": True, "crop": 48},
    ],
)
def test_the_probe_of_framed_frames_gives_framed_frames(options: dict[str, Any]) -> None:
    probe = zone_plate_probe((64, 64), 20, aberration_rad=0.5, seed=3)
    config = PreprocessConfig(**options)
    expected = framed(_frame(probe)[None], config)[0]
    made = framed_probe(probe, config)
    assert made.shape == expected.shape
    np.testing.assert_allclose(_frame(made), expected, rtol=0, atol=1e-5 * expected.max())


def test_larger_pixels_see_the_middle_of_the_field() -> None:
    probe = zone_plate_probe((64, 64), 20, seed=3)
    made = framed_probe(probe, PreprocessConfig(bin=2))
    np.testing.assert_allclose(np.abs(made), np.abs(probe[16:48, 16:48]), atol=1e-7)
    # Its pattern lies where that of joined pixels does, half a recorded pixel from the beam's.
    joined, pattern = _frame(probe).reshape(32, 2, 32, 2).sum((1, 3)), _frame(made)
    middles = [(np.arange(32) * each.sum(1)).sum() / each.sum() for each in (joined, pattern)]
    assert middles[0] == pytest.approx(middles[1], abs=0.02)
