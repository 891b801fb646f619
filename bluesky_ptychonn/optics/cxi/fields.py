"""The fields of a CXI detector, each as it is used; one that cannot be used is refused in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.optics.cxi.frames import marked_bad
from bluesky_ptychonn.optics.geometry import to_metres
from bluesky_ptychonn.optics.hdf5 import find_first, find_inside, numeric_dataset, read_numeric

JOULE_PER_EV = 1.602176634e-19
_ENERGY_UNITS = {"j": 1.0, "joule": 1.0, "ev": JOULE_PER_EV, "kev": 1e3 * JOULE_PER_EV}
_WHITE_SPREAD = 4.0  # of an even illumination: gains of pixels differ by some tens of percent, a direct beam by decades


def in_si(value: Any, dataset: Any, who: str, *, energy: bool = False) -> Any:
    """Convert a dataset's value to m, or to J where it is an `energy`, by its attribute ``units``; CXI's own without.

    ValueError, in words, for a unit of something else.
    """
    unit = dataset.attrs.get("units", "J" if energy else "m")
    unit = np.asarray(unit).ravel()[0] if np.size(unit) else ""
    unit = unit.decode("utf-8", "replace") if isinstance(unit, bytes) else str(unit)
    if not energy:
        return to_metres(value, unit, f"{who} (attribute units)")
    factor = _ENERGY_UNITS.get(unit.strip().casefold())
    if factor is None:
        raise ValueError(f"{who}: unit {unit!r} is not an energy; allowed: J, eV, keV")
    return value * factor


@dataclass
class DetectorFields:
    """Statements of one detector, or of the processed image frames were taken from."""

    group: Any
    place: str
    shape: tuple[int, int]
    count: int
    name: str

    def _array(self, what: str) -> NDArray[Any] | None:
        place = f"{self.place}/{what}"
        if find_inside(self.group, place, self.name) is None:
            return None
        found = read_numeric(self.group, place, self.name)
        if found.dtype.kind == "c" or not found.size:
            raise self.refused(what, f"{found.dtype} of shape {found.shape}; real numbers are needed there")
        return found

    def refused(self, what: str, why: str) -> ValueError:
        """Make the error that says why a field cannot be used."""
        return ValueError(f"{self.name}: {self.group.name}/{self.place}/{what}: {why}")

    def _lengths(self, what: str) -> NDArray[np.float64] | None:
        found = self._array(what)
        if found is None:
            return None
        dataset = numeric_dataset(self.group, f"{self.place}/{what}", self.name)
        metres: NDArray[np.float64] = in_si(found.astype(np.float64), dataset, f"{self.name}: {dataset.name}")
        return metres

    def _one_for_all(self, what: str, shapes: tuple[tuple[int, ...], ...]) -> NDArray[np.float64] | None:
        """Lengths of one of the shapes, also where they stand there once for each frame; ValueError if those differ."""
        found = self._lengths(what)
        if found is None:
            return None
        if found.shape not in shapes:
            if found.shape[1:] not in shapes:
                raise self.refused(what, f"shape {found.shape}; allowed: {' or '.join(map(str, shapes))}")
            if not np.allclose(found, found[0], rtol=1e-6, atol=1e-12):
                raise self.refused(what, "differs from frame to frame: the detector moved, which is not followed")
            found = found[0]
        if not np.isfinite(found).all():
            raise self.refused(what, "holds values that are not finite")
        return found

    def orientation(self) -> tuple[dict[str, bool], NDArray[np.float64] | None]:
        """Transposition and flips that bring frames to rows along -y, columns along -x; vectors (rows, columns) in m.

        A turn that moves no pixel of the frame by half a pixel is none; any other is refused.
        """
        vectors = self._one_for_all("basis_vectors", ((2, 3), (3, 2)))
        if vectors is None:
            return {}, None
        vectors = vectors if vectors.shape == (2, 3) else vectors.T
        length = np.linalg.norm(vectors, axis=1)
        if not (length > 0).all():
            raise self.refused("basis_vectors", "a vector has no length")
        along = np.abs(vectors).argmax(axis=1)
        askew = max(float(np.delete(np.abs(v), a).max()) / n for v, a, n in zip(vectors, along, length, strict=True))
        if sorted(along.tolist()) != [0, 1] or askew * max(self.shape) / 2 > 0.5:
            raise self.refused(
                "basis_vectors",
                f"{vectors.tolist()} m: rows and columns must run along x and y. A turned or tilted detector is not "
                "modelled: write frames as a detector square to the beam sees them",
            )
        transpose = bool(along[0] == 0)
        rows, columns = (1, 0) if transpose else (0, 1)
        flips = {"flip_y": bool(vectors[rows, 1] > 0), "flip_x": bool(vectors[columns, 0] > 0)}
        return {"transpose": transpose, **flips}, vectors

    def corner(self, vectors: NDArray[np.float64] | None) -> tuple[tuple[int, int] | None, float | None]:
        """Row and column of the beam in the recorded frame, and distance in m, from the corner of the first pixel."""
        corner = self._one_for_all("corner_position", ((3,), (1, 3)))
        if corner is None:
            return None, None
        corner = corner.ravel()
        distance = abs(float(corner[2])) or None
        if vectors is None:
            pitch_y, pitch_x = (self._lengths(f"{axis}_pixel_size") for axis in "yx")
            pitch = pitch_x if pitch_x is not None else pitch_y
            if pitch is None or not pitch.ravel()[0] > 0:
                return None, distance
            vectors = -pitch.ravel()[0] * np.array([[0.0, 1, 0], [1, 0, 0]])
        steps = -corner[:2] @ np.linalg.inv(vectors[:, :2])
        # Some give the middle of the first pixel: both ways the beam is in the pixel it falls into.
        row, column = (math.floor(step + 0.25) for step in steps)
        return (row, column), distance

    def bad_pixels(self) -> tuple[NDArray[np.bool_] | None, str | None]:
        """Pixels (H, W) bad in every frame, and the dataset with a mask for each, where the file has such."""
        # Some keep it beside the frames instead, as Condor and psocake do.
        place = find_first(self.group, (f"{self.place}/mask", "data_1/mask"), self.name)
        if place is None:
            return None, None
        dataset = numeric_dataset(self.group, place, self.name)
        if dataset.dtype.kind not in "biu" or dataset.shape not in (
            self.shape,
            (1, *self.shape),
            (self.count, *self.shape),
        ):
            raise ValueError(
                f"{self.name}: {dataset.name}: {dataset.dtype} of shape {dataset.shape}; needed are integers, "
                f"{self.shape} or, a mask a frame, {(self.count, *self.shape)}"
            )
        if dataset.ndim == 3 and len(dataset) > 1:
            return None, dataset.name
        return marked_bad(np.asarray(dataset[()]).reshape(self.shape)), None

    def mean_image(self, what: str) -> NDArray[np.float32] | None:
        """Image (H, W), or the mean of several."""
        found = self._array(what)
        if found is None:
            return None
        if found.shape[-2:] != self.shape:
            raise self.refused(what, f"shape {found.shape}; needed is {self.shape}, or several of them")
        images = found.reshape(-1, *self.shape).astype(np.float64)
        known = np.isfinite(images)
        total = np.where(known, images, 0).sum(axis=0)
        return np.asarray(np.where(known.any(axis=0), total / known.sum(axis=0).clip(1), np.nan), np.float32)

    def dark(self) -> NDArray[np.float32] | None:
        """Image (H, W) of the counts without light; PyNX calls it ``dark``."""
        named = self.mean_image("data_dark")
        return self.mean_image("dark") if named is None else named

    def gain(self, dark: NDArray[np.float32] | None, energy_j: float | None) -> NDArray[np.float32] | float | None:
        """Find the counts a photon: relative ones by the white field, absolute by ``counts_per_joule``; None is 1."""
        gain: Any = None
        white = self.mean_image("data_white")
        if white is not None:
            white = white if dark is None else white - dark
            white = np.where(white > 0, white, np.nan)
            low, high = np.nanpercentile(white, [1, 99]) if np.isfinite(white).any() else (1.0, np.inf)
            if high > _WHITE_SPREAD * low:
                raise self.refused(
                    "data_white",
                    f"spreads from {low:g} to {high:g} counts (1st and 99th percentile): no even illumination of the "
                    "detector, so frames cannot be divided by it. Take it out of the file, or correct the frames",
                )
            gain = white / np.float32(np.nanmedian(white))
        rate = self._array("counts_per_joule")
        if rate is not None:
            if rate.size != 1 or not (energy_j and rate.item() > 0 and math.isfinite(rate.item())):
                raise self.refused("counts_per_joule", f"{rate.tolist()}; needed is one number above 0, and an energy")
            counts = float(rate.item() * energy_j)
            if abs(counts - 1) > 1e-3:
                gain = counts if gain is None else gain * np.float32(counts)
        return None if gain is None else gain
