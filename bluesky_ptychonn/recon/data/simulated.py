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
from bluesky_ptychonn.optics.probe_family import ProbeFamily
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
    probes : ProbeFamily, optional
        Draw another probe for every batch instead of using one measured probe.
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
    probes: ProbeFamily | None = None


class SimulatedFrames:
    """Endless seeded supply of (counts, probe, truth).

    The measured probe (N, N) may have any scale; None where `config` has a family of probes, for frames of `frame_size`
    px. `patch_size` is the side of the truth patch, px.
    """

    def __init__(
        self,
        probe: NDArray[np.complex64] | None,
        patch_size: int,
        batch_size: int,
        config: SyntheticConfig,
        seed: int,
        device: torch.device | str = "cpu",
        frame_size: int = 128,
    ) -> None:
        if (probe is None) == (config.probes is None):
            raise ValueError("SimulatedFrames: either one probe or a family of probes is needed")
        n = frame_size if probe is None else probe.shape[-1]
        self._device = device
        self._given = None if probe is None else self._unit(probe)
        self._size, self._patch_size, self._batch_size = n, patch_size, batch_size
        self._config, self._seed = config, seed
        self._sizes = (config.probes.frame_sizes if config.probes else ()) or (n,)
        self._smooth = {size: self._smoothing(size) for size in self._sizes}

    def _smoothing(self, n: int) -> Tensor:
        frequency = torch.fft.fftfreq(n, device=self._device)
        return torch.exp(-((frequency[:, None] ** 2 + frequency[None, :] ** 2) * (0.12 * n) ** 2))

    def _unit(self, probe: NDArray[np.complex64]) -> Tensor:
        unit = torch.as_tensor(np.asarray(probe, dtype=np.complex64), device=self._device)
        return unit / unit.abs().square().sum().sqrt()

    def _true_probe(self, probe: Tensor, generator: torch.Generator, rng: np.random.Generator) -> Tensor:
        """Give the measured probe a smooth random pupil phase: the beam as it may be if measured a bit wrong."""
        strength = rng.uniform(0, self._config.probe_error_rad)
        smooth = self._smooth[probe.shape[-1]]
        noise = torch.randn(smooth.shape, generator=generator).to(smooth.device)
        rough = torch.fft.ifft2(torch.fft.fft2(noise) * smooth).real
        pupil = torch.fft.fft2(probe)
        power = pupil.abs().square()
        rms = (rough.square() * power).sum().div(power.sum()).sqrt()
        true: Tensor = torch.fft.ifft2(pupil * torch.exp(1j * strength * rough / rms))
        return true

    def batch(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Make batch `index`.

        Returns
        -------
        counts : (B, N, N) float32 Tensor
        probe : (N, N) complex64 Tensor
            The probe the network is told, square-root photons.
        truth : (B, h, w) complex64 Tensor
        """
        config, n = self._config, self._sizes[index % len(self._sizes)]
        patch = self._patch_size * n // self._size
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
        true_object = torch.from_numpy(objects).to(self._device)
        if self._given is not None:
            probe = self._given
        else:
            # A stream of its own: samples and doses stay those of a training with one probe.
            family = config.probes or ProbeFamily()
            probe = self._unit(family.draw(n, np.random.default_rng((self._seed, index, 1))))
        photons = config.photons * config.dose_spread ** rng.uniform(-1, 1)
        expected = intensity(true_object, self._true_probe(probe, generator, rng) * photons**0.5)
        leak = rng.uniform(0, config.blur_px)
        if leak:
            kernel = torch.tensor([[0, leak, 0], [leak, 1 - 4 * leak, leak], [0, leak, 0]], device=expected.device)
            expected = functional.conv2d(expected.unsqueeze(1), kernel[None, None], padding=1).squeeze(1).clamp_min(0)
        expected = expected + rng.uniform(0, config.background)
        counts = torch.poisson(expected.cpu(), generator=generator).to(expected.device)
        amplitude = photons**0.5 * np.exp(0.5 * rng.normal(0, config.scale_jitter))
        margin = (n - patch) // 2
        inner = slice(margin, margin + patch)
        return counts, probe * amplitude, true_object[:, inner, inner].contiguous()
