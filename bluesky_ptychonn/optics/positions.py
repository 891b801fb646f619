"""Where frames were taken: how far apart, and a part of them that lies evenly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def nearest(y_m: NDArray[np.float64], x_m: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Distance to, and index of, the nearest other position, (n,) each; infinite where there is none."""
    from scipy.spatial import cKDTree

    points = np.stack([y_m, x_m], axis=1)
    distance, index = cKDTree(points).query(points, k=2)
    return distance[:, 1], index[:, 1]


def spacing_m(y_m: NDArray[np.float64], x_m: NDArray[np.float64]) -> float | None:
    """Median distance of a position to the nearest other one, m, several frames at one place counted once.

    None for a single place.
    """
    y, x = np.unique(np.stack([y_m, x_m]), axis=1)
    return float(np.median(nearest(y, x)[0])) if len(y) > 1 else None


def thinned(y_m: NDArray[np.float64], x_m: NDArray[np.float64], every: int, first: int = 0) -> NDArray[np.intp]:
    """Choose one position in `every`, evenly in both directions whatever the order they were taken in.

    Every n-th in the order taken leaves stripes of a raster. Here each further one is that which lies farthest from all
    chosen before (farthest-point sampling: Gonzalez, Theor. Comput. Sci. 38, 293, 1985): no hole is wider than the
    least distance between two that were chosen.

    Parameters
    ----------
    y_m, x_m : (n,) float64 ndarray
        Positions, m.
    every : int
        At least 1, which takes all.
    first : int
        Index of the first chosen; those before it are left out.

    Returns
    -------
    (ceil((n - first) / every),) intp ndarray
        Indices, ascending.

    Examples
    --------
    >>> y, x = np.indices((5, 5), dtype=float).reshape(2, -1)
    >>> thinned(y, x, 6).tolist()
    [0, 4, 12, 20, 24]
    """
    if every == 1:
        return np.arange(first, len(y_m))
    points = np.stack([y_m, x_m], axis=1)[first:]
    chosen = np.zeros(-(-len(points) // every), np.intp)
    squared = ((points - points[0]) ** 2).sum(axis=1)
    for k in range(1, len(chosen)):
        squared[chosen[k - 1]] = -1.0  # also where several lie at one place, none is chosen twice
        chosen[k] = squared.argmax()
        squared = np.minimum(squared, ((points - points[chosen[k]]) ** 2).sum(axis=1))
    return np.sort(chosen) + first
