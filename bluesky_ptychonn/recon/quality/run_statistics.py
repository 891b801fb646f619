"""What a run looks like as a whole: running sums over its frames, and the few figures they give at any time."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bluesky_ptychonn.recon.quality.registration import register

if TYPE_CHECKING:
    from torch import Tensor

_PAIRS = 256  # neighbours compared before only every second, third, … pair is
_LEAST_SHARED = 0.15  # of a patch's light, for two patches to be compared
_CLIPPED = 0.002  # of a frame's pixels at its highest count: more than chance gives


@dataclass(frozen=True)
class RunFigures:
    """Figures of a run so far; None where they are not known.

    Attributes
    ----------
    frames, judged : int
        All frames, and the valid ones.
    mean_trust : float or None
        Of valid frames.
    error_p90_rad : float or None
        Phase error that 9 in 10 frames of such a score stay below, rad; the median over valid frames. A bound, not the
        error to expect.
    photons : float or None
        Median counts of a frame.
    lost, out_of_range, saturated : float
        Part of all frames with no beam, with counts outside what the model knows, and with a clipped peak.
    shift_px : (float, float) or None
        How far the mean pattern lies from the probe's, rows and columns, detector pixels.
    scale : float or None
        How much larger it is, relative.
    width : float or None
        RMS radius of the mean pattern over the probe's: what the sample scatters.
    overlap_rad : float or None
        Mean absolute phase by which consecutive patches disagree where they overlap, rad.
    contrast_rad : float or None
        RMS phase within a patch, by its weight, rad.
    """

    frames: int
    judged: int
    mean_trust: float | None
    error_p90_rad: float | None
    photons: float | None
    lost: float
    out_of_range: float
    saturated: float
    shift_px: tuple[float, float] | None
    scale: float | None
    width: float | None
    overlap_rad: float | None
    contrast_rad: float | None

    @property
    def error_rad(self) -> float | None:
        """Former name of `error_p90_rad`, until the version after next."""
        warnings.warn("RunFigures.error_rad is a 90 % bound: error_p90_rad now", DeprecationWarning, stacklevel=2)
        return self.error_p90_rad


class RunStatistics:
    """Sums over the frames of one run; memory does not grow with them but for two numbers a frame.

    Parameters
    ----------
    probe : (N, N) complex ndarray or None
        The model's, any scale; without it patterns are not compared.
    weight : (h, w) float32 ndarray
        Of a patch's pixels.
    pixel_m : float
        Object pixel, m.

    Attributes
    ----------
    frames : int
        So far.
    """

    def __init__(self, probe: NDArray[np.complexfloating] | None, weight: NDArray[np.floating], pixel_m: float) -> None:
        self._expected: NDArray[np.float64] | None = None
        if probe is not None:
            far = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(probe)))
            self._expected = np.abs(far) ** 2 / (np.abs(far) ** 2).sum()
        self._weight, self._pixel_m = np.asarray(weight, np.float32), pixel_m
        self._sum: NDArray[np.float64] | None = None
        self._trust: list[float] = []
        self._error: list[float] = []
        self._photons: list[float] = []
        self.frames, self._lost, self._outside, self._clipped = 0, 0, 0, 0
        self._before: tuple[NDArray[np.complex64], float, float] | None = None
        self._pairs, self._disagreement, self._shared = 0, 0.0, 0.0
        self._placed, self._contrast = 0, 0.0

    def add_frames(
        self,
        counts: Tensor,
        totals: NDArray[np.floating],
        valid: NDArray[np.bool_],
        lost: Sequence[bool],
        outside: Sequence[bool],
    ) -> None:
        """Take frames (n, N, N) into account.

        And their sums, and whether each is valid, without beam, or outside the counts that the model knows; (n,) each.
        """
        import torch  # a plan that imports us pays for no torch

        # What may fail on a device comes first: a block that is done again must not count twice.
        kept = counts if valid.all() else counts[valid.tolist()]
        total, clipped = None, 0
        if len(kept):
            total = kept.sum(dim=0, dtype=torch.float64).cpu().numpy()
            flat = kept.flatten(1)
            top = flat.amax(dim=1, keepdim=True)
            clipped = int((((flat == top).sum(dim=1) > _CLIPPED * flat.shape[1]) & (top[:, 0] >= 50)).sum())
        self.frames += len(totals)
        self._lost += sum(lost)
        self._outside += sum(outside)
        self._photons += totals[np.isfinite(totals)].tolist()
        self._clipped += clipped
        if total is not None:
            self._sum = total if self._sum is None else self._sum + total

    def add_trust(self, trust: NDArray[np.floating], error_p90_rad: NDArray[np.floating] | None) -> None:
        """Take trust, and the error that 9 in 10 such frames stay below, rad, of valid frames (n,) into account."""
        self._trust += trust.tolist()
        if error_p90_rad is not None:
            self._error += error_p90_rad.tolist()

    def add_patches(self, patches: NDArray[np.complex64], y_m: NDArray[np.floating], x_m: NDArray[np.floating]) -> None:
        """Compare patches (n, h, w) with the one before each, where both are lit; positions (n,) in m."""
        lit = self._weight / self._weight.sum()
        for patch, y, x in zip(patches, y_m, x_m, strict=True):  # one by one: what came together is of no importance
            phase = np.angle(patch * (patch * lit).sum().conj())
            self._contrast += float((phase**2 * lit).sum())
            if self._before is not None and self._placed % (1 + self._pairs // _PAIRS) == 0:
                self._compare(patch, (y - self._before[1]) / self._pixel_m, (x - self._before[2]) / self._pixel_m)
            self._before = (patch, float(y), float(x))
            self._placed += 1

    def _compare(self, patch: NDArray[np.complex64], dy: float, dx: float) -> None:
        """Compare with the patch before, which lies (dy, dx) px away."""
        if self._before is None or not max(abs(dy) / patch.shape[0], abs(dx) / patch.shape[1]) < 1:
            return
        other, weight = self._before[0], self._weight
        wy, wx = round(dy), round(dx)
        here = tuple(slice(max(0, -d), min(n, n - d)) for d, n in zip((wy, wx), patch.shape, strict=True))
        there = tuple(slice(max(0, d), min(n, n + d)) for d, n in zip((wy, wx), patch.shape, strict=True))
        both = np.minimum(weight[here], weight[there])
        if both.sum() < _LEAST_SHARED * weight.sum() or (wy, wx) == (0, 0):
            return
        moved = patch[here]
        if max(abs(dy - wy), abs(dx - wx)) > 0.05:
            rest = (dy - wy, dx - wx)
            moved = ndimage.shift(moved, rest, order=1, mode="nearest")
        cross = moved * other[there].conj()
        turn = np.exp(-1j * np.angle((cross * both).sum()))
        self._disagreement += float((np.abs(np.angle(cross * turn)) * both).sum())
        self._shared += float(both.sum())
        self._pairs += 1

    def figures(self) -> RunFigures:
        """Work the figures out; some 10 ms."""
        shift, scale, width = None, None, None
        if self._sum is not None and self._expected is not None and self._sum.sum() > 0:
            shift, scale, width = register(self._sum / self._sum.sum(), self._expected)
        frames = max(self.frames, 1)
        return RunFigures(
            frames=self.frames,
            judged=len(self._trust),
            mean_trust=float(np.mean(self._trust)) if self._trust else None,
            error_p90_rad=float(np.median(self._error)) if self._error else None,
            photons=float(np.median(self._photons)) if self._photons else None,
            lost=self._lost / frames,
            out_of_range=self._outside / frames,
            saturated=self._clipped / frames,
            shift_px=shift,
            scale=scale,
            width=width,
            overlap_rad=self._disagreement / self._shared if self._pairs >= 4 else None,
            contrast_rad=float(np.sqrt(self._contrast / self._placed)) if self._placed else None,
        )
