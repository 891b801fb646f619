"""Frames of a measured run as a network takes them, and the object that somebody reconstructed from them."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import ndimage

from bluesky_ptychonn.files import replacing
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.optics.numpy_files import read_npz
from bluesky_ptychonn.optics.simulate import illuminated_diameter_px

Float = NDArray[np.float32]
Complex = NDArray[np.complex64]

#: A label whose pixel differs from the frames' by more than this part is of another geometry.
_PIXEL_TOLERANCE = 0.01
#: A cubic spline reaches this far; what it draws from pixels nobody knows is not trusted.
_REACH_PX = 2
#: A spline's coefficients forget an edge as 0.27 a pixel: 8 px leave 3e-5.
_MARGIN_PX = 8
_TEXT = ("geometry", "source", "solver")
_COMPLEX = ("probe", "object")


@dataclass(frozen=True, eq=False)
class MeasuredScan:
    """Frames of one run, ready for a network, where they were taken and through which probe.

    Parameters
    ----------
    counts : (n, N, N) float32 ndarray
        After the preprocessing, beam at pixel ``(N // 2, N // 2)``.
    y_m, x_m : (n,) float64 ndarray
        Object coordinates that the beam's centre hit, m.
    probe : (N, N) complex64 ndarray
        Square-root photons, centred at ``(N // 2, N // 2)``.
    geometry : Geometry
        Of these frames.
    source : str
        Where they are from: a run's uid, a file.

    Raises
    ------
    ValueError
        When shapes disagree or a value is not finite.
    """

    counts: Float
    y_m: NDArray[np.float64]
    x_m: NDArray[np.float64]
    probe: Complex
    geometry: Geometry
    source: str

    def __post_init__(self) -> None:
        kinds = {"counts": np.float32, "y_m": np.float64, "x_m": np.float64, "probe": np.complex64}
        for name, kind in kinds.items():  # once and for all
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=kind))
        n, shape = (len(self.counts) if self.counts.ndim else 0), self.geometry.frame_shape
        wanted = {"counts": (n, *shape), "y_m": (n,), "x_m": (n,), "probe": shape}
        for name, allowed in wanted.items():
            got = getattr(self, name)
            if got.shape != allowed:
                raise ValueError(f"{self._who}: {name} is {got.shape}; {n} frames of {shape} px need {allowed}")
            if not np.isfinite(got).all():
                raise ValueError(f"{self._who}: {name} holds NaN or infinite values; leave such frames out")
        if not np.abs(self.probe).any():
            raise ValueError(f"{self._who}: the probe is dark everywhere")

    @property
    def _who(self) -> str:
        return f"{type(self).__name__} of {self.source}"

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def probe_diameter_m(self) -> float:
        """Illuminated diameter (90 % of the intensity), m."""
        return self.geometry.to_m(illuminated_diameter_px(self.probe))

    def select(self, indices: NDArray[Any] | slice) -> Self:
        """Take some of the frames, by index, mask or slice; what was reconstructed stays whole."""
        return replace(self, counts=self.counts[indices], y_m=self.y_m[indices], x_m=self.x_m[indices])

    def halves(self, axis: int = 0, gap_m: float | None = None) -> tuple[Self, Self]:
        """Split the frames by area, so that what one half saw the other did not.

        Parameters
        ----------
        axis : int
            0 splits along y, 1 along x, at the median position.
        gap_m : float, optional
            Frames of the first half nearer than this to the border are left out of it, m; the probe's illuminated
            diameter when not given.

        Returns
        -------
        first, second : same class
            To learn from and to judge on; `second` keeps every frame of its side.

        Raises
        ------
        ValueError
            When a half would be empty.
        """
        if axis not in (0, 1):
            raise ValueError(f"{self._who}: axis {axis} is unknown; 0 splits along y, 1 along x")
        gap = self.probe_diameter_m if gap_m is None else gap_m
        along = (self.y_m, self.x_m)[axis]
        border = float(np.median(along)) if len(self) else 0.0
        first, second = along < border - gap, along >= border
        if not first.any() or not second.any():
            raise ValueError(
                f"{self._who}: {len(self)} frames over {1e6 * float(np.ptp(along)) if len(self) else 0:.3g} µm cannot "
                f"be halved along {'yx'[axis]} with a gap of {1e6 * gap:.3g} µm; take the other axis or a larger scan"
            )
        return self.select(first), self.select(second)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a ``.npz``; it appears whole or not at all.

        Raises
        ------
        ValueError
            For another suffix.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"{self._who}: {path.name!r} must end in .npz")
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["geometry"] = self.geometry.model_dump_json()
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in values.items()}
        with replacing(path) as draft:
            np.savez_compressed(draft, **arrays)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            In words: no such file, not one of ours, cut short, no label in it.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"{path.name}: cannot be read as a {cls.__name__} (no such file)")
        values: dict[str, Any] = dict(read_npz(path, [field.name for field in fields(cls)], cls.__name__))
        for name, value in values.items():
            kinds = "U" if name in _TEXT else "biufc" if name in _COMPLEX else "biuf"
            if value.dtype.kind not in kinds:
                wanted = "words" if name in _TEXT else "numbers" if name in _COMPLEX else "real numbers"
                raise ValueError(f"{path.name}: {name} is {value.dtype}; {wanted} needed")
        try:
            values["geometry"] = Geometry.model_validate_json(str(values["geometry"]))
        except ValidationError as error:
            raise ValueError(f"{path.name}: its geometry is not usable: {error.errors()[0]['msg']}") from None
        return cls(**{name: _as_python(value) for name, value in values.items()})


@dataclass(frozen=True, eq=False)
class LabelledScan(MeasuredScan):
    """A measured scan with the object that an iterative solver, or somebody else, found for it.

    Parameters
    ----------
    object : (H, W) complex64 ndarray
        Complex transmission; NaN where unknown.
    origin_m : tuple of float
        Object coordinate (y, x) of the centre of pixel [0, 0], m.
    pixel_m : float
        Object pixel, m; that of the geometry.
    light : (H, W) float32 ndarray
        Probe intensity that fell on each pixel, summed over the frames, over the probe's peak.
    solver : str
        What made the object.

    Examples
    --------
    >>> from bluesky_ptychonn.optics.simulate import SimulatedExperiment
    >>> e = SimulatedExperiment.demo()
    >>> corner = tuple(-(side // 2) * e.pixel_m for side in e.sample.shape)
    >>> frames = e.frame_at(0, 0, np.random.default_rng(0))[None]
    >>> light = np.ones(e.sample.shape, np.float32)
    >>> scan = LabelledScan(
    ...     frames, np.zeros(1), np.zeros(1), e.probe, e.geometry, "demo", e.sample, corner, e.pixel_m, light, "truth"
    ... )
    >>> scan.truth(np.array([0]), 32).shape
    (1, 32, 32)
    """

    object: Complex
    origin_m: tuple[float, float]
    pixel_m: float
    light: Float
    solver: str

    def __post_init__(self) -> None:
        super().__post_init__()
        _set_dtype(self, "object", np.complex64)
        _set_dtype(self, "light", np.float32)
        origin = tuple(float(value) for value in np.ravel(self.origin_m))
        if len(origin) != 2 or not np.isfinite(origin).all():
            raise ValueError(f"{self._who}: origin {self.origin_m} m must be two finite numbers, y and x")
        object.__setattr__(self, "origin_m", origin)
        if self.object.ndim != 2 or self.light.shape != self.object.shape:
            raise ValueError(
                f"{self._who}: object {self.object.shape} and light {self.light.shape} px must be one (H, W)"
            )
        if not np.isfinite(self.light).all() or (self.light < 0).any():
            raise ValueError(f"{self._who}: light must be finite and not negative")
        if not np.isfinite(self.object).any():
            raise ValueError(f"{self._who}: no pixel of the object is known")
        if np.shape(self.pixel_m) != ():
            raise ValueError(f"{self._who}: pixel_m is {np.shape(self.pixel_m)}; one number of metres is needed")
        pixel = self.geometry.object_pixel_m
        if not abs(self.pixel_m / pixel - 1) <= _PIXEL_TOLERANCE:
            raise ValueError(
                f"{self._who}: the object's pixel is {1e9 * self.pixel_m:.4g} nm, the frames' geometry gives "
                f"{1e9 * pixel:.4g} nm; allowed is {_PIXEL_TOLERANCE:.0%} between them"
            )

    def truth(self, indices: NDArray[Any] | slice, size: int) -> Complex:
        """Cut what frames should come out as.

        Parameters
        ----------
        indices : (b,) int ndarray, mask or slice
            Of the frames.
        size : int
            Side of a patch, px.

        Returns
        -------
        (b, size, size) complex64 ndarray
            Pixel ``[size // 2, size // 2]`` lies at the frame's position, between the label's pixels by a cubic spline
            as in `SimulatedExperiment.truth_on`; 1 where nobody knows the object.
        """
        return np.asarray(self._cut(self._filled, indices, size, 3, 1.0), dtype=np.complex64)

    def truth_on(self, origin_m: tuple[float, float], shape: tuple[int, int], least_light: float = 0.0) -> Complex:
        """Interpolate the object on a grid of its pixels whose pixel [0, 0] is centred at `origin_m` (y, x), m.

        Returns
        -------
        (H, W) complex64 ndarray
            NaN where nobody knows it, or less light fell than `least_light`.
        """
        rows, columns = (
            (there - here) / self.pixel_m + np.arange(size)
            for there, here, size in zip(origin_m, self.origin_m, shape, strict=True)
        )
        grid = np.meshgrid(rows, columns, indexing="ij")
        values = ndimage.map_coordinates(self._filled, grid, order=3, mode="nearest")
        sure = np.isfinite(self.object) & (self.light >= least_light)
        known = ndimage.map_coordinates(sure.astype(np.float32), grid, order=1, mode="constant", cval=0.0)
        return np.where(known > 1 - 1e-3, values, np.complex64(np.nan)).astype(np.complex64)

    def known(self, indices: NDArray[Any] | slice, size: int) -> Float:
        """Tell how far `truth` can be trusted.

        Returns
        -------
        (b, size, size) float32 ndarray
            0 where the object is unknown or next to it, 1 where as much light fell as in the probe's peak, in
            proportion between.
        """
        return np.asarray(np.clip(self._cut(self._trusted, indices, size, 1, 0.0), 0, 1), dtype=np.float32)

    @cached_property
    def _filled(self) -> Complex:
        return np.where(np.isfinite(self.object), self.object, np.complex64(1))

    @cached_property
    def _trusted(self) -> Float:
        sure = ndimage.binary_erosion(np.isfinite(self.object), np.ones((3, 3)), iterations=_REACH_PX)
        return np.where(sure, np.clip(self.light, 0, 1), np.float32(0)).astype(np.float32)

    def _cut(
        self, image: NDArray[Any], indices: NDArray[Any] | slice, size: int, order: int, beyond: float
    ) -> NDArray[Any]:
        """Patches (b, size, size) of an image on the label's grid, interpolated; `beyond` outside of it."""
        if size < 1:
            raise ValueError(f"{self._who}: a patch of {size} px; 1 px or more is needed")
        rows = (self.y_m[indices] - self.origin_m[0]) / self.pixel_m - size // 2
        columns = (self.x_m[indices] - self.origin_m[1]) / self.pixel_m - size // 2
        out = np.full((len(rows), size, size), beyond, dtype=image.dtype)
        for patch, row, column in zip(out, rows, columns, strict=True):
            top, left = int(np.floor(row)) - _MARGIN_PX, int(np.floor(column)) - _MARGIN_PX
            window = _window(image, top, left, size + 2 * _MARGIN_PX + 1, beyond)
            at = (row - top + np.arange(size))[:, None], (column - left + np.arange(size))[None, :]
            grid = np.stack(np.broadcast_arrays(*at))
            patch[:] = ndimage.map_coordinates(window, grid, order=order, mode="nearest")
        return out


def light_on(
    shape: tuple[int, int], rows: NDArray[np.floating], columns: NDArray[np.floating], probe: NDArray[Any]
) -> Float:
    """Sum the probe's intensity over the frames, over its peak.

    Parameters
    ----------
    shape : tuple of int
        Of the object, px.
    rows, columns : (n,) float ndarray
        Object pixel under probe pixel ``(N // 2, N // 2)``, to the nearest pixel.
    probe : (N, N) complex ndarray

    Returns
    -------
    (H, W) float32 ndarray
    """
    at = np.rint(np.stack([rows, columns], axis=1)).astype(int)
    beam = (np.abs(probe) ** 2).astype(np.float32)
    n = len(beam)
    out = np.zeros((shape[0] + 2 * n, shape[1] + 2 * n), dtype=np.float32)  # room for what falls beyond the rim
    for row, column in at[((at >= 0) & (at < shape)).all(axis=1)] + n - n // 2:
        out[row : row + n, column : column + n] += beam
    return np.asarray(out[n:-n, n:-n] / beam.max(), dtype=np.float32)


def _window(image: NDArray[Any], top: int, left: int, side: int, beyond: float) -> NDArray[Any]:
    """Cut a (side, side) square whose corner is pixel (top, left); `beyond` outside of the image."""
    out = np.full((side, side), beyond, dtype=image.dtype)
    y0, x0 = max(0, top), max(0, left)
    y1, x1 = min(image.shape[0], top + side), min(image.shape[1], left + side)
    if y1 > y0 and x1 > x0:
        out[y0 - top : y1 - top, x0 - left : x1 - left] = image[y0:y1, x0:x1]
    return out


def _set_dtype(scan: MeasuredScan, name: str, kind: type) -> None:
    """Give a field its dtype once and for all."""
    object.__setattr__(scan, name, np.asarray(getattr(scan, name), dtype=kind))


def _as_python(value: Any) -> Any:
    """Words and numbers as Python has them; arrays and the geometry as they are."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        return value.item()
    return value
