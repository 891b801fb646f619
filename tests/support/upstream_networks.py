"""Networks as their authors published them, stated again from their papers and layouts: the oracle of the import."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

Between = Literal["nothing", "norm", "identity"]


def _convolution(n_in: int, n_out: int, between: Between, bias: bool, groups: int = 1) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(n_in, n_out, 3, stride=1, padding=(1, 1), bias=bias, groups=groups)]
    if between == "norm":
        layers.append(nn.BatchNorm2d(n_out))
    if between == "identity":
        layers.append(nn.Identity())
    return [*layers, nn.ReLU()]


class Published(nn.Module):
    """Encoder and one or two decoders; names of decoders and of everything in them are the published ones."""

    def __init__(
        self,
        down: Sequence[int],
        up: Sequence[int],
        decoders: Sequence[str],
        between: Between = "nothing",
        bias: bool = True,
        last_norm: bool = False,
    ) -> None:
        super().__init__()
        encoder: list[nn.Module] = []
        n = 1
        for channels in down:
            encoder += _convolution(n, channels, between, bias) + _convolution(channels, channels, between, bias)
            encoder.append(nn.MaxPool2d((2, 2)))
            n = channels
        self.encoder = nn.Sequential(*encoder)
        self.names = tuple(decoders)
        for name in decoders:
            layers: list[nn.Module] = []
            n = down[-1]
            for channels in up:
                layers += _convolution(n, channels, between, bias) + _convolution(channels, channels, between, bias)
                layers.append(nn.Upsample(scale_factor=2, mode="bilinear"))
                n = channels
            layers.append(nn.Conv2d(n, 1, 3, stride=1, padding=(1, 1)))
            layers += [nn.BatchNorm2d(1)] if last_norm else []
            layers.append(nn.Sigmoid() if name in ("decoder1", "decoder_amplitude") else nn.Tanh())
            setattr(self, name, nn.Sequential(*layers))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 1, N, N) to amplitude, and phase in rad, (B, N, N)."""
        code = self.encoder(x)
        out = {}
        for name in self.names:
            image = getattr(self, name)(code)[:, 0]
            if name in ("decoder1", "decoder_amplitude"):
                out["amplitude"] = image
            else:
                out["phase"] = image * np.pi
        return out


class Grouped(nn.Module):
    """The packaged network: one decoder of two groups, channel 0 the phase, channel 1 the amplitude."""

    def __init__(self, nconv: int = 16, norm: bool = True) -> None:
        super().__init__()
        between: Between = "norm" if norm else "nothing"
        encoder: list[nn.Module] = []
        n = 1
        for channels in (nconv, nconv * 2, nconv * 4, nconv * 8):
            encoder += _convolution(n, channels, between, not norm) + _convolution(
                channels, channels, between, not norm
            )
            encoder.append(nn.MaxPool2d((2, 2)))
            n = channels
        self.encoder = nn.Sequential(*encoder)
        decoder: list[nn.Module] = []
        for channels in (nconv * 16, nconv * 8, nconv * 4, nconv * 2):
            decoder += _convolution(n, channels, between, not norm, 2)
            decoder += _convolution(channels, channels, between, not norm, 2)
            decoder.append(nn.Upsample(scale_factor=2, mode="bilinear"))
            n = channels
        decoder.append(nn.Conv2d(n, 2, 3, padding=(1, 1), bias=not norm, groups=2))
        self.decoder = nn.Sequential(*decoder, *([nn.BatchNorm2d(2)] if norm else []))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 1, N, N) to amplitude, and phase in rad, (B, N, N)."""
        out = self.decoder(self.encoder(x))
        return {"phase": torch.tanh(out[:, 0]) * np.pi, "amplitude": torch.sigmoid(out[:, 1])}


def lived(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and statistics as after some training: no value at its default, outputs that differ between pixels."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return network.eval()


def two_head() -> nn.Module:
    """Cherukara et al. 2020: 1,247,074 parameters."""
    return lived(Published((32, 64, 128), (128, 64, 64), ("decoder1", "decoder2")))


def small_phase(between: Between = "nothing", bias: bool = True, last_norm: bool = False) -> nn.Module:
    """edgePtychoNN: 733,921 parameters without normalisation."""
    return lived(Published((16, 32, 64, 128), (128, 64, 32, 16), ("decoder2",), between, bias, last_norm))
