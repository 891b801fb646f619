"""Near-field frames, which far-field ptychography cannot use, told by how they move with the stage."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from bluesky_ptychonn.optics.positions import nearest

if TYPE_CHECKING:
    from bluesky_ptychonn.optics.cxi.scan import CxiScan

_SHADOW_FRAMES = 64


def near_field_shadow(scan: CxiScan) -> str | None:
    """Say, in words, why frames are near-field ones; None where they may be far-field.

    A near-field frame is a magnified shadow of the sample that moves across the detector with the stage. The speed of
    that motion is the magnification, and the width of the bright field divided by it is the width of the beam at the
    sample. In far-field ptychography the beam is smaller than the window ``N x object pixel`` of the Fraunhofer
    relation. So: a shadow that follows the stage (linear fit, R² of at least 0.9), from a beam wider than that window.
    A defocused far-field probe throws a shadow too, but its beam fits the window. Fewer than 8 frames at different
    positions say nothing.
    """
    n = len(scan)
    if n < 8:
        return None
    distance, neighbour = nearest(scan.y_m, scan.x_m)
    first = np.unique(np.linspace(0, n - 1, min(n, _SHADOW_FRAMES)).astype(int))
    first = first[distance[first] > 0]
    if first.size < 8:
        return None
    second = neighbour[first]
    chosen = np.unique(np.concatenate([first, second]))
    frames = np.nan_to_num(scan.frames[chosen].astype(np.float64), posinf=0.0).clip(min=0)
    mean = frames.mean(axis=0)
    # What does not move (the beam's own profile) is taken out, the rest brought to equal noise.
    spectra = np.fft.fft2((frames - mean) / np.sqrt(mean + 1))
    row = {int(index): k for k, index in enumerate(chosen)}
    a = spectra[[row[int(i)] for i in first]]
    b = spectra[[row[int(i)] for i in second]]
    correlation = np.fft.ifft2(a * b.conj()).real
    size = mean.shape[0]
    peaks = np.stack(np.unravel_index(correlation.reshape(len(first), -1).argmax(1), mean.shape), axis=1)
    shift_px = (peaks + size // 2) % size - size // 2
    moved_m = np.stack([scan.y_m[second] - scan.y_m[first], scan.x_m[second] - scan.x_m[first]], axis=1)
    matrix, *_ = np.linalg.lstsq(moved_m, shift_px, rcond=None)
    scatter = ((shift_px - shift_px.mean(axis=0)) ** 2).sum()
    follows = 1 - ((shift_px - moved_m @ matrix) ** 2).sum() / scatter if scatter else 0.0
    px_per_m = math.sqrt(abs(np.linalg.det(matrix)))
    if follows < 0.9 or px_per_m == 0:
        return None
    bright = np.sort(mean.ravel())[::-1].cumsum()
    cone_px = 2 * math.sqrt(np.searchsorted(bright, 0.9 * bright[-1]) / math.pi)
    beam_m, window_m = cone_px / px_per_m, size * scan.geometry.object_pixel_m
    if beam_m <= window_m:
        return None
    return (
        f"its frames are shadows of the sample that follow the stage by {px_per_m * 1e-6:.3g} px a µm "
        f"(R² {follows:.2f}), so the beam is {beam_m * 1e6:.3g} µm wide, wider than the far-field window of "
        f"{window_m * 1e6:.3g} µm ({size} object pixels of {scan.geometry.object_pixel_m * 1e9:.3g} nm)"
    )
