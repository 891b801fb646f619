"""The field a plan announced, so that a live picture has its final size from the first frame on.

A stored picture that is outgrown costs the catalog sixteen requests to move; one that fits costs six.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bluesky_ptychonn.catalog.results.mosaics import PICTURES
from bluesky_ptychonn.recon.mosaic.stitch import MosaicImage

_LARGEST_PX = 4096  # on a side: beyond that an empty picture costs more than moving a small one


@dataclass(frozen=True)
class FieldOfView:
    """A rectangle of object coordinates, patches included: lowest and highest `y_m` and `x_m`, m."""

    y_m: tuple[float, float]
    x_m: tuple[float, float]

    @classmethod
    def announced(cls, start: Mapping[str, Any], patch_m: tuple[float, float]) -> FieldOfView | None:
        """Field of the start document's ``md["ptychography"]["extent_m"]``; None without one.

        With room for readbacks half a step off, and for patches of `patch_m`, height and width, m.
        """
        given = start.get("ptychography")
        try:
            extent = given["extent_m"]  # type: ignore[index]
            room = float(given.get("step_m") or 0.0) / 2  # type: ignore[union-attr]
            sides = [
                (float(low) - room - size / 2, float(high) + room + size / 2)
                for (low, high), size in zip((extent["y"], extent["x"]), patch_m, strict=True)
            ]
        except (KeyError, TypeError, ValueError):
            return None
        if not all(math.isfinite(value) for side in sides for value in side) or any(a >= b for a, b in sides):
            return None
        return cls(sides[0], sides[1])

    def fill(self, image: MosaicImage) -> MosaicImage:
        """Put a picture on this field: NaN around it, coverage 0; a picture that reaches out keeps all of itself."""
        pads = []
        for (low_m, high_m), first_m, size in zip(
            (self.y_m, self.x_m), image.origin_m, image.amplitude.shape, strict=True
        ):
            # Not `round`, which takes halves to even: the field must not move when the picture grows by a pixel.
            before = max(0, math.floor((first_m - low_m) / image.pixel_m + 0.5))
            after = max(0, math.floor((high_m - first_m) / image.pixel_m + 0.5) - size + 1)
            if before + size + after > _LARGEST_PX:
                return image
            pads.append((before, after))
        empty = {name: 0.0 if name == "coverage" else np.nan for name in PICTURES}
        arrays = {name: np.pad(getattr(image, name), pads, constant_values=value) for name, value in empty.items()}
        y_m, x_m = (first - before * image.pixel_m for first, (before, _) in zip(image.origin_m, pads, strict=True))
        return MosaicImage(**arrays, origin_m=(y_m, x_m), pixel_m=image.pixel_m)
