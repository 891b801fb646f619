"""What every network family shares: its configuration's frame and patch, and a network from counts to object patches.

A network turns counts into a complex object patch, so everything downstream is written once. None knows the global
phase of a frame, which no single diffraction pattern holds; `fix_gauge` sets it and `recon.mosaic.stitch` agrees it
between frames.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn


class FamilyConfig(BaseModel):
    """Configuration of one family's network; each family has a subclass of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Whether the network is told its probe, and is nothing without one.
    uses_probe: ClassVar[bool] = False
    #: Of its training, see `TrainingConfig` and `SyntheticConfig`; a network that cannot know the dose wants it fixed.
    loss: ClassVar[Literal["complex", "amplitude_phase"]] = "amplitude_phase"
    dose_spread: ClassVar[float] = 1.05

    family: str  # as in `recon.networks.families.FAMILIES`
    frame_size: int = Field(ge=16, le=1024)  # side of a frame, px
    patch_size: int = Field(ge=8, le=1024)  # side of the predicted central patch, px

    @classmethod
    def for_training(cls, frame_size: int, patch_size: int, width: float | None, photons: float) -> Self:
        """Give the configuration to train a new network by, of a width or the family's usual one.

        `photons` are those of a frame without sample.
        """
        raise NotImplementedError

    @classmethod
    def usual_patch(cls, frame_size: int) -> int:
        """Side of the patch of a frame, px, where no other is asked for: half of it."""
        return frame_size // 2

    def resized(self, frame_size: int, patch_size: int | None = None) -> Self:
        """Return the same network for frames of another size, px: its convolutions do not mind.

        The patch is the usual one where no other is given.
        """
        changed = {"frame_size": frame_size, "patch_size": patch_size or self.usual_patch(frame_size)}
        return self.model_validate({**self.model_dump(), **changed})


class ObjectNetwork(nn.Module):
    """Counts and probe in, complex object patch out.

    Calling one with counts (B, N, N) float32 and a probe (N, N) complex64 in square-root photons gives the object
    patch (B, h, w) complex64 whose centre pixel ``h // 2`` is the frame's position.
    """

    config_class: ClassVar[type[FamilyConfig]]
    #: How strongly `recon.mosaic.stitch.Mosaic` pulls each patch's mean phase to zero, against what it overlaps.
    anchor: float = 0.02

    config: FamilyConfig

    def stages(self, counts: Tensor, probe: Tensor | None) -> list[Tensor]:
        """Return the estimate after every stage; training scores all, a user takes the last. Each (B, h, w)."""
        raise NotImplementedError

    def forward(self, counts: Tensor, probe: Tensor | None = None) -> Tensor:
        """See the class."""
        return self.stages(counts, probe)[-1]


def fix_gauge(patch: Tensor, weight: Tensor) -> Tensor:
    """Turn each patch so that its weighted mean is real and positive. (B, h, w) complex64, (h, w) float32."""
    mean = (patch * weight).sum(dim=(-2, -1), keepdim=True)
    return patch * torch.exp(-1j * mean.angle())


def convolutions(n_in: int, n_out: int, batch_norm: bool) -> list[nn.Module]:
    """Make two 3×3 convolutions, each with a ReLU, and batch normalisation before it where asked."""
    layers: list[nn.Module] = []
    for n in (n_in, n_out):
        layers.append(nn.Conv2d(n, n_out, 3, padding=1, bias=not batch_norm))
        if batch_norm:
            layers.append(nn.BatchNorm2d(n_out))
        layers.append(nn.ReLU())
    return layers
