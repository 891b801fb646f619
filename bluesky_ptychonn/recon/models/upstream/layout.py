"""Recognise the PtychoNN layouts that others published, from names and shapes of tensors alone.

Known are the two-head network (``decoder1``, ``decoder2``), the phase-only ones, both with or without batch
normalisation, the same with ``decoder_amplitude`` and ``decoder_phase``, and the packaged one with a single grouped
``decoder``. All become this package's `PtychoNN` with equal outputs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_PARTS = {
    "decoder1": "amplitude", "decoder_amplitude": "amplitude",
    "decoder2": "phase", "decoder_phase": "phase", "decoder": "both",
}  # fmt: skip
_EPSILON = 1e-5  # of every published BatchNorm2d, and of ours
_KNOWN = (
    "known are PtychoNN's layouts: encoder with decoder1 and decoder2 (or decoder_amplitude, decoder_phase), either "
    "head alone, or one grouped decoder; blocks of two 3x3 convolutions, with or without batch normalisation"
)


@dataclass(frozen=True)
class Layer:
    """A convolution and the batch normalisation after it, if any."""

    where: str  # its name in the checkpoint
    weight: Tensor  # (out, in, 3, 3) float32
    bias: Tensor | None  # (out,) float32
    norm: dict[str, Tensor] | None  # weight, bias, running_mean, running_var, num_batches_tracked


@dataclass(frozen=True)
class Stack:
    """Encoder or decoder."""

    blocks: tuple[Layer, ...]  # two for each block
    last: Layer | None  # the convolution before a decoder's activation
    channels: tuple[int, ...]  # of each block
    upsampled: bool  # whether also the last block of a decoder doubles the size

    @property
    def normalised(self) -> bool:
        """Whether batch normalisation follows the convolutions."""
        return self.blocks[0].norm is not None


@dataclass(frozen=True)
class CheckpointLayout:
    """A network as found in a checkpoint."""

    encoder: Stack
    decoders: dict[str, Stack]  # amplitude, phase
    description: str  # what was recognised


def recognise(state: Mapping[str, Tensor]) -> CheckpointLayout:
    """Tell the layout of a state dict; ValueError in words: what does not fit, and what would."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        if part != "encoder" and part not in _PARTS:
            raise ValueError(f"not a PtychoNN checkpoint: it holds {name!r}; {_KNOWN}")
        parts.setdefault(part, {})[rest] = tensor
    if "encoder" not in parts or len(parts) < 2:
        raise ValueError(f"not a PtychoNN checkpoint: it holds {', '.join(sorted(parts)) or 'nothing'}; {_KNOWN}")
    encoder = _stack("encoder", _layers("encoder", parts.pop("encoder")), has_last=False)
    _chain(encoder.blocks, 1)
    decoders: dict[str, Stack] = {}
    for part, tensors in sorted(parts.items()):
        layers = _layers(part, tensors)
        if _PARTS[part] != "both":
            found = {_PARTS[part]: layers}
        elif len(layers[-1].weight) == 1:
            found = {"phase": layers}
        else:
            found = _ungroup(layers)
        for head, own in found.items():
            if head in decoders:
                raise ValueError(f"not a PtychoNN checkpoint: it has two decoders for the {head}; {_KNOWN}")
            decoders[head] = _stack(part, own, has_last=True)
            _chain(own, encoder.channels[-1])
    _same(encoder, decoders)
    heads = " and ".join(sorted(decoders))
    norm = ", batch-normalised" if encoder.normalised else ""
    grouped = ", one grouped decoder" if "decoder" in parts and len(decoders) == 2 else ""
    return CheckpointLayout(encoder, decoders, f"PtychoNN, {len(encoder.channels)} blocks, {heads}{norm}{grouped}")


def _layers(part: str, tensors: Mapping[str, Tensor]) -> list[Layer]:
    """Convolutions of a part in order, each with its normalisation; checks that nothing is left over."""
    modules: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(\d{1,4})\.(weight|bias|running_mean|running_var|num_batches_tracked)", name)
        if match is None:
            raise ValueError(f"not a PtychoNN checkpoint: {part}.{name} is no layer of it; {_KNOWN}")
        modules.setdefault(int(match[1]), {})[match[2]] = tensor
    layers: list[Layer] = []
    for index, module in sorted(modules.items()):
        where = f"{part}.{index}"
        weight = module.get("weight")
        if weight is not None and weight.ndim == 4:
            out = len(weight)
            if weight.shape[2:] != (3, 3) or 0 in weight.shape or module.keys() - {"weight", "bias"}:
                raise ValueError(
                    f"not a PtychoNN checkpoint: {where} is no 3x3 convolution ({_shapes(module)}); {_KNOWN}"
                )
            layers.append(Layer(where, weight, module.get("bias"), None))
            wrong = [module[name] for name in module.keys() - {"weight"} if module[name].shape != (out,)]
        elif "running_mean" in module and layers and layers[-1].where == f"{part}.{index - 1}":
            before = layers.pop()
            out = len(before.weight)
            layers.append(Layer(before.where, before.weight, before.bias, _whole_norm(where, module, out)))
            wrong = [module[n] for n in module.keys() - {"num_batches_tracked"} if module[n].shape != (out,)]
        else:
            raise ValueError(f"not a PtychoNN checkpoint: {where} is no layer of it ({_shapes(module)}); {_KNOWN}")
        if wrong:
            raise ValueError(f"not a PtychoNN checkpoint: {where} does not fit itself ({_shapes(module)})")
    return layers


def _whole_norm(where: str, module: Mapping[str, Tensor], channels: int) -> dict[str, Tensor]:
    if "running_var" not in module or bool((module["running_var"] < 0).any()):
        raise ValueError(f"not a PtychoNN checkpoint: {where} has no running variance, or a negative one")
    if "num_batches_tracked" in module and module["num_batches_tracked"].ndim:
        raise ValueError(f"not a PtychoNN checkpoint: {where} does not fit itself ({_shapes(module)})")
    defaults = {
        "weight": torch.ones(channels), "bias": torch.zeros(channels), "num_batches_tracked": torch.tensor(0),
    }  # fmt: skip
    return {**defaults, **module}


def _shapes(module: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(module.items()))


def _stack(part: str, layers: list[Layer], *, has_last: bool) -> Stack:
    """Check the places of a part's layers against the published ones."""
    indices = [int(layer.where.partition(".")[2]) for layer in layers]
    depth = (len(layers) - has_last) // 2
    for offsets, length in (((0, 2), 5), ((0, 3), 7)):  # seven a block where something stands before each ReLU
        inner = [length * block + offset for block in range(depth) for offset in offsets]
        for upsampled in (True, False):
            last = [length * depth - (not upsampled)] if has_last else []
            if (
                depth
                and indices == inner + last
                and (length == 7 or not any(layer.norm for layer in layers[: 2 * depth]))
            ):
                blocks = tuple(layers[: 2 * depth])
                return Stack(
                    blocks, layers[-1] if has_last else None, tuple(len(b.weight) for b in blocks[1::2]), upsampled
                )
    raise ValueError(f"not a PtychoNN checkpoint: {part} has convolutions at {indices}; {_KNOWN}")


def _chain(layers: tuple[Layer, ...] | list[Layer], n_in: int) -> None:
    """Check that each layer takes what the one before gives."""
    for place, layer in enumerate(layers):
        n_out, takes = layer.weight.shape[:2]
        if takes != n_in:
            raise ValueError(f"not a PtychoNN checkpoint: {layer.where} takes {takes} channels, {n_in} come to it")
        if place % 2 and n_out != n_in:
            raise ValueError(f"not a PtychoNN checkpoint: {layer.where} changes channels within a block; {_KNOWN}")
        n_in = n_out


def _ungroup(layers: list[Layer]) -> dict[str, list[Layer]]:
    """Split a decoder of two groups, phase first, into two decoders.

    Each group sees its own half of the encoder's channels: the other half meets zeros.
    """
    heads: dict[str, list[Layer]] = {}
    for group, head in enumerate(("phase", "amplitude")):
        own: list[Layer] = []
        for place, layer in enumerate(layers):
            n_out = len(layer.weight)
            if n_out % 2:
                raise ValueError(f"not a PtychoNN checkpoint: {layer.where} has {n_out} channels for two groups")
            half = slice(group * n_out // 2, (group + 1) * n_out // 2)
            weight = layer.weight[half]
            if place == 0:
                none = torch.zeros_like(weight)
                weight = torch.cat([weight, none] if group == 0 else [none, weight], 1)
            norm = layer.norm and {k: v if k == "num_batches_tracked" else v[half] for k, v in layer.norm.items()}
            own.append(Layer(layer.where, weight, None if layer.bias is None else layer.bias[half], norm))
        heads[head] = own
    return heads


def _same(encoder: Stack, decoders: Mapping[str, Stack]) -> None:
    """Check what one configuration must say for all parts."""
    first = next(iter(decoders.values()))
    for stack in decoders.values():
        if len(stack.channels) != len(encoder.channels):
            raise ValueError(
                f"this PtychoNN halves the size {len(encoder.channels)} times and has {len(stack.channels)} decoder "
                "blocks; this package builds networks with as many of one as of the other"
            )
        if (stack.channels, stack.upsampled) != (first.channels, first.upsampled):
            raise ValueError(
                f"the decoders of this PtychoNN differ, {stack.channels} and {first.channels} channels; this package "
                "builds networks with equal ones"
            )
        if stack.last is None or len(stack.last.weight) != 1:
            raise ValueError("not a PtychoNN checkpoint: a decoder must end in one channel")
    norms = {layer.norm is not None for stack in (encoder, *decoders.values()) for layer in stack.blocks}
    if len(norms) > 1:
        raise ValueError("this PtychoNN is batch-normalised in part; this package builds networks with it or without")


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
