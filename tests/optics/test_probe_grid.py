"""A probe brought to another grid, against the same beam simulated there."""

from __future__ import annotations

import numpy as np
import pytest

from bluesky_ptychonn.optics.framing import PreprocessConfig
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.optics.probe_grid import probe_on, resampled
from bluesky_ptychonn.optics.simulate import zone_plate_probe


def geometry(size: int, pixel_m: float | None = None) -> Geometry:
    known = Geometry(energy_ev=1e4, distance_m=1.0, pixel_pitch_m=75e-6, frame_shape=(size, size))
    distance = 1.0 if pixel_m is None else pixel_m / known.object_pixel_m
    return known.model_copy(update={"distance_m": distance})


@pytest.mark.parametrize("side", [80, 96, 104, 192])
def test_of_cut_or_padded_frames_it_is_the_zone_plates_at_that_pixel(side: int) -> None:
    # The pupil lies on the detector, so that of fewer pixels it fills more; the ring in the sample stays as wide.
    recorded, (got, ours) = (
        geometry(128),
        probe_on(zone_plate_probe((128, 128), 60, pupil_fraction=0.5), geometry(128), PreprocessConfig(crop=side)),
    )
    wanted = zone_plate_probe((side, side), 60 * side / 128, pupil_fraction=0.5 * 128 / side)
    assert ours.object_pixel_m == pytest.approx(recorded.object_pixel_m * 128 / side)
    np.testing.assert_allclose(got, wanted, atol=1e-6 * np.abs(wanted).max())


def beam(size: int, pixel_m: float) -> np.ndarray:
    """Sample a tilted, defocused Gaussian beam, 157 photons."""
    x = (np.arange(size) - size // 2) * pixel_m / 1e-9
    one = np.exp(-((x / 10) ** 2) * (1 + 1.5j) + 0.2j * x)
    return np.outer(one, one) * (pixel_m / 1e-9)


@pytest.mark.parametrize(
    ("size", "pixel_m", "side", "wanted_m"),
    [(105, 1e-9, 64, 1.31e-9), (104, 1e-9, 104, 1.07e-9), (63, 1.3e-9, 128, 0.77e-9), (128, 1e-9, 64, 1e-9)],
)
def test_any_ratio_and_size_gives_the_beam_sampled_there(size, pixel_m, side, wanted_m) -> None:
    got = resampled(beam(size, pixel_m), pixel_m, geometry(side, wanted_m))
    np.testing.assert_allclose(got, beam(side, wanted_m), atol=2e-7 * np.abs(got).max())
    assert (np.abs(got) ** 2).sum() == pytest.approx((np.abs(beam(size, pixel_m)) ** 2).sum(), rel=1e-5)


def test_light_beyond_the_cut_is_not_recorded() -> None:
    probe = zone_plate_probe((64, 64), 20, pupil_fraction=0.9) * 100
    far = np.abs(np.fft.fftshift(np.fft.fft2(probe, norm="ortho"))) ** 2
    got, _ = probe_on(probe, geometry(64), PreprocessConfig(crop=32))
    assert (np.abs(got) ** 2).sum() == pytest.approx(far[16:48, 16:48].sum(), rel=1e-5)
    assert (np.abs(got) ** 2).sum() < 7000


def test_joined_pixels_see_the_pattern_between_them() -> None:
    probe = zone_plate_probe((128, 128), 24, pupil_fraction=0.4) * 100
    far = np.abs(np.fft.fftshift(np.fft.fft2(probe, norm="ortho"))) ** 2
    binned = far.reshape(64, 2, 64, 2).sum((1, 3))
    got, _ = probe_on(probe, geometry(128), PreprocessConfig(bin=2))
    pattern = np.abs(np.fft.fftshift(np.fft.fft2(got, norm="ortho"))) ** 2
    rows = np.arange(64)
    centres = [(rows * each.sum(axis)).sum() / each.sum() for each in (binned, pattern) for axis in (0, 1)]
    np.testing.assert_allclose(centres[:2], centres[2:], atol=0.01)
    assert abs(centres[0] - 32) > 0.2  # what would be a shifted detector


def test_an_unknown_pixel_and_an_oblong_probe_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"60 px wide, frames are 64 px .* say its object pixel, probe_pixel_m= in m"):
        probe_on(np.ones((60, 60), complex), geometry(64), PreprocessConfig())
    with pytest.raises(ValueError, match=r"got shape \(60, 64\); a square one"):
        probe_on(np.ones((60, 64), complex), geometry(64), PreprocessConfig())
