"""Positions of frames: distances, and even parts of them."""

from __future__ import annotations

import numpy as np
import pytest

from bluesky_ptychonn.optics.positions import spacing_m, thinned


def raster() -> tuple[np.ndarray, np.ndarray]:
    """127 by 127, there and back, as stages go."""
    y, x = np.indices((127, 127), dtype=float)
    x[1::2] = x[1::2, ::-1]
    return y.ravel(), x.ravel()


def spiral() -> tuple[np.ndarray, np.ndarray]:
    k = np.arange(4000)
    radius = np.sqrt(k / np.pi)  # one position a unit of area, as in the others
    return radius * np.sin(2.4 * k), radius * np.cos(2.4 * k)


def scattered() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.random.default_rng(0).uniform(0, 60, (2, 3600))
    return y, x


@pytest.mark.parametrize("pattern", [raster, spiral, scattered])
@pytest.mark.parametrize("every", [9, 16, 25])
def test_what_is_left_lies_evenly(pattern, every) -> None:
    y, x = pattern()
    kept = thinned(y, x, every)
    assert len(kept) == -(-len(y) // every)
    assert (np.diff(kept) > 0).all()
    between = np.hypot(y[kept, None] - y[None, kept], x[kept, None] - x[None, kept]) + 1e9 * np.eye(len(kept))
    hole = max(
        np.hypot(y[part, None] - y[None, kept], x[part, None] - x[None, kept]).min(axis=1).max()
        for part in np.array_split(np.arange(len(y)), 8)
    )
    assert hole <= between.min()
    # Discs of half the least distance do not overlap, and those of the widest hole cover the area.
    assert between.min() > 0.6 * np.sqrt(every)
    assert hole < 1.1 * np.sqrt(every)


def test_all_and_one_and_several_at_one_place() -> None:
    y = x = np.array([0.0, 0, 0, 0, 5])
    assert thinned(y, x, 1, first=2).tolist() == [2, 3, 4]
    assert thinned(y, x, 9, first=3).tolist() == [3]
    assert thinned(y, x, 2, first=1).tolist() == [1, 4]
    assert sorted(set(thinned(y * 0, x * 0, 2).tolist())) == thinned(y * 0, x * 0, 2).tolist()
    assert spacing_m(y[:1], x[:1]) is None
    assert spacing_m(y[3:], x[3:]) == pytest.approx(5 * 2**0.5)


def test_frames_taken_twice_at_a_place_are_no_step_of_nothing() -> None:
    y, x = np.repeat(raster(), 2, axis=1)
    assert spacing_m(y, x) == 1
    assert spacing_m(y[:2], x[:2]) is None
