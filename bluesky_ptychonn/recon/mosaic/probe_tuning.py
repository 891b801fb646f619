"""Tune a probe to a run: optics drift, and a run whose frames overlap says by how much.

Sweeps of the physics move the object, and between them a Gauss-Newton step moves a few low aberrations of the pupil
(defocus, astigmatism, coma, trefoil) to where the measured moduli lie. So few numbers can be told from thin overlap,
where a free probe would fit the noise. Simulated scans with the shipped model's probe: a defocus of 0.40 rad (RMS over
the pupil's light) was found as 0.40 at samplings of 0.4 (121 frames) and 0.6 (49), and as 0.29 at 0.75 (36); one of
-1.00 as -1.00 at 0.4, and of -1.2 as -1.06 at 0.5. A probe that was right stayed within 0.01.

What it cannot see: tilt and piston of the pupil, which move the image and its phase as a whole; and the flux, which an
amplitude of the object undoes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bluesky_ptychonn.recon.mosaic.refine_config import Refinement
from bluesky_ptychonn.recon.mosaic.stitch import MosaicImage
from bluesky_ptychonn.recon.mosaic.sweeps import ScanTensors, Sweeper

#: Aberrations that are tuned, in order.
ABERRATIONS = ("defocus", "astigmatism_0", "astigmatism_45", "coma_y", "coma_x", "trefoil_y", "trefoil_x")
_AT_ONCE = 16  # frames whose slopes are held
_MOST_TURNS = 40  # sweeps, each followed by a step of the aberrations
_FRAMES = 64  # frames a step looks at; more change little
_STILL = 2e-3  # rad: turns end when the aberrations have moved less over the last three
_DAMPING = 0.05
_NOTHING_RAD = 0.03  # what a probe that was right was tuned by, and a margin
_GAIN = 0.99  # of the residual, at least


@dataclass(frozen=True)
class TunedProbe:
    """A probe tuned to a run.

    Attributes
    ----------
    probe : (N, N) complex64 Tensor
        Square-root photons, as many as before.
    aberrations_rad : dict of str to float
        Phase it gained, RMS over the pupil's light, rad; one for each of `ABERRATIONS`.
    residual_before, residual_after : float
        Mean squared difference of measured and modelled moduli, counts a pixel, after as many sweeps with the probe as
        it was, and with the tuned one.
    image : MosaicImage
        The object that the sweeps came to, where the first one had coverage.
    frames, turns : int
    seconds : float
    """

    probe: Tensor
    aberrations_rad: dict[str, float]
    residual_before: float
    residual_after: float
    image: MosaicImage
    frames: int
    turns: int
    seconds: float

    @property
    def rms_rad(self) -> float:
        """Phase the pupil gained in all, RMS, rad."""
        return float(np.sqrt(sum(value**2 for value in self.aberrations_rad.values())))

    @property
    def better(self) -> bool:
        """Whether it differs from the probe it was, and the frames say so."""
        return self.rms_rad > _NOTHING_RAD and self.residual_after < _GAIN * self.residual_before

    def as_record(self) -> dict[str, Any]:
        """Everything but probe and image, JSON values."""
        return {
            "aberrations_rad": {name: round(value, 4) for name, value in self.aberrations_rad.items()},
            "rms_rad": round(self.rms_rad, 4),
            "residual_before": float(f"{self.residual_before:.5g}"),
            "residual_after": float(f"{self.residual_after:.5g}"),
            "frames": self.frames,
            "turns": self.turns,
            "seconds": round(self.seconds, 2),
        }


def pupil_aberrations(probe: Tensor) -> Tensor:
    """Make `ABERRATIONS` for the pupil of a probe: (7, N, N) float32, rad, zero frequency first.

    Each has RMS 1 over the pupil's light and is orthogonal there to the others, to piston and to tilt.
    """
    frequency = torch.fft.fftfreq(probe.shape[-1], device=probe.device)
    y, x = torch.meshgrid(frequency, frequency, indexing="ij")
    light = torch.fft.fft2(probe).abs().square()
    light = light / light.sum()
    radius = ((y.square() + x.square()) * light).sum().sqrt()
    y, x = y / radius, x / radius
    r2 = y * y + x * x
    plain = [torch.ones_like(y), y, x, r2, y * y - x * x, 2 * x * y, y * r2, x * r2, y**3 - 3 * y * x * x]
    plain.append(3 * x * y * y - x**3)
    found: list[Tensor] = []
    for phase in plain:
        for other in found:
            phase = phase - (phase * other * light).sum() * other
        found.append(phase / (phase.square() * light).sum().sqrt())
    return torch.stack(found[3:])


def aberrated(probe: Tensor, phases: Tensor, coefficients: Tensor) -> Tensor:
    """Give a probe (N, N) pupil phases (k, N, N) times coefficients (k,)."""
    pupil = torch.fft.fft2(probe) * torch.exp(1j * torch.tensordot(coefficients, phases, dims=1))
    changed: Tensor = torch.fft.ifft2(pupil)
    return changed


def tune_probe(image: MosaicImage, scan: ScanTensors) -> TunedProbe:
    """Tune a probe to the frames of a run.

    Parameters
    ----------
    image : MosaicImage
        Mosaic of the run, made with the probe as it was believed to be.
    scan : ScanTensors
        The frames, and that probe.

    Raises
    ------
    ValueError
        Without frames.
    """
    if not len(scan):
        raise ValueError("tune_probe: no frames to tune a probe to")
    probe, frames = scan.probe, len(scan)
    began = time.perf_counter()
    settings = Refinement(pull=0.0)  # nothing pulls the object back to the image
    phases = pupil_aberrations(probe)
    with torch.inference_mode():
        tuned = Sweeper(image, scan, settings)
        coefficients = torch.zeros(len(phases), device=probe.device)
        order = torch.Generator().manual_seed(settings.seed)
        path: list[Tensor] = []
        now = probe
        for _ in range(_MOST_TURNS):
            tuned.sweep()
            coefficients = coefficients + _step(tuned, phases, torch.randperm(frames, generator=order)[:_FRAMES])
            now = aberrated(probe, phases, coefficients)
            tuned.set_probe(now)
            path.append(coefficients)
            if len(path) > 3 and float((path[-1] - path[-4]).norm()) < _STILL:
                break
        tuned.sweep()
        untuned = Sweeper(image, scan, settings)
        for _ in range(len(path) + 1):
            untuned.sweep()
        refined = tuned.image(image)
        before, after = _residual(untuned, frames), _residual(tuned, frames)
    return TunedProbe(
        probe=now,
        aberrations_rad=dict(zip(ABERRATIONS, coefficients.tolist(), strict=True)),
        residual_before=before,
        residual_after=after,
        image=refined,
        frames=frames,
        turns=len(path),
        seconds=time.perf_counter() - began,
    )


def _step(sweeper: Sweeper, phases: Tensor, chosen: Tensor) -> Tensor:
    """Gauss-Newton step of the coefficients (k,), damped."""
    size = len(phases)
    normal, towards = torch.zeros(size, size, device=phases.device), torch.zeros(size, device=phases.device)
    for some in torch.split(chosen.to(phases.device), _AT_ONCE):
        lacking, slopes = sweeper.response(some, phases)
        normal += torch.einsum("bkij,blij->kl", slopes, slopes)
        towards += torch.einsum("bkij,bij->k", slopes, lacking)
    stiff = normal.diagonal()
    step: Tensor = torch.linalg.solve(normal + torch.diag(_DAMPING * stiff + 1e-6 * stiff.max() + 1e-12), towards)
    return step


def _residual(sweeper: Sweeper, frames: int) -> float:
    total = 0.0
    for chosen in torch.split(torch.arange(frames), _AT_ONCE):
        lacking, _ = sweeper.response(chosen.to(sweeper.device), torch.zeros(0, 1, 1, device=sweeper.device))
        total += float(lacking.square().mean(dim=(-2, -1)).sum())
    return total / frames
