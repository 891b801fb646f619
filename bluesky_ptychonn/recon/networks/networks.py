"""The two network families: PtychoNN as published (and its relatives), and the lifted network.

Both turn counts into a complex object patch, so everything downstream is written once. Neither knows the global phase
of a frame, which no single diffraction pattern holds; `fix_gauge` sets it and `recon.mosaic.stitch` agrees it between
frames.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from torch import Tensor, nn
from torch.nn import functional

from bluesky_ptychonn.optics.forward import to_fft_order
from bluesky_ptychonn.recon.networks.lift import lift

_Channels = Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(min_length=1, max_length=8)]


class DirectConfig(BaseModel):
    """The PtychoNN family. Defaults are the network of Cherukara et al. (2020): 1,247,074 parameters, 64×64.

    Parameters
    ----------
    frame_size, patch_size : int
        Side of input and output, px; the patch is the whole frame or its central half.
    encoder_channels, decoder_channels : tuple of int
        Channels of each block of two 3×3 convolutions.
    width : float
        Multiplies all channels.
    batch_norm : bool
        Batch normalisation before each ReLU (and convolutions without bias); cures stalls at a constant phase.
    heads : tuple of str
        ``amplitude`` and ``phase``, or one of them.
    input_root : bool
        Feed ``sqrt(counts)`` instead of counts.
    input_scale : float
        Divides the input.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["direct"] = "direct"
    frame_size: int = Field(default=64, ge=16, le=1024)
    patch_size: int = Field(default=64, ge=8, le=1024)
    encoder_channels: _Channels = (32, 64, 128)
    decoder_channels: _Channels = (128, 64, 64)
    width: float = Field(default=1.0, gt=0, le=4)
    batch_norm: bool = False
    heads: tuple[Literal["amplitude", "phase"], ...] = Field(default=("amplitude", "phase"), min_length=1)
    input_root: bool = False
    input_scale: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _sizes(self) -> DirectConfig:
        if self.frame_size % 2 ** len(self.encoder_channels):
            raise ValueError(
                f"frame_size {self.frame_size} px must be a multiple of 2**{len(self.encoder_channels)}, "
                "one factor of two for each encoder block"
            )
        if self.patch_size not in (self.frame_size, self.frame_size // 2):
            raise ValueError(f"patch_size {self.patch_size} px must be frame_size {self.frame_size} px or half of it")
        if len(self.encoder_channels) != len(self.decoder_channels):
            raise ValueError("encoder_channels and decoder_channels must have the same length")
        return self


class LiftedConfig(BaseModel):
    """The lifted network: steps through the known probe, then a small U-Net in real space; repeated `stages` times.

    Parameters
    ----------
    frame_size : int
        Side of a frame, px.
    patch_size : int
        Side of the predicted central patch, px.
    lift_steps, stage_steps : int
        Single-frame steps before the first and before each later U-Net.
    stages : int
        U-Nets in a row; each later one sees the estimate after further steps through the probe.
    width : int
        Channels of the U-Net at half resolution; 1.5 and 2 times as many further down.
    damping : float
        See `bluesky_ptychonn.recon.networks.lift.lift`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["lifted"] = "lifted"
    frame_size: int = Field(default=128, ge=16, le=1024, multiple_of=2)
    patch_size: int = Field(default=64, ge=16, le=1024, multiple_of=8)
    lift_steps: int = Field(default=6, ge=1, le=100)
    stage_steps: int = Field(default=3, ge=0, le=100)
    stages: int = Field(default=2, ge=1, le=8)
    width: int = Field(default=48, ge=4, le=512, multiple_of=2)
    damping: float = Field(default=0.02, gt=0, lt=1)

    @model_validator(mode="after")
    def _sizes(self) -> LiftedConfig:
        if self.patch_size > self.frame_size:
            raise ValueError(f"patch_size {self.patch_size} px exceeds frame_size {self.frame_size} px")
        return self


NetworkConfig = Annotated[DirectConfig | LiftedConfig, Field(discriminator="family")]
_ADAPTER: TypeAdapter[DirectConfig | LiftedConfig] = TypeAdapter(NetworkConfig)


class ObjectNetwork(nn.Module):
    """What both families share: counts and probe in, complex patch out.

    Calling one with counts (B, N, N) float32 and a probe (N, N) complex64 in square-root photons gives the object
    patch (B, h, w) complex64 whose centre pixel ``h // 2`` is the frame's position.

    Attributes
    ----------
    anchor : float
        How strongly `recon.mosaic.stitch.Mosaic` pulls each patch's mean phase to zero, against what it overlaps.
    """

    anchor: float = 0.02

    config: DirectConfig | LiftedConfig

    def stages(self, counts: Tensor, probe: Tensor | None) -> list[Tensor]:
        """Return the estimate after every stage; training scores all, a user takes the last. Each (B, h, w)."""
        raise NotImplementedError

    def forward(self, counts: Tensor, probe: Tensor | None = None) -> Tensor:
        """See the class."""
        return self.stages(counts, probe)[-1]


def _convolutions(n_in: int, n_out: int, batch_norm: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for n in (n_in, n_out):
        layers.append(nn.Conv2d(n, n_out, 3, padding=1, bias=not batch_norm))
        if batch_norm:
            layers.append(nn.BatchNorm2d(n_out))
        layers.append(nn.ReLU())
    return layers


class PtychoNN(ObjectNetwork):
    """PtychoNN: one encoder, a decoder for each of amplitude (sigmoid) and phase (pi tanh).

    Keys of the state dict are the published ones: ``encoder.*``, ``decoder1.*`` (amplitude), ``decoder2.*`` (phase).
    """

    # Its patches are wrong over long distances, and what their overlap says of phase adds that up: on the measured star
    # 0.02, 0.5 and 5 gave correlations of 0.855, 0.865, 0.877 (all frames) and 0.760, 0.770, 0.772 (every 6th).
    anchor = 5.0

    config: DirectConfig

    def __init__(self, config: DirectConfig) -> None:
        super().__init__()
        self.config = config
        down = [max(1, round(c * config.width)) for c in config.encoder_channels]
        up = [max(1, round(c * config.width)) for c in config.decoder_channels]
        encoder: list[nn.Module] = []
        for n_in, n_out in zip([1, *down[:-1]], down, strict=True):
            encoder += [*_convolutions(n_in, n_out, config.batch_norm), nn.MaxPool2d(2)]
        self.encoder = nn.Sequential(*encoder)
        grow = len(up) - (0 if config.patch_size == config.frame_size else 1)

        def decoder(last: nn.Module) -> nn.Sequential:
            layers: list[nn.Module] = []
            for level, (n_in, n_out) in enumerate(zip([down[-1], *up[:-1]], up, strict=True)):
                layers += _convolutions(n_in, n_out, config.batch_norm)
                if level < grow:
                    layers.append(nn.Upsample(scale_factor=2, mode="bilinear"))
            return nn.Sequential(*layers, nn.Conv2d(up[-1], 1, 3, padding=1), last)

        self.decoder1 = decoder(nn.Sigmoid()) if "amplitude" in config.heads else None
        self.decoder2 = decoder(nn.Tanh()) if "phase" in config.heads else None

    def stages(self, counts: Tensor, probe: Tensor | None = None) -> list[Tensor]:
        """See `ObjectNetwork.stages`; the probe is not used."""
        x = counts.clamp_min(0).sqrt() if self.config.input_root else counts
        code = self.encoder((x / self.config.input_scale).unsqueeze(1))  # (B, C, N/8, N/8)
        size = (len(counts), self.config.patch_size, self.config.patch_size)
        amplitude = counts.new_ones(size) if self.decoder1 is None else self.decoder1(code).squeeze(1)
        phase = counts.new_zeros(size) if self.decoder2 is None else self.decoder2(code).squeeze(1) * torch.pi
        return [torch.polar(amplitude.float(), phase.float())]  # polar knows no half precision


class _Block(nn.Sequential):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(*_convolutions(n_in, n_out, batch_norm=True))


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
        about_probe = self._about(probe, len(counts))
        estimates: list[Tensor] = []
        full = None
        with torch.no_grad():
            full = lift(modulus, probe, config.lift_steps, None, config.damping)
        for stage, net in enumerate(self.nets):
            before = estimates[-1].detach() if stage else None
            estimates.append(self._corrected(net, full[..., inner, inner], about_probe, before))
            if stage + 1 < len(self.nets):
                with torch.no_grad():
                    full = full.clone()
                    full[..., inner, inner] = estimates[-1].detach()
                    full = lift(modulus, probe, config.stage_steps, full, config.damping)
        return estimates

    def again(self, counts: Tensor, probe: Tensor, known: Tensor) -> Tensor:
        """Run the last stage alone, from an object known by other means; for `recon.mosaic.refine`.

        Parameters
        ----------
        counts : (B, N, N) float32 Tensor
        probe : (N, N) complex64 Tensor
            Square-root photons.
        known : (B, N, N) complex64 Tensor
            Object under each frame, such as a mosaic of all of them has it.

        Returns
        -------
        (B, h, w) complex64 Tensor
        """
        inner = self._inner(counts.shape[-1])
        modulus = to_fft_order(counts.clamp_min(0).sqrt())
        full = lift(modulus, probe, max(1, self.config.stage_steps), known, self.config.damping)
        before = known[..., inner, inner] if self.config.stages > 1 else None
        return self._corrected(self.nets[-1], full[..., inner, inner], self._about(probe, len(counts)), before)

    def _inner(self, size: int) -> slice:
        """Rows and columns of the patch in frames of `size`; its part of the frame is the configuration's.

        Training on many probes shows the network frames of several sizes.
        """
        side = self.config.patch_size * size // self.config.frame_size
        margin = (size - side) // 2
        return slice(margin, margin + side)

    def _about(self, probe: Tensor, frames: int) -> Tensor:
        """Make the channels (B, 3, h, w) that tell a U-Net of the probe."""
        inner = self._inner(probe.shape[-1])
        beam = probe[..., inner, inner]
        beam = beam.expand(frames, *beam.shape[-2:])
        beam = beam / beam.abs().amax(dim=(-2, -1), keepdim=True)
        return torch.stack([beam.abs(), beam.real, beam.imag], 1)

    @staticmethod
    def _corrected(net: nn.Module, patch: Tensor, about_probe: Tensor, before: Tensor | None) -> Tensor:
        channels = [patch.real.unsqueeze(1), patch.imag.unsqueeze(1), about_probe]
        if before is not None:
            channels += [before.real.unsqueeze(1), before.imag.unsqueeze(1)]
        correction = net(torch.cat(channels, 1).contiguous(memory_format=torch.channels_last)).float()
        return patch + torch.complex(correction[:, 0], correction[:, 1])


def fix_gauge(patch: Tensor, weight: Tensor) -> Tensor:
    """Turn each patch so that its weighted mean is real and positive. (B, h, w) complex64, (h, w) float32."""
    mean = (patch * weight).sum(dim=(-2, -1), keepdim=True)
    return patch * torch.exp(-1j * mean.angle())


def network_config(values: Mapping[str, Any]) -> DirectConfig | LiftedConfig:
    """Read the configuration that a model card keeps.

    Raises
    ------
    ValueError
        When it names an unknown family or a value out of range.
    """
    try:
        return _ADAPTER.validate_python(dict(values))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: got {e.get('input')!r}, {e['msg']}" for e in error.errors())
        raise ValueError(f"network configuration is not usable: {wrong}") from None


def build_network(config: DirectConfig | LiftedConfig | Mapping[str, Any]) -> ObjectNetwork:
    """Build a network from its configuration, or from the mapping a model card keeps.

    Raises
    ------
    ValueError
        When the mapping names an unknown family or a value out of range.
    """
    if isinstance(config, Mapping):
        config = network_config(config)
    network: ObjectNetwork = PtychoNN(config) if isinstance(config, DirectConfig) else LiftedNetwork(config)
    # Parameters in channels-last order are 1.1 to 1.6 times as fast on a CPU (design.md). Typeshed lacks the keyword.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def parameter_counts(network: nn.Module) -> OrderedDict[str, int]:
    """Trainable parameters of each child, and their sum under ``total``."""
    counts = OrderedDict((name, sum(p.numel() for p in m.parameters())) for name, m in network.named_children())
    counts["total"] = sum(counts.values())
    return counts
