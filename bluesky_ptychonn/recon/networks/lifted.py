"""The lifted family: single-frame steps through the known probe, and small U-Nets that correct what they give.

One step replaces the modulus of the far field by the measured one and moves the object by the regularised
least-squares update of ePIE, ``o += P* d / (|P|^2 + r max|P|^2)`` (Maiden & Rodenburg, Ultramicroscopy 109, 1256,
2009), but for every frame by itself: nothing is shared between frames, so no overlap is needed.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from bluesky_ptychonn.optics.forward import back_propagate, propagate, to_fft_order
from bluesky_ptychonn.recon.networks.base import FamilyConfig, ObjectNetwork, convolutions


class LiftedConfig(FamilyConfig):
    """The lifted network: steps through the known probe, then a small U-Net in real space; repeated `stages` times.

    Parameters
    ----------
    frame_size, patch_size : int
        Side of a frame and of the predicted central patch, px.
    lift_steps, stage_steps : int
        Single-frame steps before the first and before each later U-Net.
    stages : int
        U-Nets in a row; each later one sees the estimate after further steps through the probe.
    width : int
        Channels of the U-Net at half resolution; 1.5 and 2 times as many further down.
    damping : float
        See `lift`.
    """

    uses_probe = True
    loss = "complex"
    dose_spread = 2.0

    family: Literal["lifted"] = "lifted"
    frame_size: int = Field(default=128, ge=16, le=1024, multiple_of=2)
    patch_size: int = Field(default=64, ge=16, le=1024, multiple_of=8)
    lift_steps: int = Field(default=6, ge=1, le=100)
    stage_steps: int = Field(default=3, ge=0, le=100)
    stages: int = Field(default=2, ge=1, le=8)
    width: int = Field(default=48, ge=4, le=512, multiple_of=2)
    damping: float = Field(default=0.02, gt=0, lt=1)

    @classmethod
    def for_training(cls, frame_size: int, patch_size: int, width: float | None, photons: float) -> Self:
        """See `FamilyConfig.for_training`."""
        return cls(frame_size=frame_size, patch_size=patch_size, width=int(width or 40))

    @classmethod
    def usual_patch(cls, frame_size: int) -> int:
        """See `FamilyConfig.usual_patch`; the U-Net halves three times, so that it takes multiples of 8."""
        return max(16, frame_size // 16 * 8)

    @model_validator(mode="after")
    def _sizes(self) -> LiftedConfig:
        if self.patch_size > self.frame_size:
            raise ValueError(f"patch_size {self.patch_size} px exceeds frame_size {self.frame_size} px")
        return self


def lift(modulus: Tensor, probe: Tensor, steps: int, start: Tensor | None = None, damping: float = 0.02) -> Tensor:
    """Run `steps` single-frame updates of the object, (B, N, N) complex64, from a start or a flat one; 0 returns it.

    The modulus (B, N, N) float32 is the square root of the counts, zero frequency first
    (`bluesky_ptychonn.optics.forward.to_fft_order`), the probe (N, N) or (B, N, N) complex64 in square-root photons.
    `damping` is `r` above: where the probe is weaker than this fraction of its peak intensity, the object hardly moves.
    """
    power = probe.real.square() + probe.imag.square()
    peak = power.amax(dim=(-2, -1), keepdim=True)
    gain = probe.conj() / (power + damping * peak)  # ([B,] N, N)
    estimate = torch.ones(modulus.shape, dtype=torch.complex64, device=modulus.device) if start is None else start
    for _ in range(steps):
        exit_wave = probe * estimate
        far = propagate(exit_wave)
        far = far * (modulus / far.abs().clamp_min(1e-6))
        estimate = estimate + gain * (back_propagate(far) - exit_wave)
    return estimate


class _Block(nn.Sequential):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(*convolutions(n_in, n_out, batch_norm=True))


class _UNet(nn.Module):
    """Three-level U-Net working on 2×2 blocks of pixels (space to depth), which quarters the cost of a full one."""

    def __init__(self, n_in: int, width: int) -> None:
        super().__init__()
        w1, w2, w3 = width, width * 3 // 2, width * 2
        self.down1 = _Block(4 * n_in, w1)
        self.down2 = _Block(w1, w2)
        self.bottom = _Block(w2, w3)
        self.up2 = _Block(w3 + w2, w2)
        self.up1 = _Block(w2 + w1, w1)
        self.out = nn.Conv2d(w1, 8, 3, padding=1)
        nn.init.zeros_(self.out.weight)  # start as the identity: the correction is zero
        if self.out.bias is not None:
            nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(functional.pixel_unshuffle(x, 2))
        b = self.down2(functional.max_pool2d(a, 2))
        c = self.bottom(functional.max_pool2d(b, 2))
        b = self.up2(torch.cat([functional.interpolate(c, scale_factor=2.0, mode="nearest"), b], 1))
        a = self.up1(torch.cat([functional.interpolate(b, scale_factor=2.0, mode="nearest"), a], 1))
        out: Tensor = functional.pixel_shuffle(self.out(a), 2)  # (B, 2, h, w)
        return out


class LiftedNetwork(ObjectNetwork):
    """Object estimate through the probe, corrected by a U-Net, taken through the probe again, corrected again."""

    config_class = LiftedConfig
    config: LiftedConfig

    def __init__(self, config: LiftedConfig) -> None:
        super().__init__()
        self.config = config
        self.nets = nn.ModuleList(_UNet(5 if stage == 0 else 7, config.width) for stage in range(config.stages))

    def stages(self, counts: Tensor, probe: Tensor | None = None) -> list[Tensor]:
        """See `ObjectNetwork.stages`. Stages are cut from each other's gradient, so each trains by its own error."""
        if probe is None:
            raise ValueError("LiftedNetwork: no probe given; a lifted model needs its probe, square-root photons")
        config, inner = self.config, self._inner(counts.shape[-1])
        modulus = to_fft_order(counts.clamp_min(0).sqrt())  # (B, N, N)
        probe_channels = self._probe_channels(probe, len(counts))
        estimates: list[Tensor] = []
        with torch.no_grad():
            full = lift(modulus, probe, config.lift_steps, None, config.damping)
        for stage, net in enumerate(self.nets):
            before = estimates[-1].detach() if stage else None
            estimates.append(self._corrected(net, full[..., inner, inner], probe_channels, before))
            if stage + 1 < len(self.nets):
                with torch.no_grad():
                    full = full.clone()
                    full[..., inner, inner] = estimates[-1].detach()
                    full = lift(modulus, probe, config.stage_steps, full, config.damping)
        return estimates

    def last_stage(self, counts: Tensor, probe: Tensor, known: Tensor) -> Tensor:
        """Run the last stage alone, from an object known by other means; for `recon.mosaic.refine`.

        `known`, (B, N, N) complex64, is the object under each frame, such as a mosaic of all of them has it; the others
        and the patches are as in a call.
        """
        inner = self._inner(counts.shape[-1])
        modulus = to_fft_order(counts.clamp_min(0).sqrt())
        full = lift(modulus, probe, max(1, self.config.stage_steps), known, self.config.damping)
        before = known[..., inner, inner] if self.config.stages > 1 else None
        return self._corrected(self.nets[-1], full[..., inner, inner], self._probe_channels(probe, len(counts)), before)

    def _inner(self, size: int) -> slice:
        """Rows and columns of the patch in frames of `size`; its part of the frame is the configuration's.

        Training on many probes shows the network frames of several sizes.
        """
        side = self.config.patch_size * size // self.config.frame_size
        margin = (size - side) // 2
        return slice(margin, margin + side)

    def _probe_channels(self, probe: Tensor, frames: int) -> Tensor:
        """Make the channels (B, 3, h, w) that tell a U-Net of the probe."""
        inner = self._inner(probe.shape[-1])
        beam = probe[..., inner, inner]
        beam = beam.expand(frames, *beam.shape[-2:])
        beam = beam / beam.abs().amax(dim=(-2, -1), keepdim=True)
        return torch.stack([beam.abs(), beam.real, beam.imag], 1)

    @staticmethod
    def _corrected(net: nn.Module, patch: Tensor, probe_channels: Tensor, before: Tensor | None) -> Tensor:
        channels = [patch.real.unsqueeze(1), patch.imag.unsqueeze(1), probe_channels]
        if before is not None:
            channels += [before.real.unsqueeze(1), before.imag.unsqueeze(1)]
        correction = net(torch.cat(channels, 1).contiguous(memory_format=torch.channels_last)).float()
        return patch + torch.complex(correction[:, 0], correction[:, 1])
