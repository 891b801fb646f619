"""The 8-bit picture of a result, for browsers: what Tiled's PNG of an array with NaN in it cannot show.

Tiled scales an array between its 1st and 99th percentile: all is black where one pixel is NaN, and white where less
than a hundredth of the picture is there yet. So what is not covered is grey with fine lines of black and white, and of
what is covered more than a hundredth is black and as much white: Tiled's scaling then changes nothing, however little
is covered.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.catalog.results.plot import centre_phase, visibility

#: The node, in reconstructions and labels.
OVERVIEW = "overview"
_GAP_PX = 4  # between panels, white
_GREY, _LINES_PX = 128, 32  # what is not covered, and the distance of lines of one colour: 3 % of it are black
_CUT_PERCENT = 2.0  # of the well covered pixels, at least half of all, black, and white; trust may have none


def overview_shape(shape: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the overview of pictures of this shape, px."""
    return 2 * shape[0] + _GAP_PX, 2 * shape[1] + _GAP_PX


def draw_overview(panels: Mapping[str, NDArray[np.float32]]) -> NDArray[np.uint8]:
    """Draw up to four pictures beside each other, in grey.

    Parameters
    ----------
    panels : dict of str to (H, W) float32 ndarray
        Two to a row. NaN is not covered, and so is what is 0 in all but phase and trust. A ``phase``, rad, is drawn
        around its mean, a ``trust`` from 0 (black) to 1 (white), all else between percentiles. What has little of
        the ``coverage``, or ``light``, is drawn faintly.

    Returns
    -------
    (2 H + 4, 2 W + 4) uint8 ndarray
    """
    rows, columns = next(iter(panels.values())).shape
    y, x = np.indices((rows, columns), sparse=True)
    lines = (y + x) % _LINES_PX
    nothing = np.where(lines == 0, 0, np.where(lines == _LINES_PX // 2, 255, _GREY))
    strength = visibility(panels["coverage"] if "coverage" in panels else panels["light"])
    whole = np.full(overview_shape((rows, columns)), 255, np.uint8)
    for place in range(4):
        top, left = place // 2 * (rows + _GAP_PX), place % 2 * (columns + _GAP_PX)
        whole[top : top + rows, left : left + columns] = nothing
    for place, (name, data) in enumerate(panels.items()):
        top, left = place // 2 * (rows + _GAP_PX), place % 2 * (columns + _GAP_PX)
        shown = centre_phase(data) if name == "phase" else data
        there = np.isfinite(shown) if name in ("phase", "trust") else np.isfinite(shown) & (shown != 0)
        if there.any():
            values, seen = shown[there], strength[there] if name in ("phase", "amplitude") else np.ones(there.sum())
            well = values[seen == 1] if (seen == 1).any() else values
            low, high = (0.0, 1.0) if name == "trust" else np.percentile(well, [_CUT_PERCENT, 100 - _CUT_PERCENT])
            scaled = 255 * np.clip((values - low) / max(high - low, 1e-6), 0, 1)
            whole[top : top + rows, left : left + columns][there] = np.rint(_GREY + seen * (scaled - _GREY))
    return whole
