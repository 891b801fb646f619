"""Stitch patches into a mosaic: sub-pixel, weighted, and with one global phase for all.

A single diffraction pattern does not hold the global phase of its patch, so neighbouring patches disagree by a
constant. Where they overlap the constant shows, and the mosaic takes it out: each arriving patch is turned to the image
already there, and `Mosaic.synchronise` makes all patches agree at once (angular synchronisation, as block coordinate
ascent on the overlap; compare Singer, Appl. Comput. Harmon. Anal. 30, 20, 2011). Where the overlap is thin its errors
would add up from patch to patch, so a weak anchor draws the mean phase of each patch to zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

Float = NDArray[np.float32]
Complex = NDArray[np.complex64]

#: A mosaic larger than this on a side means positions in the wrong unit, not a larger sample.
MAX_SIDE_PX = 20_000
_LEAST_COVERAGE = 0.02


@dataclass(frozen=True)
class MosaicImage:
    """A complete snapshot of a mosaic.

    Attributes
    ----------
    amplitude, phase, coverage, trust : (H, W) float32 ndarray
        Dimensionless, rad, summed weight, 0 to 1; all but `coverage` are NaN where coverage is 0, and `trust` is where
        a patch was not judged.
    origin_m : tuple of float
        Object coordinate (y, x) of the centre of pixel [0, 0], m.
    pixel_m : float
        Pixel size, m.
    """

    amplitude: Float
    phase: Float
    coverage: Float
    trust: Float
    origin_m: tuple[float, float]
    pixel_m: float

    @property
    def complex(self) -> Complex:
        """Object (H, W) complex64, NaN where not covered."""
        return np.asarray(self.amplitude * np.exp(1j * self.phase), dtype=np.complex64)


@dataclass
class _Kept:
    """A patch in the mosaic: as it came, mean phase zero, and the phasor it is turned by now."""

    row: int
    column: int
    patch: Complex
    weight: Float
    phasor: np.complex64 = np.complex64(1)  # noqa: RUF009  immutable

    @property
    def weighted(self) -> Complex:
        return np.asarray(self.patch * (self.weight * self.phasor), dtype=np.complex64)

    def turn(self, under: Complex, anchor: float) -> Complex:
        """Turn to agree with what lies under it, and return what it adds to the mosaic."""
        plain = self.patch * self.weight
        agreement = np.vdot(plain, under) + anchor * np.vdot(plain, plain)
        if abs(agreement) > 0:
            self.phasor = np.complex64(agreement / abs(agreement))
        return np.asarray(plain * self.phasor, dtype=np.complex64)


class Mosaic:
    """Weighted overlap-add of complex patches on a grid that grows with the scan.

    Parameters
    ----------
    pixel_m : float
        Object pixel, m.
    weight : (h, w) float32 ndarray
        Weight of a patch's pixels, usually the probe's intensity; the peak is scaled to 1.
    anchor : float
        Pull of each patch's weighted mean phase to zero, relative to the patch's own energy. On every 25th frame of the
        measured Siemens star 0.02 gave a phase correlation of 0.927, no anchor 0.898; on every 4th both gave 0.972.
    keep : int
        Bytes of patches to keep for `synchronise`; beyond that later patches keep the phase they arrived with.

    Examples
    --------
    >>> mosaic = Mosaic(pixel_m=1e-8, weight=np.ones((8, 8), np.float32))
    >>> mosaic.add(np.full((2, 8, 8), 1j, np.complex64), np.array([0.0, 0.0]), np.array([0.0, 3e-8]), np.ones(2))
    >>> mosaic.snapshot().phase.shape
    (8, 11)
    """

    def __init__(
        self, pixel_m: float, weight: NDArray[np.floating], *, anchor: float = 0.02, keep: int = 256 * 2**20
    ) -> None:
        weight = np.asarray(weight, dtype=np.float32)
        if not pixel_m > 0:
            raise ValueError(f"Mosaic: pixel {pixel_m} m must be above 0")
        if weight.ndim != 2 or not np.all(np.isfinite(weight)) or weight.min() < 0 or weight.max() <= 0:
            raise ValueError(
                f"Mosaic: weight of shape {weight.shape} must be (h, w), finite, not negative and not all zero"
            )
        self.pixel_m = pixel_m
        self.weight: Float = weight / weight.max()
        self._anchor, self._keep = anchor, keep
        self._low = np.zeros(2, dtype=int)  # object pixel (row, column) of the arrays' [0, 0]
        self._wave = np.zeros((0, 0), dtype=np.complex64)
        self._coverage = np.zeros((0, 0), dtype=np.float32)
        self._trust = np.zeros((0, 0), dtype=np.float32)
        self._kept: list[_Kept] = []
        self._kept_bytes = 0
        self.count = 0

    def add(
        self, patches: Complex, y_m: NDArray[np.floating], x_m: NDArray[np.floating], trust: NDArray[np.floating]
    ) -> None:
        """Add patches, each turned to agree with what it overlaps.

        Parameters
        ----------
        patches : (n, h, w) complex64 ndarray
            Patch pixel ``[h // 2, w // 2]`` sits at ``(y_m, x_m)``.
        y_m, x_m : (n,) float ndarray
            Positions, m.
        trust : (n,) float ndarray
            0 to 1; a patch counts in proportion to it, but at least by 0.05; wholly where it is NaN, not judged.

        Raises
        ------
        ValueError
            When shapes disagree, a position is not finite, or the field becomes absurdly large. Nothing is added then.
        """
        patches = np.asarray(patches, dtype=np.complex64)
        positions = np.stack([np.asarray(y_m, dtype=float), np.asarray(x_m, dtype=float)], axis=-1).reshape(-1, 2)
        if patches.shape[1:] != self.weight.shape or not len(patches) == len(positions) == len(np.atleast_1d(trust)):
            raise ValueError(
                f"Mosaic.add: patches {patches.shape}, positions {positions.shape} and trust {np.shape(trust)} "
                f"do not go together; a patch is {self.weight.shape} px"
            )
        if not np.isfinite(positions).all():
            raise ValueError(
                f"Mosaic.add: position of patch {int(np.argmin(np.isfinite(positions).all(1)))} is not finite"
            )
        if not len(patches):
            return
        pixels = positions / self.pixel_m - np.array(self.weight.shape) // 2
        whole = np.floor(pixels + 0.5).astype(int)
        self._grow(whole.min(0), whole.max(0) + np.array(self.weight.shape))
        for patch, pixel, corner, t in zip(patches, pixels, whole, np.atleast_1d(trust), strict=True):
            self._add_patch(patch, pixel - corner, corner, float(t))
        self.count += len(patches)

    def _grow(self, low: NDArray[np.int_], high: NDArray[np.int_]) -> None:
        if self._wave.size:
            low, high = np.minimum(low, self._low), np.maximum(high, self._low + self._wave.shape)
        shape = high - low
        if shape.max() > MAX_SIDE_PX:
            raise ValueError(
                f"Mosaic: the field would be {shape[0]} x {shape[1]} px of {self.pixel_m:.3g} m, allowed are "
                f"{MAX_SIDE_PX} px a side; check the unit of the positions and the geometry"
            )
        if tuple(shape) == self._wave.shape and (low == self._low).all():
            return
        pads = list(zip(self._low - low, high - self._low - self._wave.shape, strict=True)) if self._wave.size else None
        for name in ("_wave", "_coverage", "_trust"):
            old = getattr(self, name)
            setattr(self, name, np.zeros(shape, old.dtype) if pads is None else np.pad(old, pads))
        self._low = low

    def _add_patch(self, patch: Complex, offset: NDArray[np.floating], corner: NDArray[np.int_], trust: float) -> None:
        weight = self.weight
        if np.abs(offset).max() > 1e-3:
            weight = ndimage.shift(weight, offset, order=1, mode="nearest")
            patch = _shift_smooth(patch, offset)
        weight = weight * np.float32(1.0 if np.isnan(trust) else max(trust, 0.05))
        top, left = corner - self._low
        window = (slice(top, top + weight.shape[0]), slice(left, left + weight.shape[1]))
        patch = patch * np.exp(np.complex64(-1j) * np.angle(np.sum(patch * weight)))
        kept = _Kept(int(corner[0]), int(corner[1]), patch, weight)
        self._wave[window] += kept.turn(self._wave[window], self._anchor)
        self._coverage[window] += weight
        self._trust[window] += weight * np.float32(trust)
        if self._kept_bytes < self._keep:
            self._kept.append(kept)
            self._kept_bytes += patch.nbytes + weight.nbytes

    def synchronise(self, sweeps: int = 20, tolerance_rad: float = 1e-3) -> float:
        """Make the kept patches agree on one global phase: turn each to the rest of the mosaic, until nothing moves.

        Returns
        -------
        float
            Largest turn of the last sweep, rad.
        """
        largest = 0.0
        for _ in range(sweeps):
            largest = 0.0
            for kept in self._kept:
                top, left = kept.row - self._low[0], kept.column - self._low[1]
                window = (slice(top, top + kept.patch.shape[0]), slice(left, left + kept.patch.shape[1]))
                before = kept.phasor
                rest = self._wave[window] - kept.weighted
                self._wave[window] = rest + kept.turn(rest, self._anchor)
                largest = max(largest, float(np.abs(np.angle(kept.phasor * np.conj(before)))))
            if largest < tolerance_rad:
                break
        return largest

    def snapshot(self) -> MosaicImage:
        """Return the whole image so far; pixels with less coverage than 2 % of one patch's peak are left out."""
        seen = self._coverage >= _LEAST_COVERAGE
        with np.errstate(invalid="ignore", divide="ignore"):
            wave = np.where(seen, self._wave / self._coverage, np.nan)
            trust = np.where(seen, self._trust / self._coverage, np.nan)
        # The zero of phase is free: put it at the coverage-weighted mean, so that snapshots of one scan look alike.
        mean = np.angle(self._wave[seen].sum()) if seen.any() else 0.0
        wave = wave * np.exp(-1j * mean)
        return MosaicImage(
            amplitude=np.abs(wave).astype(np.float32),
            phase=np.where(seen, np.angle(wave), np.nan).astype(np.float32),
            coverage=np.where(seen, self._coverage, 0).astype(np.float32),
            trust=trust.astype(np.float32),
            origin_m=(float(self._low[0]) * self.pixel_m, float(self._low[1]) * self.pixel_m),
            pixel_m=self.pixel_m,
        )


def _shift_smooth(patch: Complex, offset: NDArray[np.floating]) -> Complex:
    """Shift by a sub-pixel `offset` through the Fourier domain, mirrored at the edges so that nothing wraps round."""
    pad = 8
    far = fft.fft2(np.pad(patch, pad, mode="reflect"))
    return np.asarray(fft.ifft2(ndimage.fourier_shift(far, offset))[pad:-pad, pad:-pad], dtype=np.complex64)
