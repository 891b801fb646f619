"""How far an image is from a reference, free of what ptychography cannot know.

A reconstruction is defined up to a global phase, often up to a linear phase ramp (the centre of the diffraction
pattern) and an amplitude scale (the probe's intensity). Every error here removes the global phase; the ramp and the
scale on request.

Images are 2-D. A complex array is an object transmission, a real array a phase in rad. Pixels that are NaN in either
image, or whose weight is 0, do not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Complex = NDArray[np.complex128]
Real = NDArray[np.float64]


def _complex(image: ArrayLike, who: str) -> Complex:
    array = np.asarray(image)
    if array.ndim != 2:
        raise ValueError(f"{who}: got an array of shape {array.shape}; a 2-D image (rows, columns) is needed")
    if np.iscomplexobj(array):
        return np.asarray(array, dtype=np.complex128)
    return np.asarray(np.exp(1j * array.astype(np.float64)))


def _weights(image: NDArray[Any], reference: NDArray[Any], weight: ArrayLike | None) -> Real:
    """Weights with 0 wherever a pixel cannot be compared; raises when none can."""
    if image.shape != reference.shape:
        raise ValueError(
            f"image is {image.shape} px and reference {reference.shape} px; cut both to the same area first"
        )
    usable = np.isfinite(image) & np.isfinite(reference)
    if weight is None:
        weights: Real = usable.astype(np.float64)
    else:
        given = np.asarray(weight, dtype=np.float64)
        if given.shape != image.shape:
            raise ValueError(f"weight is {given.shape} px and image {image.shape} px; they must be the same")
        if np.any(given < 0):
            raise ValueError(f"weight: got {np.nanmin(given):g}; weights are 0 or more, or a boolean mask")
        weights = np.where(usable & np.isfinite(given), given, 0.0)
    if not np.any(weights > 0):
        raise ValueError(
            "no pixel to compare: everything is NaN or has weight 0; check that coverage and reference overlap"
        )
    return weights


def _find_ramp(cross: Complex) -> tuple[float, float]:
    """Phase ramp (rad per pixel along rows, columns) that makes ``sum(cross * exp(-1j ramp))`` largest in modulus."""
    from scipy.optimize import minimize

    rows, columns = cross.shape
    padded = (2 * rows, 2 * columns)
    peak = np.unravel_index(int(np.argmax(np.abs(np.fft.fft2(cross, padded)))), padded)
    start = [2 * np.pi * np.fft.fftfreq(n)[k] for n, k in zip(padded, peak, strict=True)]
    total = float(np.abs(cross).sum())
    # In units of the peak's width, so that the search is well scaled whatever the image's size.
    y, x = (np.arange(n) - (n - 1) / 2 for n in cross.shape)
    unit = np.array([1.0 / rows, 1.0 / columns])

    def loss(step: Real) -> tuple[float, Real]:
        slope = np.asarray(start) + step * unit
        wave_y, wave_x = np.exp(-1j * slope[0] * y), np.exp(-1j * slope[1] * x)
        along_x = cross @ wave_x
        value = wave_y @ along_x
        by_y = (-1j * y * wave_y) @ along_x
        by_x = wave_y @ (cross @ (-1j * x * wave_x))
        gradient = 2 * np.real(np.conj(value) * np.array([by_y, by_x])) * unit
        return -float(abs(value) ** 2) / total**2, -gradient / total**2

    found = minimize(loss, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-10})
    slope = np.asarray(start) + found.x * unit
    return float(slope[0]), float(slope[1])


def align(
    image: ArrayLike,
    reference: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    ramp: bool = False,
    scale: bool = False,
) -> Complex:
    """Bring an image to the reference's global phase, and on request its phase ramp and amplitude scale.

    The phase and ramp maximise ``|sum(weight * image * conj(reference))|``, the least-squares choice. The scale is the
    least-squares factor between the two amplitudes alone, so that a wrong phase does not darken the image.

    Parameters
    ----------
    image, reference : (rows, columns) complex transmission, or real phase in rad
    weight : (rows, columns) float or bool, optional
        0 where a pixel does not count; all 1 when not given.
    ramp : bool
        Remove a linear phase ramp too.
    scale : bool
        Match the amplitude too.

    Returns
    -------
    (rows, columns) complex128
        The aligned image; NaN where `image` is NaN.

    Raises
    ------
    ValueError
        For shapes that differ, negative weights, or no pixel to compare.

    Examples
    --------
    >>> truth = np.exp(1j * np.linspace(-1, 1, 12).reshape(3, 4))
    >>> bool(np.allclose(align(truth * np.exp(2j), truth), truth))
    True
    """
    ours, theirs = _complex(image, "image"), _complex(reference, "reference")
    weights = _weights(ours, theirs, weight)
    counts = weights > 0
    cross = np.where(counts, weights * ours * np.conj(theirs), 0.0)
    aligned = ours
    if ramp:
        slope_y, slope_x = _find_ramp(cross)
        y, x = np.ogrid[: ours.shape[0], : ours.shape[1]]
        wave = np.exp(-1j * (slope_y * y + slope_x * x))
        aligned, cross = aligned * wave, cross * wave
    aligned = aligned * np.exp(-1j * np.angle(cross.sum()))
    if scale:
        aligned = aligned * _scale(np.abs(ours), np.abs(theirs), weights)
    return np.asarray(aligned)


def _scale(ours: Real, theirs: Real, weights: Real) -> float:
    counts = weights > 0
    power = float(np.sum(weights[counts] * ours[counts] ** 2))
    if power == 0:
        raise ValueError("image has amplitude 0 wherever it can be compared; its scale cannot be found")
    return float(np.sum(weights[counts] * ours[counts] * theirs[counts])) / power


def phase_error(image: ArrayLike, reference: ArrayLike, weight: ArrayLike | None = None, *, ramp: bool = False) -> Real:
    """Phase of the image minus the reference's, rad, wrapped to (-pi, pi], global phase removed.

    Amplitudes are ignored: the global phase is the circular mean of the pixels' phase differences.

    Returns
    -------
    (rows, columns) float64
        NaN where a pixel does not count.
    """
    ours, theirs = _complex(image, "image"), _complex(reference, "reference")
    ours, theirs = _unit(ours), _unit(theirs)
    weights = _weights(ours, theirs, weight)
    difference = np.angle(align(ours, theirs, weights, ramp=ramp) * np.conj(theirs))
    return np.where(weights > 0, difference, np.nan)


def _unit(image: Complex) -> Complex:
    modulus = np.abs(image)
    # A NaN must stay one: only an amplitude of exactly 0, whose phase says nothing, becomes 1.
    with np.errstate(invalid="ignore"):
        return np.asarray(np.divide(image, modulus, out=np.ones_like(image), where=modulus != 0))


def phase_mae(image: ArrayLike, reference: ArrayLike, weight: ArrayLike | None = None, *, ramp: bool = False) -> float:
    """Weighted mean absolute phase error, rad; see `phase_error`."""
    error, weights, _ = _error_and_weights(image, reference, weight, ramp)
    return float(np.sum(weights * np.abs(error)) / weights.sum())


def _error_and_weights(
    image: ArrayLike, reference: ArrayLike, weight: ArrayLike | None, ramp: bool
) -> tuple[Real, Real, NDArray[np.bool_]]:
    """Phase errors and weights of the pixels that count, and which these are."""
    error = phase_error(image, reference, weight, ramp=ramp)
    counts = np.isfinite(error)
    weights = np.ones(int(counts.sum())) if weight is None else np.asarray(weight, dtype=np.float64)[counts]
    return error[counts], weights, counts


def phase_correlation(
    image: ArrayLike, reference: ArrayLike, weight: ArrayLike | None = None, *, ramp: bool = False
) -> float:
    """Weighted Pearson correlation of the two phases, -1 to 1.

    The reference's phase is taken about its circular mean, and the image's as the reference's plus the wrapped
    difference, so that the image may wrap anywhere. Where the reference's own phase spans more than 2 pi its wraps
    remain and the correlation loses its meaning: use `phase_mae` there.

    Returns
    -------
    float
        NaN when either phase is constant: a correlation is then undefined.
    """
    error, weights, counts = _error_and_weights(image, reference, weight, ramp)
    theirs = _unit(_complex(reference, "reference"))[counts]
    truth = np.angle(theirs * np.exp(-1j * np.angle(np.sum(weights * theirs))))
    return _pearson(truth + error, truth, weights)


def _pearson(a: Real, b: Real, weights: Real) -> float:
    weights = weights / weights.sum()
    a, b = a - np.sum(weights * a), b - np.sum(weights * b)
    deviations = np.sqrt(np.sum(weights * a**2)), np.sqrt(np.sum(weights * b**2))
    # Phases are of the order of 1 rad: a smaller spread than this is rounding, and there is nothing to correlate.
    if min(deviations) < 1e-9:
        return float("nan")
    return float(np.clip(np.sum(weights * a * b) / (deviations[0] * deviations[1]), -1.0, 1.0))


def ssim(
    image: ArrayLike,
    reference: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    ramp: bool = False,
    data_range: float | None = None,
) -> float:
    """Structural similarity (Wang et al. 2004; scikit-image, 7 x 7 uniform window) of aligned phases.

    Pixels that do not count take the reference's value in both images, and only windows centred on pixels that count
    are averaged (by `weight`).

    Parameters
    ----------
    image, reference, weight, ramp
        See `align`.
    data_range : float, optional
        Span of phases, rad, that the constants of SSIM refer to; the reference's own where compared, by default.

    Raises
    ------
    ValueError
        For images under 7 x 7 px, or a constant reference without `data_range`.
    """
    from skimage import metrics as skimage_metrics

    unit = _unit(_complex(reference, "reference"))
    error = phase_error(image, reference, weight, ramp=ramp)
    weights = _weights(error, unit, weight)
    counts = weights > 0
    theirs = np.angle(unit * np.exp(-1j * np.angle(np.sum(np.where(counts, weights * unit, 0.0)))))
    if min(theirs.shape) < 7:
        raise ValueError(f"ssim: image is {theirs.shape} px; at least 7 x 7 px are needed for its window")
    span = float(np.ptp(theirs[counts])) if data_range is None else float(data_range)
    if span <= 0:
        raise ValueError("ssim: the reference is constant where compared; give data_range (rad)")
    theirs = np.where(np.isfinite(theirs), theirs, float(theirs[counts].mean()))
    ours = np.where(counts, theirs + error, theirs)
    compare: Any = skimage_metrics.structural_similarity
    _, similarity = compare(ours, theirs, data_range=span, full=True)
    return float(np.sum(weights * np.where(counts, similarity, 0.0)) / weights.sum())


@dataclass(frozen=True)
class RingCorrelation:
    """A Fourier ring correlation and its thresholds.

    Attributes
    ----------
    frequency : (n,) float64
        Centre of each ring, cycles per pixel, 0 to 0.5.
    correlation : (n,) float64
        Real part of the normalised correlation in each ring; NaN where a ring holds no signal.
    pixels : (n,) int64
        Fourier pixels in each ring.
    """

    frequency: Real
    correlation: Real
    pixels: NDArray[np.int64]

    @property
    def half_bit(self) -> Real:
        """Half-bit threshold (van Heel and Schatz 2005) for two images of the same quality."""
        root = np.sqrt(np.maximum(self.pixels, 1))
        return np.asarray((0.2071 + 1.9102 / root) / (1.2071 + 0.9102 / root))

    def resolution_px(self, criterion: Literal["half-bit", "1/7"] = "half-bit") -> float:
        """Half period, in pixels, of the first frequency at which the curve falls below the threshold.

        1 (Nyquist) when it never does; infinity when not even the lowest ring passes.
        """
        limit = self.half_bit if criterion == "half-bit" else np.full_like(self.frequency, 1 / 7)
        # Ring 0 is the mean, which is subtracted; it says nothing about detail.
        margin = (np.nan_to_num(self.correlation, nan=-1.0) - limit)[1:]
        frequency = self.frequency[1:]
        below = np.flatnonzero(margin < 0)
        if below.size == 0:
            return 1.0
        first = int(below[0])
        if first == 0:
            return float("inf")
        # Where the straight line between the last ring above and the first below crosses.
        part = margin[first - 1] / (margin[first - 1] - margin[first])
        crossing = frequency[first - 1] + part * (frequency[first] - frequency[first - 1])
        return float(0.5 / crossing)


def fourier_ring_correlation(
    image: ArrayLike, reference: ArrayLike, weight: ArrayLike | None = None, *, ramp: bool = False
) -> RingCorrelation:
    """Correlate two images ring by ring in Fourier space, after alignment.

    The mean is subtracted, pixels that do not count are set to it, and a Hann window keeps the edges from correlating.
    Read the half-bit threshold for two independent reconstructions of equal quality; against a known truth it is
    conservative.

    Parameters
    ----------
    image, reference : (rows, columns) complex transmission, or real phase in rad
    weight : (rows, columns) float or bool, optional
        0 where a pixel does not count; all 1 when not given.
    ramp : bool
        Remove a linear phase ramp before.

    Returns
    -------
    RingCorrelation
        One value a ring of one Fourier pixel's width, up to the Nyquist frequency.

    Raises
    ------
    ValueError
        For shapes that differ, negative weights, or no pixel to compare.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> truth = np.exp(1j * rng.normal(0, 0.3, (64, 64)))
    >>> noisy = [truth + 0.05 * rng.normal(size=(64, 64)) for _ in range(2)]
    >>> fourier_ring_correlation(*noisy).resolution_px()
    1.0
    >>> rings = fourier_ring_correlation(noisy[0], rng.normal(0, 0.3, (64, 64)))
    >>> rings.resolution_px("1/7") > 2
    True
    """
    ours, theirs = align(image, reference, weight, ramp=ramp), _complex(reference, "reference")
    weights = _weights(ours, theirs, weight)
    window = np.outer(*(np.hanning(n + 2)[1:-1] for n in ours.shape))
    spectra = []
    for picture in (ours, theirs):
        inside = np.where(weights > 0, picture, 0.0)
        mean = np.sum(weights * inside) / weights.sum()
        spectra.append(np.fft.fft2(np.where(weights > 0, picture - mean, 0.0) * window))
    radius = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) for n in ours.shape), indexing="ij"))
    width = 1.0 / min(ours.shape)
    ring = np.rint(radius / width).astype(np.int64)
    rings = int(np.floor(0.5 / width)) + 1
    inside = ring < rings

    def per_ring(values: Real) -> Real:
        return np.bincount(ring[inside], weights=values[inside], minlength=rings).astype(np.float64)

    power = np.sqrt(per_ring(np.abs(spectra[0]) ** 2) * per_ring(np.abs(spectra[1]) ** 2))
    cross = per_ring(np.real(spectra[0] * np.conj(spectra[1])))
    correlation = np.divide(cross, power, out=np.full(rings, np.nan), where=power > 0)
    return RingCorrelation(
        frequency=np.arange(rings) * width,
        correlation=correlation,
        pixels=np.bincount(ring[inside], minlength=rings).astype(np.int64),
    )
