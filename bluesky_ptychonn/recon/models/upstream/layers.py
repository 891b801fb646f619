"""A network found in somebody else's checkpoint, and its weights under this package's names."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_EPSILON = 1e-5  # of every published BatchNorm2d, and of ours


@dataclass(frozen=True)
class Layer:
    """A convolution and the batch normalisation after it, if any.

    Attributes
    ----------
    where : str
        Its name in the checkpoint.
    weight : (out, in, 3, 3) float32 Tensor
    bias : (out,) float32 Tensor or None
    norm : dict of str to Tensor, optional
        ``weight``, ``bias``, ``running_mean``, ``running_var``, ``num_batches_tracked``.
    """

    where: str
    weight: Tensor
    bias: Tensor | None
    norm: dict[str, Tensor] | None


@dataclass(frozen=True)
class Stack:
    """Encoder or decoder.

    Attributes
    ----------
    blocks : tuple of Layer
        Two for each block.
    last : Layer or None
        The convolution before a decoder's activation.
    channels : tuple of int
        Of each block.
    upsampled : bool
        Whether also the last block of a decoder doubles the size.
    """

    blocks: tuple[Layer, ...]
    last: Layer | None
    channels: tuple[int, ...]
    upsampled: bool

    @property
    def normalised(self) -> bool:
        """Whether batch normalisation follows the convolutions."""
        return self.blocks[0].norm is not None


@dataclass(frozen=True)
class CheckpointLayout:
    """A network as found in a checkpoint.

    Attributes
    ----------
    encoder : Stack
    decoders : dict of str to Stack
        ``amplitude``, ``phase``.
    description : str
        What was recognised.
    """

    encoder: Stack
    decoders: dict[str, Stack]
    description: str


def tensors_for(layout: CheckpointLayout) -> dict[str, Tensor]:
    """Weights under the names of this package's `PtychoNN`, such that its outputs in evaluation are equal.

    A bias before a normalisation moves into its running mean, which is the same; a normalisation after the last
    convolution moves into that.
    """
    tensors: dict[str, Tensor] = {}
    length = 7 if layout.encoder.normalised else 5
    names = {"encoder": layout.encoder}
    for head, stack in layout.decoders.items():
        names["decoder1" if head == "amplitude" else "decoder2"] = stack
    for part, stack in names.items():
        for place, layer in enumerate(stack.blocks):
            index = length * (place // 2) + (place % 2) * (length // 2)
            tensors[f"{part}.{index}.weight"] = layer.weight
            if layer.norm is None:
                tensors[f"{part}.{index}.bias"] = _bias(layer)
                continue
            norm = {**layer.norm, "running_mean": layer.norm["running_mean"] - _bias(layer)}
            tensors |= {f"{part}.{index + 1}.{name}": value for name, value in norm.items()}
        if stack.last is not None:
            index = length * len(stack.channels) - (not stack.upsampled)
            tensors |= {f"{part}.{index}.{name}": value for name, value in _folded(stack.last).items()}
    return tensors


def _bias(layer: Layer) -> Tensor:
    return torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias


def _folded(layer: Layer) -> dict[str, Tensor]:
    if layer.norm is None:
        return {"weight": layer.weight, "bias": _bias(layer)}
    norm = {name: value.double() for name, value in layer.norm.items()}
    scale = norm["weight"] / torch.sqrt(norm["running_var"] + _EPSILON)
    bias = (_bias(layer).double() - norm["running_mean"]) * scale + norm["bias"]
    return {"weight": (layer.weight.double() * scale[:, None, None, None]).float(), "bias": bias.float()}
