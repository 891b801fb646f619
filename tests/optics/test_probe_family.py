"""Random probes: within their ranges, reproducible, and rough where asked."""

from __future__ import annotations

import numpy as np
import pytest

from bluesky_ptychonn.optics.probe_family import ProbeFamily
from bluesky_ptychonn.optics.simulate import illuminated_diameter_px


def drawn(seed: int = 4, size: int = 96, **ranges: tuple[float, float]) -> np.ndarray:
    return ProbeFamily(**ranges).draw(size, np.random.default_rng(seed))


def test_a_seed_gives_one_probe_of_unit_intensity() -> None:
    np.testing.assert_array_equal(drawn(), drawn())
    assert not np.array_equal(drawn(), drawn(5))
    assert (np.abs(drawn(roughness=(0.3, 0.3))) ** 2).sum() == pytest.approx(1, rel=1e-5)


def test_diameters_are_those_asked_for() -> None:
    plain = {"astigmatism_rad": (0.0, 0.0), "falloff": (0.0, 0.0), "stop_fraction": (0.3, 0.3)}
    small = illuminated_diameter_px(drawn(diameter_fraction=(0.3, 0.3), **plain))
    large = illuminated_diameter_px(drawn(diameter_fraction=(0.6, 0.6), **plain))
    assert 1.5 < large / small < 2.3


def test_roughness_puts_light_around_the_ring() -> None:
    ranges = {"diameter_fraction": (0.4, 0.4), "falloff": (0.0, 0.0)}
    smooth, rough = (drawn(roughness=(r, r), **ranges) for r in (0.0, 0.4))
    y, x = np.indices(smooth.shape) - 48
    outside = np.hypot(y, x) > 40
    assert (np.abs(rough) ** 2)[outside].sum() > 10 * (np.abs(smooth) ** 2)[outside].sum()
    assert abs((rough.conj() * smooth).sum()) > 0.8


@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        ({"roughness": (0.2, 0.1)}, "roughness: 0.2 exceeds 0.1"),
        ({"roughness": (0.0, 1.5)}, "at most 1"),
        ({"diameter_fraction": (0.3, 0.9)}, r"at most 0\.75"),
        ({"stop_fraction": (0.0, 1.0)}, "below 1"),
    ],
)
def test_ranges_that_make_no_sense(ranges: dict[str, tuple[float, float]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ProbeFamily(**ranges)
