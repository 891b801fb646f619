"""What goes wrong at a beamline, on simulated scans: what `benchmarks.trust` and the tests put models through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft, ndimage

from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.optics.simulate import SimulatedExperiment, crop, make_sample
from bluesky_ptychonn.recon.evaluation.trust_calibration import refocused
from bluesky_ptychonn.recon.quality.verdict import ReasonKind

Complex = NDArray[np.complex64]


@dataclass(frozen=True)
class Scan:
    """A simulated scan: frames (n, N, N) float32, positions (n,) in m, true object patches (n, h, w)."""

    frames: NDArray[np.float32]
    y_m: NDArray[np.float64]
    x_m: NDArray[np.float64]
    truth: Complex


@dataclass(frozen=True)
class Corruption:
    """What goes wrong, in words, how, and which reason a verdict should give.

    Attributes
    ----------
    probe, sample, frames : callable
        From what is right to what is wrong; the last of frames (n, N, N) and a generator.
    dose : float
        Factor on the photons.
    """

    words: str
    reason: str
    probe: Callable[[Complex], Complex] = lambda probe: probe
    sample: Callable[[Complex, np.random.Generator], Complex] = lambda sample, rng: sample
    frames: Callable[[NDArray[np.float32]], NDArray[np.float32]] = lambda frames: frames
    dose: float = 1.0


def defocused(probe: Complex) -> Complex:
    """Two rad RMS of defocus over the pupil."""
    return np.asarray(refocused(torch.from_numpy(probe), 2.0).numpy(), dtype=np.complex64)


def rescaled(probe: Complex, factor: float) -> Complex:
    """Probe (N, N) whose far field is `factor` as large: a lens at another energy, the focus kept."""
    n = len(probe)
    far = fft.fftshift(fft.fft2(fft.ifftshift(probe)))
    at = (np.indices((n, n)) - n // 2) / factor + n // 2
    parts = [ndimage.map_coordinates(part, at, order=3) for part in (far.real, far.imag)]
    near = fft.fftshift(fft.ifft2(fft.ifftshift(parts[0] + 1j * parts[1])))
    return np.asarray(near / np.sqrt((np.abs(near) ** 2).sum()), dtype=np.complex64)


def speckled(sample: Complex, rng: np.random.Generator) -> Complex:
    """Put in its place a phase object of 1.5 rad RMS and 1 px grain: nothing like what is trained on."""
    rough = ndimage.gaussian_filter(rng.standard_normal(sample.shape), 1.0)
    return np.asarray(np.exp(1.5j * rough / rough.std()), dtype=np.complex64)


def blinking(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """No beam in every third frame but for a thousandth."""
    out = frames.copy()
    out[::3] = np.floor(out[::3] / 1000)
    return out


def clipped(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """No pixel above a third of the brightest."""
    return np.minimum(frames, np.floor(frames.max() / 3))


CORRUPTIONS: dict[str, Corruption] = {
    "probe": Corruption("probe out of focus by 2 rad RMS", ReasonKind.PROBE, probe=defocused),
    "energy": Corruption("energy 5 % up: far field 5 % smaller", ReasonKind.ENERGY, probe=lambda p: rescaled(p, 0.95)),
    "beam": Corruption("no beam in every third frame", ReasonKind.LOST, frames=blinking),
    "shift": Corruption("detector shifted by 2 px", ReasonKind.SHIFTED, frames=lambda f: np.roll(f, 2, axis=1)),
    "intensity": Corruption("a fiftieth of the photons", ReasonKind.INTENSITY, dose=0.02),
    "saturated": Corruption("pixels clipped at a third of the peak", ReasonKind.INTENSITY, frames=clipped),
    "sample": Corruption("speckle of 1.5 rad RMS", ReasonKind.SAMPLE, sample=speckled),
}
CLEAN = Corruption("nothing", "")


def simulated_scan(
    probe: Complex,
    geometry: Geometry,
    patch: int,
    photons: float,
    seed: int,
    corruption: Corruption = CLEAN,
    *,
    side: int = 6,
    step_px: int = 8,
) -> Scan:
    """Scan a random sample, with something wrong.

    Parameters
    ----------
    probe : (N, N) complex64 ndarray
        Unit total intensity.
    geometry : Geometry
    patch : int
        Side of the truth's patches, px.
    photons : float
        A frame without sample.
    seed : int
    corruption : Corruption
    side, step_px : int
        Frames a side and step of the square scan.
    """
    rng = np.random.default_rng(seed)
    size = len(probe) + side * step_px + 8
    sample = corruption.sample(make_sample("mixed", (size, size), rng), rng)
    experiment = SimulatedExperiment(geometry, corruption.probe(probe), sample, photons * corruption.dose)
    line = (np.arange(side) - side // 2) * step_px
    rows, columns = np.repeat(line, side), np.tile(line, side)
    y, x = rows * experiment.pixel_m, columns * experiment.pixel_m
    frames = np.stack([experiment.frame_at(a, b, rng) for a, b in zip(y, x, strict=True)]).astype(np.float32)
    middle = size // 2
    truth = np.stack([crop(sample, r + middle, c + middle, patch) for r, c in zip(rows, columns, strict=True)])
    return Scan(corruption.frames(frames), y, x, truth)
