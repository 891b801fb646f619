"""Scan points over a rectangular field, from Bluesky's own plan patterns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from bluesky import plan_patterns
from cycler import Cycler, cycler

Pattern = Literal["raster", "snake", "jittered", "spiral"]
MOST_POINTS = 1_000_000
_ROUNDING = 1e-9  # so that 3.0 / 0.1 makes 30 steps, not 31


class TooManyPointsError(ValueError):
    """A field with more points than anybody means."""

    most = MOST_POINTS

    def __init__(self, message: str, count: int) -> None:
        super().__init__(message)
        self.count = count


@dataclass(frozen=True)
class ScanField:
    """A rectangular field and how to step over it.

    Lengths are in one unit, whichever the caller uses.

    Parameters
    ----------
    width, height : float
        Along x and y; 0 makes a line or a point.
    step : float
        Distance of neighbours. A raster is made a little finer, so that its last point is on the field's edge; a
        spiral has the same number of points per area.
    pattern : {"raster", "snake", "jittered", "spiral"}
        Rows all in one direction; there and back; there and back, each point displaced; Fermat spiral.
    jitter : float
        Largest displacement of a jittered point along each axis, in steps, 0 to 0.5.
    seed : int
        Of the displacements.

    Examples
    --------
    >>> ScanField(2.0, 1.0, step=0.5, pattern="raster").count
    15
    """

    width: float
    height: float
    step: float
    pattern: Pattern = "jittered"
    jitter: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pattern not in get_args(Pattern):
            raise ValueError(f"pattern {self.pattern!r} is unknown; allowed: {', '.join(get_args(Pattern))}")
        for name in ("width", "height"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} {value} must be a finite length, 0 or more")
        if not (math.isfinite(self.step) and self.step > 0):
            raise ValueError(f"step {self.step} must be a finite length above 0")
        if not 0 <= self.jitter <= 0.5:
            raise ValueError(f"jitter {self.jitter} must be 0 to 0.5 steps; more lets neighbours change places")
        if self.count > MOST_POINTS:
            raise TooManyPointsError(
                f"a field of {self.width:g} by {self.height:g} in steps of {self.step:g} has {self.count} points, "
                f"more than {MOST_POINTS}; is the unit right?",
                self.count,
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the raster."""
        rows, columns = (1 + math.ceil(length / self.step - _ROUNDING) for length in (self.height, self.width))
        return rows, columns

    @property
    def count(self) -> int:
        """Number of points; of a spiral, the number that fits its area (`points` may differ by a few)."""
        if self.pattern == "spiral":
            return max(1, round(self.width * self.height / self.step**2))
        rows, columns = self.shape
        return rows * columns

    def points(self, x: Any, y: Any, centre: tuple[float, float] = (0.0, 0.0)) -> Cycler[Any, Any]:
        """Make the trajectory.

        Parameters
        ----------
        x, y : object
            What moves, the keys of the cycler.
        centre : tuple of float
            Middle of the field, (x, y).

        Returns
        -------
        Cycler
            For `bluesky.plans.scan_nd`; y is the slow axis.
        """
        if self.pattern == "spiral":
            return self._spiral(x, y, centre)
        lists = [
            # A single row or column belongs in the middle, where linspace would give the edge.
            np.linspace(middle - length / 2, middle + length / 2, number).tolist() if number > 1 else [middle]
            for middle, length, number in zip(centre, (self.width, self.height), self.shape[::-1], strict=True)
        ]
        snaking = [] if self.pattern == "raster" else [x]
        grid: Cycler[Any, Any] = plan_patterns.outer_list_product(  # type: ignore[no-untyped-call]
            [y, lists[1], x, lists[0]], snake_axes=snaking
        )
        return self._displaced(grid, x, y, centre) if self.pattern == "jittered" else grid

    def _spiral(self, x: Any, y: Any, centre: tuple[float, float]) -> Cycler[Any, Any]:
        if not (self.width and self.height):
            raise ValueError(f"a spiral needs a width and a height above 0, got {self.width:g} by {self.height:g}")
        # The k-th point of a Fermat spiral lies at radius sqrt(k) dr: one point per area pi dr^2.
        dr = self.step / math.sqrt(math.pi)
        spiral = plan_patterns.spiral_fermat(  # type: ignore[no-untyped-call]
            x, y, *centre, self.width, self.height, dr, 1.0
        )
        # Bluesky's starts at k = 1 and leaves the middle out.
        at = spiral.by_key()
        return cycler(x, [centre[0], *at[x]]) + cycler(y, [centre[1], *at[y]])

    def _displaced(self, grid: Cycler[Any, Any], x: Any, y: Any, centre: tuple[float, float]) -> Cycler[Any, Any]:
        rng = np.random.default_rng(self.seed)
        at = grid.by_key()
        moved = {}
        for key, middle, length in ((x, centre[0], self.width), (y, centre[1], self.height)):
            offset = rng.uniform(-self.jitter, self.jitter, len(grid)) * self.step
            moved[key] = np.clip(np.asarray(at[key]) + offset, middle - length / 2, middle + length / 2)
        return cycler(x, moved[x].tolist()) + cycler(y, moved[y].tolist())
