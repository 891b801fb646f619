"""A probe known at one object pixel, on the grid of frames of another: cut, padded, binned or resized ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.optics.framing import PreprocessConfig
from bluesky_ptychonn.optics.geometry import Geometry

_SAME = 1e-6  # relative difference of object pixels that are equal


def probe_on(
    probe: NDArray[np.complexfloating], geometry: Geometry, preprocess: PreprocessConfig, pixel_m: float | None = None
) -> tuple[NDArray[np.complex64], Geometry]:
    """Bring a probe to the grid of a network's frames.

    Parameters
    ----------
    probe : (n, n) complex ndarray
        Centred at pixel ``n // 2``, oriented as the network's frames; `n` may be odd.
    geometry : Geometry
        Of the frames as recorded.
    preprocess : PreprocessConfig
        From recorded frames to the network's.
    pixel_m : float, optional
        The probe's object pixel, m. When not given, a probe as large as a recorded frame has that of the recorded
        frames, one as large as the network's frames theirs.

    Returns
    -------
    probe : (N, N) complex64 ndarray
        See `resampled`.
    geometry : Geometry
        Of the network's frames.

    Raises
    ------
    ValueError
        For an array that is not square, or whose object pixel nothing says.
    """
    ours = preprocess.geometry_after(geometry)
    if probe.ndim != 2 or probe.shape[0] != probe.shape[1]:
        raise ValueError(f"probe: got shape {probe.shape}; a square one is needed, (n, n) object pixels: cut or pad it")
    if pixel_m is None:
        fits = [known for known in (geometry, ours) if known.frame_shape == probe.shape]
        if not fits:
            raise ValueError(
                f"probe: it is {probe.shape[0]} px wide, frames are {geometry.frame_shape[0]} px as recorded and "
                f"{ours.frame_shape[0]} px to the network; say its object pixel, probe_pixel_m= in m "
                f"(recorded frames have {geometry.object_pixel_m:.6g} m, the network's {ours.object_pixel_m:.6g} m)"
            )
        pixel_m = fits[0].object_pixel_m
    elif not 0 < pixel_m < np.inf:
        raise ValueError(f"probe: probe_pixel_m {pixel_m} m must be above 0")
    if probe.shape == ours.frame_shape and abs(pixel_m / ours.object_pixel_m - 1) < _SAME:
        return np.asarray(probe, dtype=np.complex64), ours
    return resampled(probe, pixel_m, ours) * _ramp(preprocess.window_shape(geometry.frame_shape)[0], ours), ours


def _ramp(window: int, ours: Geometry) -> NDArray[np.complex64]:
    """Phase (N, N) of modulus one that shifts a pattern as joining pixels does.

    The middle of `s` joined detector pixels lies ``(s - 1) / 2`` pixels of the window beside the first, in which the
    beam is.
    """
    size = ours.frame_shape[0]
    beside = (window / size - 1) / 2
    one = np.exp(-2j * np.pi * beside * (np.arange(size) - size // 2) / window)
    return np.outer(one, one).astype(np.complex64)


def resampled(probe: NDArray[np.complexfloating], pixel_m: float, geometry: Geometry) -> NDArray[np.complex64]:
    """Interpolate a probe (n, n) of object pixel `pixel_m`, m, to the grid (N, N) of frames of a geometry.

    What a detector pixel of the new frames sees is one Fourier component of the new grid. So the probe is interpolated
    by its own Fourier series, of which only components that fall on the new frames are kept: a cut of the frames is
    exactly a cut of the series, light beyond it is not recorded. Beyond its own window the probe is dark. The sum of
    squares stays the photons of a frame: the wave is scaled by the ratio of the pixels.

    Returns
    -------
    (N, N) complex64 ndarray
        The probe itself where its grid is that of the frames.
    """
    n, size, wanted_m = probe.shape[0], geometry.frame_shape[0], geometry.object_pixel_m
    if n == size and abs(pixel_m / wanted_m - 1) < _SAME:
        return np.asarray(probe, dtype=np.complex64)
    ratio = wanted_m / pixel_m
    order = np.arange(n) - n // 2  # of the series; the beam's direction is 0
    # Detector pixels of even frames go from -N/2 to N/2 - 1; the margin is for the rounding of an exact cut.
    kept = order[(order * ratio >= -n / 2 - _SAME * n) & (order * ratio < n / 2 - _SAME * n)]
    places = (np.arange(size) - size // 2) * ratio  # of the new pixels, in old ones
    forth = np.exp(-2j * np.pi * np.outer(kept, np.arange(n) - n // 2) / n) / n
    back = np.exp(2j * np.pi * np.outer(places, kept) / n)
    back[(places < -(n // 2) - 0.5) | (places > n - n // 2 - 0.5)] = 0
    matrix = ratio * back @ forth  # (N, n), of each axis; the ratio once for both
    return np.asarray(matrix @ probe @ matrix.T / ratio, dtype=np.complex64)
