"""How unlike other frames a frame is, told cheaply by where its light falls."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_RINGS, _SECTORS = 12, 8
FEATURES = _RINGS * _SECTORS


def features(counts: ArrayLike) -> NDArray[np.float32]:
    """Where a frame's light falls: square roots of its parts in 12 rings of 8 sectors each.

    Square roots, because their photon noise is the same everywhere; the distance of two such vectors is the Hellinger
    distance of the patterns times the square root of 2.

    Parameters
    ----------
    counts : (n, N, N) float
        Beam at pixel ``(N // 2, N // 2)``.

    Returns
    -------
    (n, 96) float32 ndarray
        Of length 1 each; zeros for a frame without counts.
    """
    frames = np.clip(np.asarray(counts, dtype=np.float64), 0, None)
    size = frames.shape[-1]
    y, x = np.indices((size, size)) - size // 2
    ring = np.minimum((np.hypot(y, x) * 2 * _RINGS / size).astype(int), _RINGS - 1)
    sector = ((np.arctan2(y, x) / (2 * np.pi) % 1) * _SECTORS).astype(int) % _SECTORS
    place = (ring * _SECTORS + sector).ravel()
    sums = np.zeros((len(frames), FEATURES))
    for row, frame in zip(sums, frames, strict=True):
        row[:] = np.bincount(place, frame.ravel(), len(row))
    total = sums.sum(axis=1, keepdims=True)
    parts = np.divide(sums, total, out=np.zeros_like(sums), where=total > 0)
    return np.asarray(np.sqrt(parts), dtype=np.float32)


def novelty(counts: ArrayLike, known: ArrayLike) -> NDArray[np.float32]:
    """How unlike all known frames each frame is: the distance of its `features` to the nearest known ones.

    Parameters
    ----------
    counts : (n, N, N) float
    known : (m, 96) float
        Features of what is known; with m = 0 all is new.

    Returns
    -------
    (n,) float32 ndarray
        0 for a frame just like a known one, to the square root of 2; 1 where nothing is known.

    Examples
    --------
    >>> frames = np.random.default_rng(0).poisson(5.0, (3, 16, 16))
    >>> novelty(frames, features(frames[:1]))[0].item()
    0.0
    """
    own, others = features(counts), np.asarray(known, dtype=np.float32)
    if not len(others):
        return np.ones(len(own), dtype=np.float32)
    return np.array([np.linalg.norm(others - item, axis=1).min() for item in own], dtype=np.float32)
