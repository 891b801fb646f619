"""How a frame as recorded becomes the frame a network takes, and what that does to the geometry."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bluesky_ptychonn.optics.geometry import Geometry


class PreprocessConfig(BaseModel):
    """Orientation, cut, size and bad pixels; `recon.inference.preprocess` carries it out in this order.

    Bad pixels are mended, the frame is transposed, flipped, cut to a window with the beam at pixel
    ``(N // 2, N // 2)``, binned or resized, and small counts are set to 0. Only pixels in the window count for or
    against a frame. The default leaves frames as they are.

    Parameters
    ----------
    bad_pixels : tuple of (row, column)
        Pixels of the recorded frame that are never believed.
    saturation : float, optional
        Counts from which a pixel is not believed. An integer type's two largest values never are, nor is anything from
        2³¹ - 2 on.
    hot_ratio : float, optional
        A pixel this many times brighter than the median of its neighbours is not believed. Off when not given: sharp
        diffraction peaks look the same.
    rejected_fraction : float
        A frame is rejected when more than this fraction of its window's pixels had to be mended, or when its level lies
        so far below zero that more than this fraction of its counts is missing.
    transpose : bool
        Swap rows and columns; the beam's pixel stays the beam's.
    flip_y, flip_x : bool
        Reverse the order of rows, columns, after that; the beam's pixel stays the beam's.
    centre : tuple of int, optional
        Row and column of the beam in the recorded frame; its middle pixel when not given.
    crop : int, optional
        Side in px of the window around the beam; counts beyond the frame are 0.
    bin : int
        Sum blocks of this many px a side.
    resize : int, optional
        Side in px to interpolate the window to, with a Gaussian against aliasing (what scikit-image's ``resize`` does);
        keeps the mean count instead of the sum. Excludes `bin`.
    count_threshold : float
        Counts below this become 0, after binning or resizing.

    Examples
    --------
    >>> published = PreprocessConfig(crop=192, resize=64, count_threshold=3)
    >>> published.output_shape((256, 256))
    (64, 64)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bad_pixels: tuple[tuple[int, int], ...] = ()
    saturation: float | None = Field(default=None, gt=0, description="counts")
    hot_ratio: float | None = Field(default=None, gt=1)
    rejected_fraction: float = Field(default=0.02, ge=0, le=1)
    transpose: bool = False
    flip_y: bool = False
    flip_x: bool = False
    centre: tuple[int, int] | None = Field(default=None, description="row, column of the recorded frame, px")
    crop: int | None = Field(default=None, ge=8, le=8192, multiple_of=2, description="px")
    bin: int = Field(default=1, ge=1, le=64)
    resize: int | None = Field(default=None, ge=8, le=4096, multiple_of=2, description="px")
    count_threshold: float = Field(default=0.0, ge=0, description="counts")

    @model_validator(mode="after")
    def _one_way_to_shrink(self) -> PreprocessConfig:
        if self.resize is not None and self.bin != 1:
            raise ValueError(f"bin={self.bin} and resize={self.resize} px: give one of them")
        if self.crop is not None and self.crop % self.bin:
            raise ValueError(f"crop={self.crop} px is not a multiple of bin={self.bin}")
        if any(row < 0 or column < 0 for row, column in self.bad_pixels):
            raise ValueError("bad_pixels: rows and columns count from 0")
        return self

    def window_shape(self, recorded: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the window cut from a recorded frame, before binning or resizing, px."""
        if self.crop is not None:
            return (self.crop, self.crop)
        return (recorded[1], recorded[0]) if self.transpose else recorded

    def window(self, recorded: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns of a recorded frame that the window takes of it."""
        size = (recorded[1], recorded[0]) if self.transpose else recorded
        beam, shape = self.beam_pixel(recorded), self.window_shape(recorded)
        found = []
        for n, centre, wanted, flipped in zip(size, beam, shape, (self.flip_y, self.flip_x), strict=True):
            start = centre - wanted // 2
            low, high = max(0, start), min(n, start + wanted)
            found.append(slice(n - high, n - low) if flipped else slice(low, high))
        return (found[1], found[0]) if self.transpose else (found[0], found[1])

    def output_shape(self, recorded: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns that a recorded frame comes out with, px.

        Raises
        ------
        ValueError
            When the window is not a multiple of the binning, or the centre or a bad pixel lies outside the frame.
        """
        rows, columns = self.window_shape(recorded)
        if rows % self.bin or columns % self.bin:
            raise ValueError(f"preprocess: a window of {rows} x {columns} px cannot be binned by {self.bin}; set crop")
        for what, pixels in (("centre", (self.centre,) if self.centre else ()), ("bad_pixels", self.bad_pixels)):
            for row, column in pixels:
                if not (0 <= row < recorded[0] and 0 <= column < recorded[1]):
                    raise ValueError(
                        f"preprocess: {what} ({row}, {column}) px lies outside the recorded frame of "
                        f"{recorded[0]} x {recorded[1]} px"
                    )
        if self.resize is not None:
            return (self.resize, self.resize)
        return (rows // self.bin, columns // self.bin)

    def beam_pixel(self, recorded: tuple[int, int]) -> tuple[int, int]:
        """Row and column of the beam after transposition and flips, before the cut, px."""
        row, column = self.centre or (recorded[0] // 2, recorded[1] // 2)
        if self.transpose:
            row, column = column, row
            recorded = (recorded[1], recorded[0])
        if self.flip_y:
            row = recorded[0] - 1 - row
        if self.flip_x:
            column = recorded[1] - 1 - column
        return row, column

    def geometry_after(self, geometry: Geometry) -> Geometry:
        """Geometry of the frames that come out, from that of the recorded frames.

        A cut coarsens the object pixel; binning keeps it.
        """
        rows, columns = self.output_shape(geometry.frame_shape)
        pitch = geometry.pixel_pitch_m * self.window_shape(geometry.frame_shape)[0] / rows
        try:
            return geometry.model_copy(update={"frame_shape": (rows, columns), "pixel_pitch_m": pitch})
        except ValidationError as error:
            wrong = "; ".join(item["msg"] for item in error.errors())
            raise ValueError(
                f"frames of {geometry.frame_shape} px after preprocess (crop, bin, resize): {wrong}"
            ) from None


#: What the authors of the two-head PtychoNN did to 256×256 frames; the counts went in as they then were.
PUBLISHED_PREPROCESSING = PreprocessConfig(crop=192, resize=64, count_threshold=3)


def framed(frames: NDArray[Any], config: PreprocessConfig) -> NDArray[Any]:
    """Orient, cut and bin frames in NumPy, as `PreprocessConfig` describes it; its other steps are not taken here.

    Parameters
    ----------
    frames : (n, H, W) ndarray
        As recorded.
    config : PreprocessConfig
        Of which `transpose`, `flip_y`, `flip_x`, `centre`, `crop` and `bin` are used.

    Returns
    -------
    (n, h, w) ndarray
        In the type they came in; float32 where `bin` sums pixels, NaN where one of them is NaN.
    """
    recorded = (int(frames.shape[1]), int(frames.shape[2]))
    (beam_y, beam_x), (rows, columns) = config.beam_pixel(recorded), config.window_shape(recorded)
    out = frames.swapaxes(1, 2) if config.transpose else frames
    out = out[:, :: -1 if config.flip_y else 1, :: -1 if config.flip_x else 1]
    window = np.zeros((len(out), rows, columns), out.dtype)
    top, left = beam_y - rows // 2, beam_x - columns // 2
    y0, x0 = max(0, top), max(0, left)
    inside = out[:, y0 : max(y0, top + rows), x0 : max(x0, left + columns)]
    window[:, y0 - top : y0 - top + inside.shape[1], x0 - left : x0 - left + inside.shape[2]] = inside
    if config.bin == 1:
        return window
    blocks = window.reshape(len(out), rows // config.bin, config.bin, columns // config.bin, config.bin)
    return np.asarray(blocks.sum(axis=(2, 4), dtype=np.float64).astype(np.float32))


def turned_probe(probe: NDArray[np.complexfloating], config: PreprocessConfig) -> NDArray[np.complexfloating]:
    """Probe (N, N) of frames as recorded to that of frames turned as the config says; the pixel N // 2 stays."""
    out = np.asarray(probe.T if config.transpose else probe)
    for axis, flipped in enumerate((config.flip_y, config.flip_x)):
        if flipped:
            out = np.roll(np.flip(out, axis), 1 - out.shape[axis] % 2, axis)
    return out
