"""The scale of a probe: photons in a frame without sample."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Photons of a probe whose scale says nothing.
_USUAL = 1e5
#: A probe in square-root photons has more than this; one of unit intensity has not.
_FEWEST = 100.0


def probe_photons(probe: NDArray[Any]) -> float:
    """Photons in a probe (N, N) in square-root photons; 1e5 for one that is only relative."""
    power = float((np.abs(probe) ** 2).sum())
    return power if power > _FEWEST else _USUAL


def with_photons(probe: NDArray[Any], photons: float = 1.0) -> NDArray[np.complex64]:
    """Scale a probe (N, N) of any scale to as many photons."""
    return np.asarray(probe / np.sqrt((np.abs(probe) ** 2).sum()) * np.sqrt(photons), dtype=np.complex64)
