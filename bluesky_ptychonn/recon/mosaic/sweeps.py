"""Sweeps of the physics over an object: frames move it towards what they measured, a few at a time.

The update is the least-squares one of ePIE and rPIE (Maiden & Rodenburg, Ultramicroscopy 109, 1256, 2009; Maiden,
Johnson & Li, Optica 4, 736, 2017). `recon.mosaic.refine` refines mosaics by it, `recon.mosaic.probe_tuning` tunes the
probe between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bluesky_ptychonn.optics.forward import back_propagate, propagate, to_fft_order
from bluesky_ptychonn.recon.data.scans import MeasuredScan
from bluesky_ptychonn.recon.mosaic.refine_config import Refinement
from bluesky_ptychonn.recon.mosaic.stitch import Mosaic, MosaicImage
from bluesky_ptychonn.recon.networks.base import fix_gauge
from bluesky_ptychonn.recon.networks.lifted import LiftedNetwork

_KEPT_BYTES = 256 * 2**20  # of shifted probes, and of moduli; of more frames than that they are made in each sweep


@dataclass(frozen=True)
class ScanTensors:
    """Frames, where they were taken and through which probe; ValueError for other shapes."""

    counts: Tensor  # (n, N, N) float32 as the network takes them, beam at pixel N // 2; anywhere, also in a file
    positions_m: NDArray[np.float64]  # (n, 2), y and x, m
    probe: Tensor  # (N, N) complex64, square-root photons, on the device to work on

    def __post_init__(self) -> None:
        if (
            self.counts.ndim != 3
            or self.counts.shape[1:] != self.probe.shape
            or self.positions_m.shape != (len(self.counts), 2)
        ):
            raise ValueError(
                f"counts {tuple(self.counts.shape)}, probe {tuple(self.probe.shape)} and positions "
                f"{self.positions_m.shape} do not go together"
            )

    def __len__(self) -> int:
        return len(self.counts)

    @classmethod
    def from_scan(cls, scan: MeasuredScan, probe: Tensor) -> ScanTensors:
        """Put a scan's frames where a probe (N, N) is, to be used with that probe."""
        counts = torch.as_tensor(scan.counts, device=probe.device)
        return cls(counts, np.stack([scan.y_m, scan.x_m], axis=-1), probe)


class Sweeper:
    """The object under way from an image, with room around it for whole frames; rounds are the caller's."""

    def __init__(self, image: MosaicImage, scan: ScanTensors, settings: Refinement) -> None:
        self._settings = settings
        counts, positions = scan.counts, scan.positions_m
        self._n = n = counts.shape[-1]
        self.device = device = scan.probe.device
        self._pixel_m = image.pixel_m
        self._positions = positions
        pixels = positions / image.pixel_m
        whole = np.floor(pixels + 0.5).astype(int)
        self._low = np.round(np.array(image.origin_m) / image.pixel_m).astype(int)
        shape = np.array(image.phase.shape)
        # The image lies at `_inner` of an object that holds every frame whole.
        first = np.minimum(whole.min(0) - n // 2, self._low) if len(whole) else self._low
        last = np.maximum(whole.max(0) - n // 2 + n, self._low + shape) if len(whole) else self._low + shape
        top, left = self._low - first
        self._inner = (slice(top, top + shape[0]), slice(left, left + shape[1]))
        self._first = first
        corners = whole - n // 2 - first
        self._windows = [(slice(top, top + n), slice(left, left + n)) for top, left in corners.tolist()]
        self._corners = torch.as_tensor(corners, device=device)
        self._offsets = torch.as_tensor((pixels - whole).astype(np.float32), device=device)
        self._counts = counts
        self._moduli: Tensor | None = None
        if counts.numel() * 4 <= _KEPT_BYTES:
            self._moduli = self._modulus(torch.arange(len(counts), device=device))
        self._frequency = torch.fft.fftfreq(n, device=device)
        self._object = torch.ones(tuple(last - first), dtype=torch.complex64, device=device)
        self._object[self._inner] = torch.as_tensor(image.complex, device=device)
        known = torch.isfinite(self._object.real) & torch.isfinite(self._object.imag)
        known_image = torch.zeros_like(known)
        known_image[self._inner] = known[self._inner]
        seen = self._object[known_image]
        self._object[~known_image] = seen.mean() if len(seen) else 1.0  # what lies around counts as bare
        self._began = self._object
        self._generator = torch.Generator().manual_seed(settings.seed)
        self.set_probe(scan.probe)

    def set_probe(self, probe: Tensor) -> None:
        """Go on with another probe (N, N)."""
        self._probe = probe
        self._probe_far = torch.fft.fft2(probe)
        self._peak = probe.abs().square().max()
        self._kept: Tensor | None = None
        if len(self._counts) * self._n**2 * 8 <= _KEPT_BYTES:
            self._kept = self._probes(torch.arange(len(self._counts), device=self.device))
        self._light = self._illumination()

    def _ramp(self, offsets: Tensor, sign: int) -> Tensor:
        """Phase ramps (b, N, N) that shift by `offsets`, px."""
        y, x = (torch.exp(sign * 2j * torch.pi * offsets[:, axis, None] * self._frequency) for axis in (0, 1))
        ramp: Tensor = y[:, :, None] * x[:, None, :]
        return ramp

    def _probes(self, chosen: Tensor) -> Tensor:
        """Probe at the sub-pixel positions of frames (b, N, N)."""
        if self._kept is not None:
            return self._kept[chosen]
        moved: Tensor = torch.fft.ifft2(self._probe_far * self._ramp(self._offsets[chosen], -1))
        return moved

    def _frames(self, chosen: Tensor) -> Tensor:
        """Fetch counts of frames (b, N, N), on the device."""
        return self._counts[chosen.to(self._counts.device)].to(self.device)

    def _modulus(self, chosen: Tensor) -> Tensor:
        """Square root of the counts of frames (b, N, N), zero frequency first."""
        return (
            self._moduli[chosen] if self._moduli is not None else to_fft_order(self._frames(chosen).clamp_min(0).sqrt())
        )

    def _added(self, total: Tensor, chosen: Tensor, parts: Tensor) -> None:
        """Add what frames give (b, N, N) to a total over the object, one after the other: always the same sum.

        `index_add_` adds in the order in which a graphics processor comes to it.
        """
        for number, part in zip(chosen.tolist(), parts, strict=True):
            total[self._windows[number]] += part

    def _where(self, chosen: Tensor) -> Tensor:
        """Flat indices (b, N, N) of frames' pixels in the object."""
        span = torch.arange(self._n, device=self.device)
        y, x = (self._corners[chosen][:, axis, None] + span for axis in (0, 1))
        where: Tensor = y[:, :, None] * self._object.shape[1] + x[:, None, :]
        return where

    def _batches(self, order: Tensor, size: int) -> Sequence[Tensor]:
        return torch.split(order.to(self.device), size)

    def _illumination(self) -> Tensor:
        light = torch.zeros(self._object.shape, device=self.device)
        for chosen in self._batches(torch.arange(len(self._counts)), 64):
            self._added(light, chosen, self._probes(chosen).abs().square())
        return light

    def begin_round(self) -> None:
        """Remember the object that sweeps are pulled back to."""
        self._began = self._object.clone()

    def sweep(self) -> None:
        """Take all frames once, in random order."""
        now = self._object.clone()
        order = torch.randperm(len(self._counts), generator=self._generator)
        for chosen in self._batches(order, self._settings.batch):
            probes = self._probes(chosen)
            exit_wave = probes * now.reshape(-1)[self._where(chosen)]
            far = propagate(exit_wave)
            change = back_propagate(far * (self._modulus(chosen) / far.abs().clamp_min(1e-6))) - exit_wave
            move, light = torch.zeros_like(now), torch.zeros_like(now, dtype=torch.float32)
            self._added(move, chosen, probes.conj() * change)
            self._added(light, chosen, probes.abs().square())
            now += move / (light + self._settings.caution * self._peak)
        self._object = now
        pull = self._settings.pull * self._peak
        if self._settings.pull:
            self._object = self._object + pull / (self._light + pull) * (self._began - self._object)

    def response(self, chosen: Tensor, phases: Tensor) -> tuple[Tensor, Tensor]:
        """Tell what the moduli of chosen frames (b,) lack, and how they would answer to pupil phases.

        The phases (k, N, N) are of the probe's Fourier transform, rad, zero frequency first. Given are the measured
        modulus less the model's, (b, N, N), square-root counts, and the change of the model's modulus for each phase,
        (b, k, N, N), per rad.
        """
        views = self._object.reshape(-1)[self._where(chosen)]
        ramp = self._ramp(self._offsets[chosen], -1)
        far = propagate(self._probes(chosen) * views)
        modulus = far.abs().clamp_min(1e-3)
        towards = far.conj() / modulus
        slopes = [
            (towards * propagate(torch.fft.ifft2(1j * phase * self._probe_far * ramp) * views)).real for phase in phases
        ]
        empty = modulus.new_zeros((len(chosen), 0, *modulus.shape[1:]))
        return self._modulus(chosen) - modulus, torch.stack(slopes, 1) if slopes else empty

    def apply_last_stage(self, network: LiftedNetwork, weight: NDArray[np.floating], anchor: float) -> None:
        """Let the network's last stage see what frames have in common by now, and stitch what it says."""
        mosaic = Mosaic(self._pixel_m, weight, anchor=anchor)
        beam = self._probe.abs().square()
        for chosen in self._batches(torch.arange(len(self._counts)), 16):
            views = self._object.reshape(-1)[self._where(chosen)]
            # The network wants the probe where it was measured: shift the object instead.
            views = torch.fft.ifft2(torch.fft.fft2(views) * self._ramp(self._offsets[chosen], 1))
            views = fix_gauge(views, beam)  # as the network was trained to see them
            patches = network.last_stage(self._frames(chosen), self._probe, views).cpu().numpy()
            at = self._positions[chosen.cpu().numpy()]
            mosaic.add(patches, at[:, 0], at[:, 1], np.ones(len(at)))
        mosaic.synchronise()
        found = mosaic.snapshot()
        top, left = np.round(np.array(found.origin_m) / self._pixel_m).astype(int) - self._first
        place = (slice(top, top + found.phase.shape[0]), slice(left, left + found.phase.shape[1]))
        new = torch.as_tensor(found.complex, device=self.device)
        old = self._object[place]
        known = torch.isfinite(new.real) & torch.isfinite(new.imag)
        turn = torch.exp(-1j * (old[known].conj() * new[known]).sum().angle())
        self._object = self._object.clone()
        self._object[place] = torch.where(known, new * turn, old)

    def image(self, before: MosaicImage) -> MosaicImage:
        """Give the object on the grid of the image it began as, where that has coverage."""
        wave = self._object[self._inner].cpu().numpy()
        seen = np.isfinite(before.phase)
        phase = wave * np.exp(-1j * np.angle((wave * before.coverage)[seen].sum())) if seen.any() else wave
        return replace(
            before,
            amplitude=np.where(seen, np.abs(wave), np.nan).astype(np.float32),
            phase=np.where(seen, np.angle(phase), np.nan).astype(np.float32),
        )
