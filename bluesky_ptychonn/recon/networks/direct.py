"""The direct family: PtychoNN as published, and its relatives."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor, nn
from torch.nn import functional

from bluesky_ptychonn.recon.networks.base import FamilyConfig, ObjectNetwork, convolutions

_Channels = Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(min_length=1, max_length=8)]


class DirectConfig(FamilyConfig):
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
    input_standardised : bool
        Subtract a pattern from that and divide by another, `input_mean` and `input_deviation` of the network, which are
        kept with its weights.
    input_scale : float
        Divides the input.
    """

    family: Literal["direct"] = "direct"
    frame_size: int = Field(default=64, ge=16, le=1024)
    patch_size: int = Field(default=64, ge=8, le=1024)
    encoder_channels: _Channels = (32, 64, 128)
    decoder_channels: _Channels = (128, 64, 64)
    width: float = Field(default=1.0, gt=0, le=4)
    batch_norm: bool = False
    heads: tuple[Literal["amplitude", "phase"], ...] = Field(default=("amplitude", "phase"), min_length=1)
    input_root: bool = False
    input_standardised: bool = False
    input_scale: float = Field(default=1.0, gt=0)

    @classmethod
    def for_training(cls, frame_size: int, patch_size: int, width: float | None, photons: float) -> Self:
        """See `FamilyConfig.for_training`; counts go in by their root, at a scale near 1."""
        return cls(
            frame_size=frame_size,
            patch_size=patch_size,
            width=width or 0.5,
            batch_norm=True,
            input_root=True,
            input_scale=round((photons / frame_size**2) ** 0.5, 1),
        )

    def resized(self, frame_size: int, patch_size: int | None = None) -> Self:
        """See `FamilyConfig.resized`; the patterns of the input have the size they have."""
        if self.input_standardised and frame_size != self.frame_size:
            raise ValueError(
                f"network: a mean pattern of {self.frame_size} px is subtracted from its input; frames of {frame_size} "
                "px have none"
            )
        return super().resized(frame_size, patch_size)

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave `input_standardised` out where it is not: trainings and cards of earlier versions do not know it."""
        values: dict[str, Any] = dump(self)
        return values if self.input_standardised else {k: v for k, v in values.items() if k != "input_standardised"}

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


class PtychoNN(ObjectNetwork):
    """PtychoNN: one encoder, a decoder for each of amplitude (sigmoid) and phase (pi tanh).

    Keys of the state dict are the published ones: ``encoder.*``, ``decoder1.*`` (amplitude), ``decoder2.*`` (phase).
    """

    # Its patches are wrong over long distances, and what their overlap says of phase adds that up: on the measured star
    # 0.02, 0.5 and 5 gave correlations of 0.855, 0.865, 0.877 (all frames) and 0.760, 0.770, 0.772 (every 6th).
    anchor = 5.0

    config_class = DirectConfig
    config: DirectConfig
    input_mean: Tensor  # (N, N) float32, and the next too
    input_deviation: Tensor

    def __init__(self, config: DirectConfig) -> None:
        super().__init__()
        self.config = config
        if config.input_standardised:
            size = (config.frame_size, config.frame_size)
            self.register_buffer("input_mean", torch.zeros(size))
            self.register_buffer("input_deviation", torch.ones(size))
        down = [max(1, round(c * config.width)) for c in config.encoder_channels]
        up = [max(1, round(c * config.width)) for c in config.decoder_channels]
        encoder: list[nn.Module] = []
        for n_in, n_out in zip([1, *down[:-1]], down, strict=True):
            encoder += [*convolutions(n_in, n_out, config.batch_norm), nn.MaxPool2d(2)]
        self.encoder = nn.Sequential(*encoder)
        grow = len(up) - (0 if config.patch_size == config.frame_size else 1)

        def decoder(last: nn.Module) -> nn.Sequential:
            layers: list[nn.Module] = []
            for level, (n_in, n_out) in enumerate(zip([down[-1], *up[:-1]], up, strict=True)):
                layers += convolutions(n_in, n_out, config.batch_norm)
                if level < grow:
                    layers.append(nn.Upsample(scale_factor=2, mode="bilinear"))
            return nn.Sequential(*layers, nn.Conv2d(up[-1], 1, 3, padding=1), last)

        self.decoder1 = decoder(nn.Sigmoid()) if "amplitude" in config.heads else None
        self.decoder2 = decoder(nn.Tanh()) if "phase" in config.heads else None

    def stages(self, counts: Tensor, probe: Tensor | None = None) -> list[Tensor]:
        """See `ObjectNetwork.stages`; the probe is not used."""
        x = counts.clamp_min(0).sqrt() if self.config.input_root else counts
        if self.config.input_standardised:
            x = (x - self.input_mean) / self.input_deviation
        x = (x / self.config.input_scale).unsqueeze(1)
        unit = _unit(x) if torch.is_autocast_enabled(x.device.type) else None
        code, unit = _through(self.encoder, x if unit is None else x / unit, unit)  # (B, C, N/8, N/8)
        size = (len(counts), self.config.patch_size, self.config.patch_size)
        amplitude, phase = counts.new_ones(size), counts.new_zeros(size)
        if self.decoder1 is not None:
            amplitude = _through(self.decoder1, code, unit)[0].squeeze(1)
        if self.decoder2 is not None:
            phase = _through(self.decoder2, code, unit)[0].squeeze(1) * torch.pi
        return [torch.polar(amplitude.float(), phase.float())]  # polar knows no half precision


def _unit(x: Tensor) -> Tensor:
    """Power of two (B, 1, 1, 1) that brings the brightest pixel of each of (B, 1, N, N) below 1024, and is at least 1.

    Half precision ends at 65,504, which counts and what convolutions make of them may exceed.
    """
    return torch.exp2((x.abs().amax(dim=(1, 2, 3), keepdim=True) / 1024).clamp_min(1).log2().ceil())


def _through(layers: nn.Sequential, x: Tensor, unit: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Take `x`, which is in this unit, through layers, and say in which unit it comes out.

    A convolution of x / u with its bias divided by u is the convolution of x, divided by u, and most of what
    stands between convolutions lets the unit pass; normalisation, sigmoid and tanh end it.
    """
    if unit is None:
        return layers(x), None
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            x = functional.conv2d(x, layer.weight, padding=1)
            x = x if layer.bias is None else x + (layer.bias[:, None, None] / unit).to(x.dtype)
        elif isinstance(layer, nn.BatchNorm2d | nn.Sigmoid | nn.Tanh):
            x, unit = layer(x.float() * unit), torch.ones_like(unit)
        else:
            x = layer(x)
    return x, unit
