"""Learning rates over a training.

A function of the step alone, and not one of `torch.optim.lr_scheduler`: those keep state, which a checkpoint of an
earlier version has not, and a resumed training has to end with the same bits.
"""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["cosine", "cyclic"]
#: As PtychoNN was trained: the rate goes up and down five times, between a tenth of a peak and the peak.
_CYCLES = 5
_LOWEST = 0.1


def rate(step: int, steps: int, schedule: Schedule = "cosine") -> float:
    """Factor of the peak learning rate at a step.

    Parameters
    ----------
    step, steps : int
        Steps done, and in all.
    schedule : {"cosine", "cyclic"}
        ``cosine``: linear warm-up over the first 3 %, then a cosine to zero. ``cyclic``: as published for PtychoNN,
        five triangles from a tenth to a peak that halves its height over that tenth every time (``triangular2``).

    Examples
    --------
    >>> [round(rate(step, 100), 2) for step in (0, 2, 51, 99)]
    [0.33, 1.0, 0.51, 0.0]
    >>> [round(rate(step, 100, "cyclic"), 2) for step in (0, 10, 20, 30, 40)]
    [0.1, 1.0, 0.1, 0.55, 0.1]
    """
    if schedule == "cyclic":
        cycle, place = divmod(step * _CYCLES / max(steps, 1), 1)
        return float(_LOWEST + (1 - _LOWEST) * (1 - abs(2 * place - 1)) * 0.5**cycle)
    warm_up = max(1, round(0.03 * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
