"""How a frame as recorded becomes the frame a network takes, and what that does to the geometry."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bluesky_ptychonn.optics.geometry import Geometry


class PreprocessConfig(BaseModel):
    """Orientation, cut, size and bad pixels; `recon.inference.preprocess` carries it out in this order.

    Bad pixels are mended, the frame is transposed, flipped, cut to a window with the beam at pixel
    ``(N // 2, N // 2)``, binned or resized, and small counts are set to 0. The default leaves frames as they are.

    Parameters
    ----------
    bad_pixels : tuple of (row, column)
        Pixels of the recorded frame that are never believed.
    saturation : float, optional
        Counts from which a pixel is not believed. An integer type's largest value never is.
    hot_ratio : float, optional
        A pixel this many times brighter than the median of its neighbours is not believed. Off when not given: sharp
        diffraction peaks look the same.
    rejected_fraction : float
        A frame is rejected when more than this fraction of its pixels had to be mended.
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
        changed = {"frame_shape": (rows, columns), "pixel_pitch_m": pitch}
        return Geometry.model_validate({**geometry.model_dump(), **changed})
