"""The four mosaics in the catalog: whenever they are read, whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bluesky_ptychonn.catalog.connection.http import TiledNode
from bluesky_ptychonn.catalog.results.canvas import PICTURES, Canvas
from bluesky_ptychonn.catalog.results.frame_table import generation_of

if TYPE_CHECKING:
    from bluesky_ptychonn.recon.mosaic.stitch import MosaicImage


class Mosaics:
    """Writes mosaics on canvases, and says in the container's metadata where they are.

    Parameters
    ----------
    container : TiledNode
        Of the reconstruction.

    Attributes
    ----------
    nodes : dict of str to str
        Node in use for each picture.
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
            self.nodes = {name: metadata["nodes"][name] for name in PICTURES}
            self._generation = generation_of(self.nodes["amplitude"])

    def draw(self, image: MosaicImage, more: Mapping[str, Any]) -> None:
        """Show this snapshot from now on: five requests, thirteen where it outgrew its canvas.

        Parameters
        ----------
        image : MosaicImage
            The whole mosaic.
        more : mapping
            Metadata to write with it.
        """
        if self._canvas is None:
            self._write(image, Canvas.tight(image), more, plain=True)
        elif self._canvas.corner(image) is None:
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
        arrays = canvas.place(image)
        old, nodes = self.nodes, self.nodes
        if plain is not None:
            self._generation += 1
            nodes = {name: name if plain else f"{name}_{self._generation}" for name in PICTURES}
            for node in nodes.values():
                self._container.create_array(node, canvas.shape, canvas.shape, ("y", "x"), replace=True)
        for name, node in nodes.items():
            self._container.put_array(node, arrays[name])
        self._snapshot += 1
        mosaic = canvas.describe(image) | {"snapshot": self._snapshot}
        metadata = {"nodes": nodes, "mosaic": mosaic, "pixel_m": mosaic["pixel_m"], "origin_m": mosaic["origin_m"]}
        self._container.update({**more, **metadata})
        self._canvas, self._window, self.image, self.nodes = canvas, mosaic["window"], image, nodes
        for node in set(old.values()) - set(nodes.values()):
            self._container.delete(node)
