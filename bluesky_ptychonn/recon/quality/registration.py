"""How a run's mean pattern lies to the one its model expects: shifted, larger, wider."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_STEPS = 6
_LARGEST_SCALE = 0.3


def register(pattern: NDArray[np.floating], expected: NDArray[np.floating]) -> tuple[tuple[float, float], float, float]:
    """Shift (rows, columns) in px, relative scale and relative RMS radius of a pattern (N, N) against an expected one.

    The pattern is the mean of a run's frames, expected is the probe's far field, both with the beam at
    ``(N // 2, N // 2)``. It is taken for the expected one, moved and scaled, with two blurred copies for what a
    sample scatters and a constant background, each in its own measure: a linear fit, repeated from where the last one
    led (Gauss-Newton).

    Examples
    --------
    >>> y, x = np.indices((64, 64)) - 32
    >>> ring = np.exp(-((np.hypot(y, x) - 12) ** 2) / 8)
    >>> (dy, dx), scale, width = register(np.roll(ring, 2, axis=0), ring)
    >>> round(dy, 1), round(abs(dx), 1), round(abs(scale), 2)
    (2.0, 0.0, 0.0)
    """
    pattern, expected = pattern / pattern.sum(), expected / expected.sum()
    grid = np.indices(pattern.shape) - np.array(pattern.shape)[:, None, None] // 2
    first, own = _centre(pattern, grid), _centre(expected, grid)
    shift, scale = first - own, 0.0
    wide = [ndimage.gaussian_filter(expected, sigma) for sigma in (2.0, 5.0)]
    root = 1 / np.sqrt(ndimage.gaussian_filter(pattern, 1.5) + 1e-3 * pattern.max())
    for _ in range(_STEPS):
        place = (grid - shift[:, None, None]) / (1 + scale)
        at = place + np.array(pattern.shape)[:, None, None] // 2
        moved, *blurred = (ndimage.map_coordinates(image, at, order=1, mode="nearest") for image in (expected, *wide))
        by_row, by_column = np.gradient(ndimage.gaussian_filter(moved, 0.7))
        larger = place[0] * by_row + place[1] * by_column + 2 * moved
        columns = [moved, by_row, by_column, larger, np.full(moved.shape, 1 / moved.size), *blurred]
        matrix = np.stack([(c * root).ravel() for c in columns], axis=1)
        found = np.linalg.lstsq(matrix, (pattern * root).ravel(), rcond=None)[0]
        # A step is believed as far as the fit holds: a pixel or two, a tenth.
        strength = max(float(found[0]), 0.2)
        step, growth = np.clip(found[1:3] / strength, -1, 1), float(np.clip(found[3] / strength, -0.1, 0.1))
        shift = shift - step
        scale = float(np.clip(scale - growth, -_LARGEST_SCALE, _LARGEST_SCALE))
        if np.abs(step).max() < 0.01 and abs(growth) < 1e-3:
            break
    width = _radius(pattern, grid, first) / _radius(expected, grid, own)
    return (float(shift[0]), float(shift[1])), scale, width


def _centre(image: NDArray[np.floating], grid: NDArray[np.int_]) -> NDArray[np.float64]:
    return np.asarray((grid * image).sum(axis=(1, 2)))


def _radius(image: NDArray[np.floating], grid: NDArray[np.int_], centre: NDArray[np.floating]) -> float:
    return float(np.sqrt((((grid - centre[:, None, None]) ** 2).sum(axis=0) * image).sum()))
