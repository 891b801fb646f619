"""A seeded far-field ptychography experiment: probe, sample, positions and photon noise, in NumPy alone.

Frames follow ``counts ~ Poisson(|F(P * o)|**2)`` with an orthonormal discrete Fourier transform, so a probe whose
squared modulus sums to the photons per frame gives frames in photons. The beam sits at pixel ``(N // 2, N // 2)``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from bluesky_ptychonn.optics.geometry import Geometry

Complex = NDArray[np.complex64]
SampleKind = Literal["etched", "cells", "star", "texture", "mixed"]


def zone_plate_probe(
    shape: tuple[int, int],
    diameter_px: float,
    stop_fraction: float = 0.4,
    pupil_fraction: float = 0.45,
    astigmatism_rad: float = 0.0,
    aberration_rad: float = 0.0,
    seed: int = 0,
) -> Complex:
    """Make the defocused probe of a zone plate with a central stop.

    The pupil is an annulus on the detector. A quadratic phase ``a (r/R)**2`` displaces a ray at pupil radius R by
    ``N a / (pi R)`` object pixels (stationary phase), which sets `a` for the wanted diameter.

    Parameters
    ----------
    shape : tuple of int
        Rows and columns, square.
    diameter_px : float
        Diameter of the illuminated ring in object pixels.
    stop_fraction : float
        Central stop diameter over pupil diameter, 0 to below 1.
    pupil_fraction : float
        Pupil diameter over frame width.
    astigmatism_rad, aberration_rad : float
        Astigmatism at the pupil's edge, and the RMS of a smooth random aberration, rad.
    seed : int
        Of the random aberration.

    Returns
    -------
    (N, N) complex64 ndarray
        Probe with unit total intensity, centred at ``(N // 2, N // 2)``.

    Raises
    ------
    ValueError
        When a parameter leaves its range, with the range.
    """
    n = shape[0]
    if shape[0] != shape[1]:
        raise ValueError(f"zone_plate_probe: shape {shape} px must be square")
    if not 0 <= stop_fraction < 1:
        raise ValueError(f"zone_plate_probe: stop_fraction {stop_fraction} must be in [0, 1)")
    if not 0 < diameter_px <= 0.75 * n:
        raise ValueError(
            f"zone_plate_probe: diameter {diameter_px} px must be above 0 and at most {0.75 * n:g} px, "
            "three quarters of the frame, or neighbouring copies of the probe overlap"
        )
    radius = pupil_fraction * n / 2
    ky, kx = np.indices(shape) - n // 2
    r = np.hypot(ky, kx) / radius
    theta = np.arctan2(ky, kx)
    edge = 2.0 / radius  # soft edges, two detector pixels wide, keep the ringing of the probe down
    pupil = 0.5 * (1 - np.tanh((r - 1) / edge)) * 0.5 * (1 + np.tanh((r - stop_fraction) / edge))
    quadratic = np.pi * radius * diameter_px / (2 * n)
    phase = quadratic * r**2 + astigmatism_rad * r**2 * np.cos(2 * theta)
    if aberration_rad:
        rough = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), radius / 3, mode="wrap")
        phase = phase + aberration_rad * rough / rough.std()
    wave = pupil * np.exp(1j * phase)
    probe = fft.fftshift(fft.ifft2(fft.ifftshift(wave), norm="ortho"))
    return np.asarray(probe / np.sqrt((np.abs(probe) ** 2).sum()), dtype=np.complex64)


def illuminated_diameter_px(probe: NDArray[Any], fraction: float = 0.9) -> float:
    """Diameter of the circle around the centroid that holds `fraction` of the probe's intensity, in object pixels."""
    intensity = np.abs(np.asarray(probe)) ** 2
    y, x = np.indices(intensity.shape)
    total = intensity.sum()
    cy, cx = (y * intensity).sum() / total, (x * intensity).sum() / total
    r = np.hypot(y - cy, x - cx).ravel()
    order = np.argsort(r)
    inside = np.cumsum(intensity.ravel()[order]) / total
    return float(2 * r[order][np.searchsorted(inside, fraction)])


def _field(shape: tuple[int, int], scale_px: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Smooth Gaussian random field of unit variance and correlation length `scale_px`."""
    ky = fft.fftfreq(shape[0])[:, None]
    kx = fft.rfftfreq(shape[1])[None, :]
    noise = fft.rfft2(rng.standard_normal(shape, dtype=np.float32))
    smooth = fft.irfft2(noise * np.exp(-2 * (np.pi * scale_px) ** 2 * (ky**2 + kx**2)), s=shape)
    return np.asarray(smooth / (smooth.std() + 1e-12), dtype=np.float64)


def _soft(height: NDArray[Any], width_px: float) -> NDArray[np.float64]:
    return np.asarray(ndimage.gaussian_filter(height.astype(np.float32), width_px), dtype=np.float64)


def _etched(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    """Height map of lithographic features: bars, combs, squares, discs and rings, 0 or 1."""
    height = np.zeros(shape, dtype=np.float32)
    area = shape[0] * shape[1]
    size = float(rng.uniform(8, 26))
    manhattan = rng.random() < 0.5
    for _ in range(int(area / size**2 / rng.uniform(2.5, 7.0))):
        cy, cx = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        long, short = size * rng.uniform(0.8, 4.0), size * rng.uniform(0.25, 1.0)
        reach = int(long) + 2
        y0, y1 = max(0, int(cy) - reach), min(shape[0], int(cy) + reach)
        x0, x1 = max(0, int(cx) - reach), min(shape[1], int(cx) + reach)
        if y1 <= y0 or x1 <= x0:
            continue
        y, x = np.ogrid[y0:y1, x0:x1]
        angle = rng.choice([0.0, np.pi / 2]) if manhattan else rng.uniform(0, np.pi)
        u = (y - cy) * np.cos(angle) + (x - cx) * np.sin(angle)
        v = (x - cx) * np.cos(angle) - (y - cy) * np.sin(angle)
        form = rng.integers(5)
        if form <= 1:
            inside = (np.abs(u) < long / 2) & (np.abs(v) < short / 2)
        elif form == 2:
            inside = np.hypot(u, v) < short
        elif form == 3:
            inside = np.abs(np.hypot(u, v) - size * 0.8) < short / 3
        else:
            inside = (np.abs(u) < long / 2) & (np.abs(v) < size) & (np.mod(v, short + 4) < (short + 4) / 2)
        height[y0:y1, x0:x1][inside] = 1.0 if rng.random() < 0.8 else 0.0
    return _soft(height, rng.uniform(0.5, 1.2))


def _star(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    """Height map of a Siemens star: radial spokes cut by rings, centre anywhere near the field."""
    cy, cx = (rng.uniform(0.1, 0.9) * s for s in shape)
    y, x = np.ogrid[: shape[0], : shape[1]]
    r, theta = np.hypot(y - cy, x - cx), np.arctan2(y - cy, x - cx)
    spokes = int(rng.integers(12, 80))
    duty = rng.uniform(-0.5, 0.5)
    height = (np.sin(spokes * theta + rng.uniform(0, 2 * np.pi)) > duty).astype(np.float32)
    period, gap = rng.uniform(40, 160), rng.uniform(0.05, 0.2)
    offset = rng.uniform(0, period)
    ring = np.mod(r + offset, period) < gap * period
    height[ring] = float(rng.random() < 0.5)
    height[r < spokes * 2.0 / (2 * np.pi)] = 0.0  # finer than two pixels a spoke cannot be etched
    return _soft(height, rng.uniform(0.5, 1.2))


def _texture(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    """Height map of an irregular two-level texture, thresholded at a random level."""
    coarse = _field(shape, rng.uniform(2.5, 14), rng)
    level = rng.uniform(-0.8, 0.8)
    return _soft(coarse > level, rng.uniform(0.5, 1.5))


def _cells(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    """Height map of rounded bodies with a rim, a nucleus and granules, 0 to about 1."""
    body = _field(shape, rng.uniform(12, 30), rng)
    cell = _soft(body > rng.uniform(-0.5, 0.6), 2.0) * (0.55 + 0.15 * _field(shape, 10, rng))
    nucleus = _soft(body > rng.uniform(0.8, 1.4), 1.5) * rng.uniform(0.2, 0.5)
    granules = _soft(_field(shape, rng.uniform(1.5, 3.0), rng) > rng.uniform(1.3, 1.9), 0.7) * rng.uniform(0.1, 0.5)
    return np.asarray(cell + nucleus + granules * (cell > 0.2), dtype=np.float64)


_KINDS = {"etched": _etched, "cells": _cells, "star": _star, "texture": _texture}


def make_sample(
    kind: SampleKind,
    shape: tuple[int, int],
    seed: int | np.random.Generator,
    *,
    phase_rad: float | None = None,
    absorption: float | None = None,
) -> Complex:
    """Make the complex transmission of a thin sample.

    Parameters
    ----------
    kind : {"etched", "cells", "star", "texture", "mixed"}
        ``mixed`` draws one of the others, at times two on top of each other.
    shape : tuple of int
        Rows and columns in object pixels.
    seed : int or numpy.random.Generator
        Everything random follows from it.
    phase_rad : float, optional
        Phase of the full height, rad; drawn from ±(0.15 to 1.7) when not given.
    absorption : float, optional
        Amplitude lost at full height, 0 to 1; drawn from 0 to 0.35 when not given.

    Returns
    -------
    (H, W) complex64 ndarray
    """
    if kind not in get_args(SampleKind):
        raise ValueError(f"make_sample: kind {kind!r} is unknown; allowed: {', '.join(get_args(SampleKind))}")
    rng = np.random.default_rng(seed)
    kinds = [kind]
    if kind == "mixed":
        kinds = list(rng.choice(list(_KINDS), size=1 + int(rng.random() < 0.25), p=[0.35, 0.2, 0.25, 0.2]))
    phase = np.zeros(shape)
    amplitude = np.ones(shape)
    for name in kinds:
        height = _KINDS[name](shape, rng)
        depth = float(rng.choice([-1, 1], p=[0.7, 0.3]) * rng.uniform(0.15, 1.7)) if phase_rad is None else phase_rad
        loss = float(rng.uniform(0, 0.35)) if absorption is None else absorption
        phase += depth * height
        amplitude *= np.clip(1 - loss * height, 0.02, None)
        if phase_rad is None and rng.random() < 0.3:
            phase += rng.uniform(0.02, 0.15) * _field(shape, rng.uniform(6, 40), rng)
    return np.asarray(amplitude * np.exp(1j * phase), dtype=np.complex64)


def crop(image: Complex, row: int, column: int, size: int) -> Complex:
    """Cut a (size, size) patch centred on pixel (row, column); vacuum (1) beyond the edge."""
    top, left = row - size // 2, column - size // 2
    out = np.ones((size, size), dtype=np.complex64)
    y0, y1 = max(0, top), min(image.shape[0], top + size)
    x0, x1 = max(0, left), min(image.shape[1], left + size)
    if y1 > y0 and x1 > x0:
        out[y0 - top : y1 - top, x0 - left : x1 - left] = image[y0:y1, x0:x1]
    return out


@dataclass(frozen=True)
class SimulatedExperiment:
    """A sample in a beam in front of a detector.

    Positions are the object coordinate that the beam's centre hits, in m, y along rows; ``(0, 0)`` is the middle pixel
    of the sample, ``(H // 2, W // 2)``.

    Parameters
    ----------
    geometry : Geometry
        Sets frame shape and object pixel.
    probe : (N, N) complex64 ndarray
        Unit total intensity.
    sample : (H, W) complex64 ndarray
        Complex transmission, object pixels.
    photons : float
        Mean photons in a frame without sample.
    seed : int
        Of dead and hot pixels.
    dead_fraction, hot_fraction : float
        Fraction of detector pixels that read 0, or read full scale.
    position_jitter_m : float
        RMS of the difference between where the beam is and where the encoder says, m.
    """

    geometry: Geometry
    probe: Complex
    sample: Complex
    photons: float = 1e5
    seed: int = 0
    dead_fraction: float = 0.0
    hot_fraction: float = 0.0
    position_jitter_m: float = 0.0
    dead: NDArray[np.bool_] = field(init=False, repr=False, compare=False)
    hot: NDArray[np.bool_] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.probe.shape != self.geometry.frame_shape:
            raise ValueError(
                f"SimulatedExperiment: probe {self.probe.shape} px does not match frame {self.geometry.frame_shape} px"
            )
        if not 1 <= self.photons <= 1e12:
            raise ValueError(f"SimulatedExperiment: photons {self.photons:g} a frame must be in [1, 1e12]")
        draw = np.random.default_rng(self.seed).random(self.geometry.frame_shape)
        object.__setattr__(self, "dead", draw < self.dead_fraction)
        object.__setattr__(self, "hot", draw > 1 - self.hot_fraction)

    @property
    def pixel_m(self) -> float:
        """Object pixel, m."""
        return self.geometry.object_pixel_m

    @property
    def probe_diameter_m(self) -> float:
        """Illuminated diameter (90 % of the intensity), m."""
        return illuminated_diameter_px(self.probe) * self.pixel_m

    def intensity_at(self, y_m: float, x_m: float) -> NDArray[np.float64]:
        """Noise-free frame (N, N) in photons for the beam at (y_m, x_m)."""
        row, column = y_m / self.pixel_m, x_m / self.pixel_m
        whole_row, whole_column = round(row), round(column)
        probe = _fourier_shift(self.probe, row - whole_row, column - whole_column)
        h, w = self.sample.shape
        patch = crop(self.sample, whole_row + h // 2, whole_column + w // 2, probe.shape[0])
        wave = fft.fftshift(fft.fft2(fft.ifftshift(probe * patch), norm="ortho"))
        return np.asarray(np.abs(wave) ** 2 * self.photons, dtype=np.float64)

    def frame_at(self, y_m: float, x_m: float, rng: np.random.Generator) -> NDArray[np.uint16]:
        """Record a frame (N, N) uint16 in counts: Poisson noise, dead and hot pixels, position jitter."""
        dy, dx = rng.normal(0, self.position_jitter_m, 2) if self.position_jitter_m else (0.0, 0.0)
        counts = rng.poisson(self.intensity_at(y_m + dy, x_m + dx))
        counts[self.dead] = 0
        counts[self.hot] = 65535
        return np.clip(counts, 0, 65535).astype(np.uint16)

    def truth_on(self, origin_m: tuple[float, float], shape: tuple[int, int]) -> Complex:
        """Interpolate the true object on a grid of object pixels whose pixel [0, 0] is centred at `origin_m` (y, x)."""
        rows = origin_m[0] / self.pixel_m + self.sample.shape[0] // 2 + np.arange(shape[0])
        columns = origin_m[1] / self.pixel_m + self.sample.shape[1] // 2 + np.arange(shape[1])
        grid = np.meshgrid(rows, columns, indexing="ij")
        parts = [
            ndimage.map_coordinates(part, grid, order=3, mode="constant", cval=cval)
            for part, cval in ((self.sample.real, 1.0), (self.sample.imag, 0.0))
        ]
        return np.asarray(parts[0] + 1j * parts[1], dtype=np.complex64)

    @classmethod
    def demo(cls, sample: SampleKind = "etched", seed: int = 2026, **changes: Any) -> SimulatedExperiment:
        """Build the simulated beamline that the shipped model was trained for: 64×64 frames at 10 keV.

        Parameters
        ----------
        sample : str
            See `make_sample`.
        seed : int
            Of the sample and the detector's bad pixels. The probe is always the same.
        **changes
            Fields of this class that differ from the demo's.
        """
        geometry = Geometry(
            energy_ev=10_000,
            distance_m=1.0,
            pixel_pitch_m=75e-6,
            frame_shape=(64, 64),
            sources=dict.fromkeys(("energy_ev", "distance_m", "pixel_pitch_m", "frame_shape"), "simulated beamline"),
        )
        probe = zone_plate_probe((64, 64), diameter_px=30, astigmatism_rad=0.4, aberration_rad=0.3, seed=7)
        values: dict[str, Any] = {
            "geometry": geometry,
            "probe": probe,
            "sample": make_sample(sample, (640, 640), seed, phase_rad=-0.9, absorption=0.2),
            "seed": seed,
        }
        return cls(**{**values, **changes})


def _fourier_shift(wave: Complex, dy: float, dx: float) -> Complex:
    """Shift a periodic wave by a sub-pixel (dy, dx); exact for a band-limited probe."""
    if dy == 0 and dx == 0:
        return wave
    ramp = np.exp(-2j * np.pi * (fft.fftfreq(wave.shape[0])[:, None] * dy + fft.fftfreq(wave.shape[1])[None, :] * dx))
    return np.asarray(fft.ifft2(fft.fft2(wave) * ramp), dtype=np.complex64)
