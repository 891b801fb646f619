"""Training pairs simulated through a measured probe: no reconstruction of any sample is needed.

Batch `k` depends on the seed and `k` alone, so training resumes exactly where it stopped.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from bluesky_ptychonn.optics.forward import intensity
from bluesky_ptychonn.optics.simulate import SampleKind, make_sample


class SyntheticConfig(BaseModel):
    """What simulated frames vary over, so that a model meets measured ones half-way.

    Parameters
    ----------
    photons : float
        Mean photons in a frame without sample.
    dose_spread : float
        Each batch's dose is drawn log-uniformly from photons / dose_spread to photons * dose_spread.
    scale_jitter : float
        RMS relative error of the flux that the network is told.
    probe_error_rad : float
        Largest RMS phase error, rad, of the probe that the network is told; smooth in the pupil.
    blur_px : float
        Largest weight a detector pixel leaks to each of its four neighbours (partial coherence, charge sharing).
    background : float
        Largest constant background, counts a pixel.
    sample : str
        Kind of sample, see `bluesky_ptychonn.optics.simulate.make_sample`.
    objects_per_batch : int
        Different samples in one batch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    photons: float = Field(default=1e5, ge=10, le=1e10)
    dose_spread: float = Field(default=2.0, ge=1, le=100)
    scale_jitter: float = Field(default=0.02, ge=0, le=0.5)
    probe_error_rad: float = Field(default=0.08, ge=0, le=3)
    blur_px: float = Field(default=0.03, ge=0, le=0.2)
    background: float = Field(default=0.05, ge=0, le=1000)
    sample: SampleKind = "mixed"
    objects_per_batch: int = Field(default=4, ge=1, le=64)


class SimulatedFrames:
    """Endless seeded supply of (counts, probe, truth).

    Parameters
    ----------
    probe : (N, N) complex64 ndarray
        Measured probe, any scale.
    patch_size : int
        Side of the truth patch, px.
    batch_size : int
        Frames a batch.
    config : SyntheticConfig
        What varies.
    seed : int
        Everything random follows from it.
    device : torch.device or str
        Where batches live.
    """

    def __init__(
        self,
        probe: NDArray[np.complex64],
        patch_size: int,
        batch_size: int,
        config: SyntheticConfig,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        unit = torch.as_tensor(np.asarray(probe, dtype=np.complex64), device=device)
        self._probe = unit / unit.abs().square().sum().sqrt()
        self._pupil = torch.fft.fft2(self._probe)
        self._patch_size, self._batch_size, self._config, self._seed = patch_size, batch_size, config, seed
        n = unit.shape[-1]
        frequency = torch.fft.fftfreq(n, device=device)
        self._smooth = torch.exp(-((frequency[:, None] ** 2 + frequency[None, :] ** 2) * (0.12 * n) ** 2))

    def _true_probe(self, generator: torch.Generator, rng: np.random.Generator) -> Tensor:
        """Give the measured probe a smooth random pupil phase: the beam as it may be if measured a bit wrong."""
        strength = rng.uniform(0, self._config.probe_error_rad)
        noise = torch.randn(self._smooth.shape, generator=generator).to(self._smooth.device)
        rough = torch.fft.ifft2(torch.fft.fft2(noise) * self._smooth).real
        power = self._pupil.abs().square()
        rms = (rough.square() * power).sum().div(power.sum()).sqrt()
        probe: Tensor = torch.fft.ifft2(self._pupil * torch.exp(1j * strength * rough / rms))
        return probe

    def batch(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Make batch `index`.

        Returns
        -------
        counts : (B, N, N) float32 Tensor
        probe : (N, N) complex64 Tensor
            The probe the network is told, square-root photons.
        truth : (B, h, w) complex64 Tensor
        """
        config, n = self._config, self._probe.shape[-1]
        rng = np.random.default_rng((self._seed, index))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        each = -(-self._batch_size // config.objects_per_batch)
        objects = np.empty((self._batch_size, n, n), dtype=np.complex64)
        side = 2 * n
        sample = np.empty(0, dtype=np.complex64)
        for k in range(self._batch_size):
            if k % each == 0:
                sample = make_sample(config.sample, (side, side), rng)
            y, x = rng.integers(0, side - n + 1, 2)
            view = sample[y : y + n, x : x + n]
            objects[k] = view.T if rng.random() < 0.5 else view
        true_object = torch.from_numpy(objects).to(self._probe.device)
        photons = config.photons * config.dose_spread ** rng.uniform(-1, 1)
        expected = intensity(true_object, self._true_probe(generator, rng) * photons**0.5)
        leak = rng.uniform(0, config.blur_px)
        if leak:
            kernel = torch.tensor([[0, leak, 0], [leak, 1 - 4 * leak, leak], [0, leak, 0]], device=expected.device)
            expected = functional.conv2d(expected.unsqueeze(1), kernel[None, None], padding=1).squeeze(1).clamp_min(0)
        expected = expected + rng.uniform(0, config.background)
        counts = torch.poisson(expected.cpu(), generator=generator).to(expected.device)
        told = photons**0.5 * np.exp(0.5 * rng.normal(0, config.scale_jitter))
        margin = (n - self._patch_size) // 2
        inner = slice(margin, margin + self._patch_size)
        return counts, self._probe * told, true_object[:, inner, inner].contiguous()
