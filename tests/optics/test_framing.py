"""Cutting, turning and binning frames in NumPy, and the probe that goes with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bluesky_ptychonn.optics.framing import PreprocessConfig, framed, turned_probe
from bluesky_ptychonn.optics.geometry import Geometry
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


@pytest.mark.parametrize("options", [{"transpose": True}, {"flip_y": True}, {"transpose": True, "flip_x": True}])
@pytest.mark.parametrize("side", [64, 63])
def test_the_probe_of_turned_frames_gives_turned_frames(options: dict[str, Any], side: int) -> None:
    probe = np.random.default_rng(3).standard_normal((side, side, 2)) @ [1, 1j]
    config = PreprocessConfig(**options)
    expected = framed(_frame(probe)[None], config)[0]
    # An even frame flipped about the beam's pixel loses its first row, which is of no use to compare.
    np.testing.assert_allclose(_frame(turned_probe(probe, config))[1:, 1:], expected[1:, 1:])


def test_frames_that_come_out_odd_are_refused_in_one_sentence() -> None:
    geometry = Geometry(energy_ev=8800, distance_m=1, pixel_pitch_m=75e-6, frame_shape=(90, 90))
    with pytest.raises(
        ValueError, match=r"^frames of \(90, 90\) px after preprocess .*\(45, 45\) px: .*crop or pad it.*$"
    ):
        PreprocessConfig(bin=2).geometry_after(geometry)
