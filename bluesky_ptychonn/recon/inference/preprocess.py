"""Recorded frames to the counts a network takes, on the device, and what is wrong with each frame.

Nothing here raises for what a detector can do to a frame: such a frame is flagged. Only frames of a shape that cannot
become the network's are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from bluesky_ptychonn.optics.framing import PreprocessConfig
from bluesky_ptychonn.recon.inference.negative_counts import coded_pixels, is_dark, is_lit, level_is_off

__all__ = ["Prepared", "Preprocess", "PreprocessConfig"]

NAN, MASKED, NEGATIVE, SATURATED, EMPTY = "nan", "masked", "negative", "saturated", "empty"
_UNFOLDED_PX = 2**20  # of frames whose neighbours are looked at together
_REACH = 2  # a bad pixel is mended from the 5 x 5 block around it: dead pixels come in pairs
_MARGIN = _REACH + 1  # whose pixels are judged by their own neighbours
#: Nobody counts so much in a pixel, nor so far below zero: such a value is a code for a pixel that measured nothing,
#: whatever type it came through.
_NO_COUNT = 2.0**31 - 2
_MENDED_AT_ONCE = 2**18  # pixels: each takes 25 numbers
_BY_CHANCE = 0.01  # pixels of a detector that may be taken for stuck where none is


@dataclass(frozen=True)
class Prepared:
    """Frames ready for a network.

    A frame's flag says what was found, comma separated: ``nan`` (not finite), ``masked`` (-1 and -2 that stand for "not
    measured"), ``negative``, ``saturated``, ``empty`` (no counts at all, or no more than read noise gives); an empty
    string for a frame as it should be. A flagged frame that is valid was mended, its negative counts are 0.
    """

    counts: Tensor  # (n, h, w) float32 on the device, 0 throughout where the frame is rejected
    valid: NDArray[np.bool_]  # (n,), False where the frame must not be used
    flag: list[str]


class Preprocess:
    """Carry out a `PreprocessConfig`, which describes the steps and their order, on a device.

    The mask (H, W) is True at pixels of the recorded frame that are never believed, beside the configuration's.

    Examples
    --------
    >>> frames = np.full((2, 8, 8), 5, np.uint16)
    >>> frames[1, 3, 3] = 65535
    >>> prepared = Preprocess()(frames)
    >>> float(prepared.counts[1, 3, 3]), prepared.flag
    (5.0, ['', 'saturated'])
    """

    def __init__(
        self,
        config: PreprocessConfig | None = None,
        *,
        mask: NDArray[np.bool_] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config or PreprocessConfig()
        self.device = torch.device(device)
        if mask is not None and np.asarray(mask).ndim != 2:
            raise ValueError(
                f"preprocess: mask has shape {np.shape(mask)}; rows and columns of a recorded frame are needed"
            )
        self._given_mask = None if mask is None else np.asarray(mask, dtype=bool)
        self._masks: dict[tuple[int, int], Tensor | None] = {}

    def __call__(self, frames: NDArray[Any] | Tensor) -> Prepared:
        """Prepare frames (n, H, W) of any real type; ValueError for complex ones, or a shape that cannot come out."""
        frames = frames if isinstance(frames, Tensor) else np.asarray(frames)
        if frames.ndim != 3:
            raise ValueError(f"frames: got shape {tuple(frames.shape)}; (frames, rows, columns) is needed")
        recorded = (int(frames.shape[1]), int(frames.shape[2]))
        self.config.output_shape(recorded)  # refuses, in words, what cannot come out
        # What lies outside the window is no part of the frame; a little of it mends pixels at the window's edge.
        window = self.config.window(recorded)
        seen = tuple(slice(max(0, s.start - _MARGIN), s.stop + _MARGIN) for s in window)
        inner = tuple(slice(w.start - s.start, w.stop - s.start) for w, s in zip(window, seen, strict=True))
        raw, limit = self._upload(frames[:, seen[0], seen[1]])
        mask = self._mask_for(recorded)
        counts, valid, flag = self._cleaned(raw, limit, None if mask is None else mask[seen], inner)
        counts = self._framed(counts, recorded)
        total = counts.sum(dim=(-2, -1)).cpu().numpy()
        for i in np.flatnonzero(valid & ~(total > 0)):
            valid[i] = False
            flag[i] = join_flags(flag[i], EMPTY)
        return Prepared(counts, valid, flag)

    def _upload(self, frames: NDArray[Any] | Tensor) -> tuple[Tensor, float]:
        """Frames (n, H, W) float32 on the device, and the counts from which a pixel is saturated."""
        if isinstance(frames, Tensor):
            tensor = frames
            kind = torch.iinfo(frames.dtype).max if not frames.dtype.is_floating_point else None
        else:
            array = np.asarray(frames)
            if array.dtype.kind not in "uif":
                raise ValueError(f"frames: got {array.dtype}; real counts (integer or floating) are needed")
            kind = int(np.iinfo(array.dtype).max) if array.dtype.kind in "ui" else None
            if array.dtype.itemsize > 8:
                array = array.astype(np.float64)
            # torch takes neither foreign byte order nor negative strides, and warns of memory it may not write.
            native = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
            tensor = torch.from_numpy(np.ascontiguousarray(native))
        # A count that may stand one below the type's end by chance would as often be cut off at the end.
        ends = None if kind is None else kind - 1
        limits = [float(limit) for limit in (_NO_COUNT, ends, self.config.saturation) if limit is not None]
        return tensor.to(self.device).to(torch.float32), min(limits)

    def _mask_for(self, recorded: tuple[int, int]) -> Tensor | None:
        """Return the static bad pixels (H, W) bool of a frame of this shape, or None when there are none."""
        if recorded not in self._masks:
            mask = np.zeros(recorded, dtype=bool)
            if self._given_mask is not None:
                if self._given_mask.shape != recorded:
                    raise ValueError(
                        f"preprocess: the mask is {self._given_mask.shape} px, the frames are {recorded} px; "
                        "give a mask of the recorded frame"
                    )
                mask |= self._given_mask
            for row, column in self.config.bad_pixels:
                mask[row, column] = True
            self._masks[recorded] = torch.from_numpy(mask).to(self.device) if mask.any() else None
        return self._masks[recorded]

    def _cleaned(
        self, raw: Tensor, limit: float, mask: Tensor | None, inner: tuple[slice, ...]
    ) -> tuple[Tensor, NDArray[np.bool_], list[str]]:
        """Mend bad pixels, and flag frames by their `inner` part, which comes out. Frames in order pass untouched."""
        n = raw.shape[0]
        valid, flag = np.ones(n, dtype=bool), [""] * n
        if n == 0:
            return raw[:, *inner], valid, flag
        if mask is not None:
            raw = _mended(raw, mask.expand_as(raw))
        if self.config.hot_ratio is not None:
            raw = _mended(raw, _hot(raw, self.config.hot_ratio))
        # One look at the extremes of each frame; only frames that stand out are searched. NaN does: it compares false.
        part = raw[:, *inner]
        low, high = part.amin(dim=(-2, -1)), part.amax(dim=(-2, -1))
        fine = (low >= 0) & (high < limit) & torch.isfinite(high)
        suspects = torch.nonzero(~fine).squeeze(1)
        if suspects.numel():
            part = part.clone()
            part[suspects], part_valid, part_flag = self._searched(raw[suspects], limit, inner)
            for k, i in enumerate(suspects.tolist()):
                valid[i], flag[i] = bool(part_valid[k]), part_flag[k]
        return part, valid, flag

    def _searched(self, raw: Tensor, limit: float, inner: tuple[slice, ...]) -> tuple[Tensor, list[bool], list[str]]:
        """Mend what each frame of `raw` has, and say what that is, of its `inner` part."""
        strange = ~torch.isfinite(raw) | (raw <= -_NO_COUNT)
        saturated = (raw >= limit) & ~strange
        masked = self._masked(torch.where(strange | saturated, float("nan"), raw))
        bad = strange | saturated | masked
        known = torch.where(bad, float("nan"), raw)[:, *inner]
        negative = known < -self.config.count_threshold
        off = negative.flatten(1).any(1) & level_is_off(known, self.config.rejected_fraction)
        many = bad[:, *inner].sum(dim=(-2, -1)) > self.config.rejected_fraction * known[0].numel()
        dark = is_dark(known)
        rejected = many | off | dark
        mended = _mended(raw, bad & ~rejected[:, None, None])[:, *inner]
        mended = torch.where(rejected[:, None, None], 0.0, mended.clamp_min(0))
        kinds = (strange[:, *inner], masked[:, *inner], negative, saturated[:, *inner])
        found = torch.stack([*(kind.flatten(1).any(1) for kind in kinds), dark & ~many & ~off], 1).tolist()
        names = (NAN, MASKED, NEGATIVE, SATURATED, EMPTY)
        flags = [join_flags(*(name for name, is_so in zip(names, row, strict=True) if is_so)) for row in found]
        return mended, (~rejected).tolist(), flags

    def _masked(self, frames: Tensor) -> Tensor:
        """Pixels (n, H, W) bool that hold a code for "not measured", as the light around them tells."""
        coded = coded_pixels(frames)
        coded[coded.clone()] = is_lit(_around(frames, coded, ~(frames >= 0)))
        return coded

    def _framed(self, counts: Tensor, recorded: tuple[int, int]) -> Tensor:
        """Orient, pad, bin or resize, and cut small counts: the window's part of the frame, (n, H, W) → (n, h, w)."""
        config = self.config
        if config.transpose:
            counts = counts.transpose(-2, -1)
        flips = [axis for axis, on in ((-2, config.flip_y), (-1, config.flip_x)) if on]
        if flips:
            counts = torch.flip(counts, flips)
        counts = _padded(counts, config.beam_pixel(recorded), config.window_shape(recorded))
        if config.bin > 1:
            counts = functional.avg_pool2d(counts.unsqueeze(1), config.bin).squeeze(1) * config.bin**2
        if config.resize is not None:
            counts = _resized(counts, config.resize)
        if config.count_threshold > 0:
            counts = torch.where(counts < config.count_threshold, 0.0, counts)
        return counts.clamp_min(0).contiguous()


def join_flags(*flags: str) -> str:
    """Put flags of a frame together, comma separated; empty ones are left out."""
    return ", ".join(flag for flag in flags if flag)


def _mended(frames: Tensor, bad: Tensor) -> Tensor:
    """Replace bad pixels, (n, H, W) bool, by the median of the good ones around them; by 0 where none is good."""
    if not bad.any():
        return frames
    frames = frames.clone()
    frames[bad] = _around(frames, bad, bad | ~torch.isfinite(frames)).nan_to_num(0.0)
    return frames


def _around(frames: Tensor, which: Tensor, bad: Tensor) -> Tensor:
    """Median of the good pixels in the block around each of `which` (n, H, W) bool, in order; NaN where none is."""
    known = torch.where(bad, float("nan"), frames)
    offsets = torch.arange(-_REACH, _REACH + 1, device=frames.device)
    dy, dx = (o.reshape(-1) for o in torch.meshgrid(offsets, offsets, indexing="ij"))
    medians = [frames.new_zeros(0)]
    for where in torch.split(torch.nonzero(which), _MENDED_AT_ONCE):  # (m, 3) each
        frame, row, column = (where[:, k, None] for k in range(3))
        rows, columns = row + dy, column + dx  # (m, 25)
        inside = (rows >= 0) & (rows < frames.shape[1]) & (columns >= 0) & (columns < frames.shape[2])
        values = known[frame, rows.clamp(0, frames.shape[1] - 1), columns.clamp(0, frames.shape[2] - 1)]
        medians.append(torch.where(inside, values, float("nan")).nanmedian(dim=1).values)
    return torch.cat(medians)


def _hot(frames: Tensor, ratio: float) -> Tensor:
    """Pixels (n, H, W) bool brighter than `ratio` times the median of their eight neighbours, and than 1 count."""
    hot = torch.empty_like(frames, dtype=torch.bool)
    each = max(1, _UNFOLDED_PX // max(1, frames.shape[1] * frames.shape[2]))  # what follows takes 25 times as much
    for some, found in zip(torch.split(frames, each), torch.split(hot, each), strict=True):
        around = functional.unfold(functional.pad(some.unsqueeze(1), (1, 1, 1, 1), mode="replicate"), 3)  # (n, 9, H*W)
        neighbours = torch.cat([around[:, :4], around[:, 5:]], 1)
        median = neighbours.nanmedian(dim=1).values.reshape(some.shape)
        found.copy_(some > ratio * median.clamp_min(1.0))
    return hot


def _padded(counts: Tensor, beam: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """Put 0 around what a frame has of its window, (n, h, w) with the beam at (h // 2, w // 2)."""
    pads: list[int] = []  # of the last axis first
    for size, centre, wanted in zip(counts.shape[1:], beam, shape, strict=True):
        before = max(0, wanted // 2 - centre)
        pads = [before, wanted - size - before, *pads]
    return functional.pad(counts, pads) if any(pads) else counts


def _resized(counts: Tensor, side: int) -> Tensor:
    """Interpolate to (n, side, side) as scikit-image's ``resize(anti_aliasing=True, preserve_range=True)`` does."""
    x = counts.unsqueeze(1)
    for axis in (2, 3):
        sigma = max(0.0, (x.shape[axis] / side - 1) / 2)
        radius = min(int(4 * sigma + 0.5), x.shape[axis] - 1)
        if radius == 0:
            continue
        t = torch.arange(-radius, radius + 1, device=x.device, dtype=torch.float64)
        kernel = torch.exp(-0.5 * (t / sigma) ** 2)
        kernel = (kernel / kernel.sum()).to(x.dtype)
        pad = (0, 0, radius, radius) if axis == 2 else (radius, radius, 0, 0)
        shape = (1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1)
        x = functional.conv2d(functional.pad(x, pad, mode="reflect"), kernel.reshape(shape))
    return functional.interpolate(x, size=(side, side), mode="bilinear", align_corners=False).squeeze(1)


def find_bad_pixels(frames: Sequence[NDArray[Any]] | NDArray[Any], *, hot_ratio: float = 20.0) -> NDArray[np.bool_]:
    """Find pixels that are dead, stuck or hot in every frame of a scan.

    A dead pixel never counts although the pixels around it do, so that chance cannot explain it; one that is stuck at
    another value than 0, such as a detector's code for "not measured", does not count either: counts vary. A hot one
    always stands above `hot_ratio` times its neighbours. All are judged on many frames of different places: in a single
    frame a dark fringe or a bright speckle looks the same.

    Parameters
    ----------
    frames : (n, H, W) real ndarray
        At least 8 frames, as recorded.
    hot_ratio : float
        See above; above 1.

    Returns
    -------
    (H, W) bool ndarray
        True at bad pixels; for `Preprocess` or `PreprocessConfig.bad_pixels`.
    """
    from scipy import ndimage

    stack = np.asarray(frames)
    if stack.ndim != 3 or len(stack) < 8:
        raise ValueError(
            f"find_bad_pixels: got shape {stack.shape}; at least 8 frames (frames, rows, columns) are needed"
        )
    if hot_ratio <= 1:
        raise ValueError(f"find_bad_pixels: hot_ratio {hot_ratio} must be above 1")
    first = np.nan_to_num(stack[0].astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    total, least, alike = np.zeros(first.shape), np.full(first.shape, np.inf), np.ones(first.shape, bool)
    for frame in stack:  # one by one: in double precision all of them take four times their own memory
        values = np.nan_to_num(frame.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        total += values
        np.minimum(least, values, out=least)
        alike &= values == first
    # Of n photon counts around v all are the same with a probability of (2 pi v)^(1/2 - n/2) at most.
    by_chance = (2 * np.pi * np.maximum(np.abs(first), 1.0)) ** ((1 - len(stack)) / 2)
    stuck = alike & ((first < 0) | ((first > 0) & (by_chance * first.size < _BY_CHANCE)))
    never = stuck | (~np.isfinite(stack)).all(axis=0)
    ring = np.ones((5, 5), dtype=bool)
    ring[2, 2] = False
    # The lower quartile rather than the median: next to the edge of the bright field a dark pixel is no dead one.
    around = ndimage.percentile_filter(np.where(never, 0.0, total), 25, footprint=ring, mode="nearest")
    dead = (total <= 0) & (around > 30)
    # Nearly the brightest around: a hot neighbour or two must not hide it.
    bright = ndimage.percentile_filter(np.where(never, 0.0, total), 90, footprint=ring, mode="nearest")
    hot = (least > hot_ratio) & (total > hot_ratio * np.maximum(bright, 1.0))
    return np.asarray(never | dead | hot)
