"""What must hold of scan points for any field and step."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from bluesky_ptychonn.beamline.patterns import ScanField

lengths = st.floats(0.5, 12.0)
steps = st.floats(0.3, 2.0)
grids = st.sampled_from(["raster", "snake", "jittered"])
centres = st.tuples(st.floats(-50, 50), st.floats(-50, 50))


def points(field: ScanField, centre: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    at = field.points("x", "y", centre).by_key()
    return np.stack([at["x"], at["y"]], axis=1)


@given(width=lengths, height=lengths, step=steps, centre=centres, pattern=grids)
def test_rasters_stay_in_the_field_reach_its_edges_and_are_never_coarser_than_asked(
    width, height, step, centre, pattern
) -> None:
    field = ScanField(width, height, step, pattern, jitter=0.0)
    xy = points(field, centre) - centre
    assert len(xy) == field.count == math.prod(field.shape)
    np.testing.assert_allclose(np.abs(xy).max(axis=0), [width / 2, height / 2], rtol=1e-6, atol=1e-9)
    for axis, length in enumerate((width, height)):
        gaps = np.diff(np.unique(np.round(xy[:, axis], 9)))
        assert gaps.max(initial=0) <= step * (1 + 1e-6)
        assert gaps.min(initial=step) > min(step, length) / 2 * (1 - 1e-6)  # nor needlessly fine


@given(width=lengths, height=lengths, step=steps, jitter=st.floats(0.01, 0.5), seed=st.integers(0, 99))
def test_jitter_moves_each_point_by_no_more_than_asked_and_not_out_of_the_field(
    width, height, step, jitter, seed
) -> None:
    field = ScanField(width, height, step, "jittered", jitter, seed)
    xy, plain = points(field), points(ScanField(width, height, step, "snake"))
    assert len(xy) == len(plain)
    assert np.abs(xy - plain).max() <= jitter * step * (1 + 1e-9)
    assert (np.abs(xy) <= np.array([width, height]) / 2 + 1e-12).all()
    np.testing.assert_array_equal(xy, points(field))


@given(width=st.floats(4, 12), height=st.floats(4, 12), step=st.floats(0.3, 1.0))
def test_a_spiral_fills_the_field_as_densely_as_a_raster_of_that_step(width, height, step) -> None:
    field = ScanField(width, height, step, "spiral")
    xy = points(field)
    assert (np.abs(xy) <= np.array([width, height]) / 2 + 1e-9).all()
    # Along the edges a ring more or less fits: two steps of the circumference.
    assert abs(len(xy) - field.count) <= 2 * (width + height) / step * 0.5 + 2
    inner = np.stack(np.meshgrid(*(np.linspace(-s / 2 + step, s / 2 - step, 25) for s in (width, height))), -1)
    hole = cKDTree(xy).query(inner.reshape(-1, 2))[0].max()
    assert hole <= 0.85 * step  # of a raster it is 0.71 step


def test_a_line_and_a_point_lie_in_the_middle() -> None:
    np.testing.assert_allclose(points(ScanField(2, 0, 1, "snake"), (5, 7)), [[4, 7], [5, 7], [6, 7]])
    np.testing.assert_allclose(points(ScanField(0, 0, 1, "raster"), (5, 7)), [[5, 7]])


def test_a_snake_turns_round_and_a_raster_does_not() -> None:
    assert points(ScanField(1, 1, 1, "snake"))[:, 0].tolist() == [-0.5, 0.5, 0.5, -0.5]
    assert points(ScanField(1, 1, 1, "raster"))[:, 0].tolist() == [-0.5, 0.5, -0.5, 0.5]


def test_rounding_makes_no_extra_point() -> None:
    assert ScanField(3.0, 0, 0.1).shape == (1, 31)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"pattern": "zigzag"}, "pattern 'zigzag' is unknown; allowed: raster, snake, jittered, spiral"),
        ({"step": 0}, "step 0 must be a finite length above 0"),
        ({"step": float("nan")}, "step nan"),
        ({"width": -1}, "width -1 must be a finite length, 0 or more"),
        ({"height": float("inf")}, "height inf"),
        ({"jitter": 0.7}, "jitter 0.7 must be 0 to 0.5 steps"),
        ({"step": 1e-4}, "more than 1000000; is the unit right"),
    ],
)
def test_wrong_fields_are_refused_in_words(values, words) -> None:
    with pytest.raises(ValueError, match=words):
        ScanField(**{"width": 1.0, "height": 1.0, "step": 0.5, **values})


def test_a_spiral_needs_an_area() -> None:
    with pytest.raises(ValueError, match="a spiral needs a width and a height"):
        ScanField(1.0, 0.0, 0.5, "spiral").points("x", "y")
