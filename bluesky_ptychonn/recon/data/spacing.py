"""How densely positions lie, and how to choose among them so that they lie less densely."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.floating]


def step_of(y_m: Positions, x_m: Positions) -> float:
    """Step of a raster with as many points on an area, m.

    The square root of the area a point has, from the median triangle between neighbours: as spirals count it, and blind
    to the scan's rim.

    Parameters
    ----------
    y_m, x_m : (n,) float ndarray
        Positions, m.

    Raises
    ------
    ValueError
        For fewer than three places, or all on a line.

    Examples
    --------
    >>> y, x = (g.ravel() * 1e-6 for g in np.mgrid[0:5, 0:5])
    >>> round(step_of(y, x) * 1e6, 6)
    1.0
    """
    from scipy.spatial import Delaunay, QhullError

    points = np.unique(np.stack([y_m, x_m], axis=1).astype(np.float64), axis=0)
    spread = np.ptp(points, axis=0).max() if len(points) else 0.0
    if len(points) < 3 or not spread > 0:
        raise ValueError(f"{len(points)} places have no spacing; three or more, not on a line, are needed")
    try:
        corners = (points / spread)[Delaunay(points / spread).simplices]
    except QhullError:
        raise ValueError(f"{len(points)} places lie on a line; an area is needed") from None
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    twice = np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])
    return float(np.sqrt(np.median(twice)) * spread)


def thinned(y_m: Positions, x_m: Positions, least_m: float, first: int = 0) -> NDArray[np.int64]:
    """Choose points of which no two lie nearer than `least_m`, and between which no other fits.

    Every n-th of a raster would thin its rows alone; this grows the spacing in both directions.

    Parameters
    ----------
    y_m, x_m : (n,) float ndarray
        Positions, m.
    least_m : float
        Smallest distance of two points, m.
    first : int
        Point to begin with; the others follow in their order, those before it last.

    Returns
    -------
    (m,) int64 ndarray
        Their indices, ascending.

    Examples
    --------
    >>> y, x = (g.ravel() for g in np.mgrid[0:3, 0:3])
    >>> thinned(y, x, 2.0)
    array([0, 2, 6, 8])
    """
    points = np.stack([y_m, x_m], axis=1).astype(np.float64)
    free = np.ones(len(points), dtype=bool)
    taken = []
    least = least_m * (1 - 1e-9)  # a raster's own step is not nearer than itself
    for index in np.roll(np.arange(len(points)), -first):
        if free[index]:
            taken.append(index)
            free &= ((points - points[index]) ** 2).sum(axis=1) >= least**2
    return np.sort(np.array(taken, dtype=np.int64))
