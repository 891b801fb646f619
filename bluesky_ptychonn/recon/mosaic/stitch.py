"""Stitch patches into a mosaic: sub-pixel, weighted, and with one global phase for all.

A single diffraction pattern does not hold the global phase of its patch, so neighbouring patches disagree by a
constant. Where they overlap the constant shows, and the mosaic takes it out: each arriving patch is turned to the image
already there, and `Mosaic.synchronise` makes all patches agree at once (angular synchronisation, as block coordinate
ascent on the overlap; compare Singer, Appl. Comput. Harmon. Anal. 30, 20, 2011). Where the overlap is thin its errors
would add up from patch to patch, so a weak anchor draws the mean phase of each patch to zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from bluesky_ptychonn.array_store import ArrayStore
from bluesky_ptychonn.optics.geometry import MAX_SIDE_PX

Float = NDArray[np.float32]
Complex = NDArray[np.complex64]

_LEAST_COVERAGE = 0.02
_WHOLE_PX = 1e-3  # a shift by less is none
_GRAIN = 2.0**-22  # of weights up to 1: what single precision holds of the largest


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


@dataclass(slots=True)
class _Kept:
    """Where a patch lies, and the phasor it is turned by now; with its weight it is in the mosaic's store."""

    row: int
    column: int
    offset: tuple[float, float]  # px beyond that
    trust: float
    stored: int = -1  # number in the store; -1: not kept
    phasor: np.complex64 = np.complex64(1)  # noqa: RUF009  immutable

    def turn(self, plain: Complex, under: Complex, anchor: float) -> Complex:
        """Turn a patch to agree with what lies under it, and return what it adds to the mosaic."""
        # No BLAS: its sums depend on its threads.
        agreement = (plain.conj() * under).sum() + anchor * (plain.real**2 + plain.imag**2).sum()
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
        Bytes of patches to keep in memory for `synchronise`; when there are more they are in a file (`ArrayStore`).

    Attributes
    ----------
    count : int
        Patches in it.
    problem : str
        Why later patches keep the phase they arrived with, such as a full disk; empty while all can be synchronised.

    Examples
    --------
    >>> mosaic = Mosaic(pixel_m=1e-8, weight=np.ones((8, 8), np.float32))
    >>> mosaic.add(np.full((2, 8, 8), 1j, np.complex64), np.array([0.0, 0.0]), np.array([0.0, 3e-8]), np.ones(2))
    >>> mosaic.snapshot().phase.shape
    (8, 11)
    """

    def __init__(
        self, pixel_m: float, weight: NDArray[np.floating], *, anchor: float = 0.02, keep: int = 64 * 2**20
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
        self._anchor = anchor
        self._low = np.zeros(2, dtype=int)  # object pixel (row, column) of the arrays' [0, 0]
        self._wave = np.zeros((0, 0), dtype=np.complex64)
        self._coverage = np.zeros((0, 0), dtype=np.float64)  # sums of multiples of _GRAIN: exact, in whatever order
        self._trust = np.zeros((0, 0), dtype=np.float64)
        self._kept: dict[int, _Kept] = {}  # by the patches' numbers
        self._plain = ArrayStore(keep)  # patches times their weight, (h, w) complex64, mean phase zero
        self.count = 0
        self.problem = ""

    def add(
        self,
        patches: Complex,
        y_m: NDArray[np.floating],
        x_m: NDArray[np.floating],
        trust: NDArray[np.floating],
        order: Sequence[int] | None = None,
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
        order : (n,) sequence of int, optional
            Numbers of the patches, as they came by default: `synchronise` takes them in this order, whatever order they
            came in, and a patch takes the place of an earlier one of its number.

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
        numbers = range(self.count, self.count + len(patches)) if order is None else order
        for patch, pixel, corner, t, number in zip(patches, pixels, whole, np.atleast_1d(trust), numbers, strict=True):
            self.remove(int(number))
            (row, column), (down, right) = corner.tolist(), (pixel - corner).tolist()
            self._add_patch(int(number), patch, _Kept(row, column, (down, right), float(t)))

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

    def _window(self, kept: _Kept) -> tuple[slice, slice]:
        top, left = kept.row - self._low[0], kept.column - self._low[1]
        return slice(top, top + self.weight.shape[0]), slice(left, left + self.weight.shape[1])

    def _weight(self, kept: _Kept) -> Float:
        """Weight of a patch's pixels (h, w), where it lies."""
        weight = self.weight
        if np.abs(kept.offset).max() > _WHOLE_PX:
            weight = ndimage.shift(weight, kept.offset, order=1, mode="nearest")
        return _grained(weight * np.float32(1.0 if np.isnan(kept.trust) else max(kept.trust, 0.05)))

    def _add_patch(self, number: int, patch: Complex, kept: _Kept) -> None:
        weight, window = self._weight(kept), self._window(kept)
        if np.abs(kept.offset).max() > _WHOLE_PX:
            patch = _shift_smooth(patch, kept.offset)
        plain = patch * np.exp(np.complex64(-1j) * np.angle(np.sum(patch * weight))) * weight
        self._wave[window] += kept.turn(plain, self._wave[window], self._anchor)
        self._coverage[window] += weight
        self._trust[window] += _grained(weight * np.float32(kept.trust))
        self.count += 1
        self._kept[number] = kept
        if not self.problem:
            try:
                self._plain.append(plain)
                kept.stored = len(self._plain) - 1
            except OSError as error:
                self.problem = f"patches beyond {len(self._plain)} cannot be kept: {error}"

    def remove(self, number: int) -> None:
        """Take a patch out again, where there is one of this number and it is kept."""
        kept = self._kept.get(number)
        if kept is None or kept.stored < 0:
            return
        weight, window = self._weight(kept), self._window(kept)
        self._wave[window] -= self._plain[kept.stored] * kept.phasor
        self._coverage[window] -= weight
        self._trust[window] -= _grained(weight * np.float32(kept.trust))
        self.count -= 1
        del self._kept[number]

    def synchronise(self, sweeps: int = 20, tolerance_rad: float = 1e-3) -> float:
        """Make the kept patches agree on one global phase: turn each to the rest of the mosaic, until nothing moves.

        Where all are kept it begins anew from the patches in their order, so that the picture is the same to the bit
        however they came.

        Returns
        -------
        float
            Largest turn of the last sweep, rad.
        """
        in_order = [kept for _, kept in sorted(self._kept.items()) if kept.stored >= 0]
        if not self.problem:
            self._wave[...] = 0
            for kept in in_order:
                under = self._wave[self._window(kept)]
                under += kept.turn(self._plain[kept.stored], under, self._anchor)
        largest = 0.0
        for _ in range(sweeps):
            largest = 0.0
            for kept in in_order:
                under, plain, before = self._wave[self._window(kept)], self._plain[kept.stored], kept.phasor
                under -= plain * before
                under += kept.turn(plain, under, self._anchor)
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


def _grained(weight: Float) -> Float:
    """Round to multiples of `_GRAIN`, which sums of a billion patches hold exactly in double precision."""
    return np.asarray(np.rint(weight / _GRAIN) * _GRAIN, dtype=np.float32)


def _shift_smooth(patch: Complex, offset: tuple[float, float]) -> Complex:
    """Shift by a sub-pixel `offset` through the Fourier domain, mirrored at the edges so that nothing wraps round."""
    pad = 8
    far = fft.fft2(np.pad(patch, pad, mode="reflect"))
    return np.asarray(fft.ifft2(ndimage.fourier_shift(far, offset))[pad:-pad, pad:-pad], dtype=np.complex64)
