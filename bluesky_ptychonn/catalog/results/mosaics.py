"""The four mosaics in the catalog, and their overview: whenever they are read, whole.

A stored array cannot move its origin, and one that spans chunks is not written in one step. So a picture is arrays on a
canvas of one chunk, with some room on the sides it grew towards; a picture that no longer fits gets new nodes, which
readers find only once they are filled, because the container's metadata names the nodes in use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.catalog.connection.http import TiledNode
from bluesky_ptychonn.catalog.results.frame_table import generation_of
from bluesky_ptychonn.catalog.results.overview import OVERVIEW, draw_overview

if TYPE_CHECKING:
    from bluesky_ptychonn.recon.mosaic.stitch import MosaicImage

PICTURES = ("amplitude", "phase", "coverage", "trust")
_NODES = (*PICTURES, OVERVIEW)
_ROOM = 0.5  # of the picture's size, on a side it grew towards
_ROOM_MIN_PX = 32


@dataclass(frozen=True)
class Canvas:
    """A rectangle of object pixels."""

    origin_m: tuple[float, float]  # object coordinate (y, x) of the centre of pixel [0, 0], m
    pixel_m: float
    shape: tuple[int, int]  # rows and columns

    @classmethod
    def from_metadata(cls, mosaic: Mapping[str, Any]) -> Canvas:
        """Make the canvas that `describe` described."""
        return cls(tuple(mosaic["origin_m"]), mosaic["pixel_m"], tuple(mosaic["shape"]))

    @classmethod
    def tight(cls, image: MosaicImage) -> Canvas:
        """Make the canvas without room."""
        rows, columns = image.amplitude.shape
        return cls(image.origin_m, image.pixel_m, (rows, columns))

    def corner(self, image: MosaicImage) -> tuple[int, int] | None:
        """Return the pixel that the picture's [0, 0] falls on; None where it does not fit, or between the pixels."""
        if image.pixel_m != self.pixel_m:
            return None
        exact = [(mine - own) / self.pixel_m for mine, own in zip(image.origin_m, self.origin_m, strict=True)]
        row, column = (round(value) for value in exact)
        aligned = max(abs(exact[0] - row), abs(exact[1] - column)) < 0.01  # px; rounding, not a shift
        bottom, right = row + image.amplitude.shape[0], column + image.amplitude.shape[1]
        inside = row >= 0 and column >= 0 and bottom <= self.shape[0] and right <= self.shape[1]
        return (row, column) if aligned and inside else None

    def grown(self, image: MosaicImage) -> Canvas:
        """Make the canvas for a picture that this one does not hold: with room where the picture went over."""
        low, high = [], []
        for axis in (0, 1):
            size = image.amplitude.shape[axis]
            room = max(_ROOM_MIN_PX, round(_ROOM * size))
            first = round((self.origin_m[axis] - image.origin_m[axis]) / self.pixel_m)  # own first, in picture pixels
            last = first + self.shape[axis]
            low.append(-room if first > 0 else 0)
            high.append(size + (room if last < size else 0))
        origin = (image.origin_m[0] + low[0] * image.pixel_m, image.origin_m[1] + low[1] * image.pixel_m)
        return Canvas(origin, image.pixel_m, (high[0] - low[0], high[1] - low[1]))

    def place(self, image: MosaicImage) -> dict[str, NDArray[np.float32]]:
        """Lay the picture on the canvas: arrays (H, W) by name, NaN around it, coverage 0; ValueError if too large."""
        corner = self.corner(image)
        if corner is None:
            raise ValueError(f"a picture {image.amplitude.shape} px at {image.origin_m} m is not within {self}")
        rows, columns = image.amplitude.shape
        window = np.s_[corner[0] : corner[0] + rows, corner[1] : corner[1] + columns]
        arrays = {}
        for name in PICTURES:
            arrays[name] = np.full(self.shape, 0.0 if name == "coverage" else np.nan, np.float32)
            arrays[name][window] = getattr(image, name)
        return arrays

    def cut(self, window: Any, read: Callable[[str], NDArray[np.float32]]) -> MosaicImage:
        """Take the picture out of a canvas's arrays, which `read` gives by their names."""
        from bluesky_ptychonn.recon.mosaic.stitch import MosaicImage

        (top, bottom), (left, right) = window
        arrays = {name: read(name)[top:bottom, left:right] for name in PICTURES}
        origin = (self.origin_m[0] + top * self.pixel_m, self.origin_m[1] + left * self.pixel_m)
        return MosaicImage(**arrays, origin_m=origin, pixel_m=self.pixel_m)

    def describe(self, image: MosaicImage) -> dict[str, Any]:
        """Describe canvas and picture for the container's metadata."""
        corner = self.corner(image) or (0, 0)
        rows, columns = image.amplitude.shape
        return {
            "origin_m": list(self.origin_m),
            "pixel_m": self.pixel_m,
            "shape": list(self.shape),
            "window": [[corner[0], corner[0] + rows], [corner[1], corner[1] + columns]],
        }


class Mosaics:
    """Writes mosaics on canvases, and says in the reconstruction's metadata where they are.

    Attributes
    ----------
    nodes : dict of str to str
        Node in use for each picture, and for their overview.
    image : MosaicImage or None
        What was drawn last.
    """

    def __init__(self, container: TiledNode) -> None:
        self._container = container
        self.nodes: dict[str, str] = {}
        self.image: MosaicImage | None = None
        self._canvas: Canvas | None = None
        self._window: Any = None
        self._generation = 0
        self._snapshot = 0

    def resume(self, metadata: Mapping[str, Any]) -> None:
        """Go on where an earlier process stopped."""
        mosaic = metadata.get("mosaic")
        if mosaic:
            self._canvas = Canvas.from_metadata(mosaic)
            self._window = mosaic["window"]
            self._snapshot = mosaic["snapshot"]
            self.nodes = {name: metadata["nodes"][name] for name in _NODES if name in metadata["nodes"]}
            self._generation = generation_of(self.nodes["amplitude"])

    def draw(self, image: MosaicImage, more: Mapping[str, Any]) -> None:
        """Show this snapshot from now on, with `more` metadata: six requests, sixteen where it outgrew its canvas."""
        if self._canvas is None:
            self._write(image, Canvas.tight(image), more, plain=True)
        elif self._canvas.corner(image) is None or OVERVIEW not in self.nodes:  # begun by 0.2, which drew none
            # Once outgrown, the plain names stay free for the last picture.
            self._write(image, self._canvas.grown(image), more, plain=False)
        else:
            self._write(image, self._canvas, more, plain=None)

    def finish(self) -> None:
        """Cut the pictures to size, under the names of the schema."""
        if self.image is None and self._canvas is not None and self.nodes["amplitude"] != "amplitude":
            shape = self._canvas.shape
            self.image = self._canvas.cut(
                self._window, lambda name: self._container.read_array(self.nodes[name], shape)
            )
        if self.image is None:
            return
        tight = Canvas.tight(self.image)
        if self.nodes["amplitude"] == "amplitude" and self._canvas != tight:
            self._write(self.image, tight, {}, plain=False)  # readers look there while the plain names are made anew
        if self.nodes["amplitude"] != "amplitude":
            self._write(self.image, tight, {}, plain=True)

    def _write(self, image: MosaicImage, canvas: Canvas, more: Mapping[str, Any], *, plain: bool | None) -> None:
        """Write on new nodes, plain or numbered, or on those in use (None)."""
        arrays: dict[str, NDArray[Any]] = canvas.place(image)
        arrays[OVERVIEW] = draw_overview({name: arrays[name] for name in ("amplitude", "phase", "trust", "coverage")})
        old, nodes = self.nodes, self.nodes
        if plain is not None:
            self._generation += 1
            nodes = {name: name if plain else f"{name}_{self._generation}" for name in _NODES}
            for name, node in nodes.items():
                shape, dtype = arrays[name].shape, arrays[name].dtype.type
                self._container.create_array(node, shape, shape, ("y", "x"), dtype, replace=True)
        for name, node in nodes.items():
            self._container.put_array(node, arrays[name])
        self._snapshot += 1
        mosaic = canvas.describe(image) | {"snapshot": self._snapshot}
        metadata = {"nodes": nodes, "mosaic": mosaic, "pixel_m": mosaic["pixel_m"], "origin_m": mosaic["origin_m"]}
        self._container.update({**more, **metadata})
        self._canvas, self._window, self.image, self.nodes = canvas, mosaic["window"], image, nodes
        for node in set(old.values()) - set(nodes.values()):
            self._container.delete(node)
