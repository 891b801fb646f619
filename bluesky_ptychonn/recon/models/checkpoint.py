"""Save and load a model: weights and probe as safetensors, checked against the card's digest.

No pickle is ever read, so a model from a stranger can be wrong but cannot run code.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor, nn

from bluesky_ptychonn.card import InputContract, ModelCard, available_models, find_model, load_card
from bluesky_ptychonn.files import write_whole
from bluesky_ptychonn.recon.device import choose_device
from bluesky_ptychonn.recon.models.library import WEIGHTS_FILE, check_digest
from bluesky_ptychonn.recon.networks.base import FamilyConfig
from bluesky_ptychonn.recon.networks.families import build_network

__all__ = ["Model", "available_models", "choose_device", "load_card", "load_model", "save_model"]

_PROBE_PARTS = ("probe.real", "probe.imag")
_WEIGHT = "stitch.weight"


@dataclass(frozen=True)
class Model:
    """A network ready to use, with what it promises.

    Attributes
    ----------
    card : ModelCard
    network : torch.nn.Module
        In evaluation mode; (B, N, N) float32 counts and (N, N) complex64 probe to (B, h, w) complex64 patch.
    probe : (N, N) complex64 Tensor or None
        Square-root photons, beam centred at ``(N // 2, N // 2)`` in real space.
    weight : (h, w) float32 Tensor or None
        How much a patch's pixels count in a mosaic, from the errors measured on held-out frames.
    """

    card: ModelCard
    network: nn.Module
    probe: Tensor | None
    weight: Tensor | None = None

    def __post_init__(self) -> None:
        if self.probe is not None and tuple(self.probe.shape) != self.card.input.frame_shape:
            raise ValueError(
                f"model {self.card.name!r}: its probe is {tuple(self.probe.shape)} px and its frames "
                f"{self.card.input.frame_shape} px; they must be the same"
            )
        if self.weight is not None and tuple(self.weight.shape) != self.card.input.patch_shape:
            raise ValueError(
                f"model {self.card.name!r}: its stitching weight is {tuple(self.weight.shape)} px and its patches "
                f"{self.card.input.patch_shape} px; they must be the same"
            )

    def on_cpu(self) -> Model:
        """Return the model on the CPU: itself where it is there, else a copy."""
        tensors = [*self.network.parameters(), *self.network.buffers(), *(t for t in (self.probe,) if t is not None)]
        if all(tensor.device.type == "cpu" for tensor in tensors):
            return self
        probe = None if self.probe is None else self.probe.cpu()
        return replace(self, network=copy.deepcopy(self.network).cpu(), probe=probe)

    def __repr__(self) -> str:
        """Name, version and what it takes."""
        card = self.card
        frame, patch = card.input.frame_shape, card.input.patch_shape
        return (
            f"<Model {card.name} {card.version}: {card.family}, {frame[0]}x{frame[1]} counts to "
            f"{patch[0]}x{patch[1]} object px>"
        )


def new_card(config: FamilyConfig, name: str, version: str, contract: Mapping[str, Any], **promises: Any) -> ModelCard:
    """Make a card for a network's configuration; the digest of the weights is for `save_model` to fill in.

    `contract` is what else `InputContract` says (``object_pixel_m``, ``counts_per_frame``, …), `promises` what else
    `ModelCard` does; no probe by default. Raises ValidationError for values that do not go together.
    """
    frame, patch = config.frame_size, config.patch_size
    return ModelCard(
        name=name,
        version=version,
        family=config.family,
        network=config.model_dump(mode="json"),
        input=InputContract(frame_shape=(frame, frame), patch_shape=(patch, patch), **contract),
        **{"probe": None, "weights_sha256": "0" * 64, **promises},
    )


def save_model(
    folder: str | os.PathLike[str],
    network: nn.Module,
    card: ModelCard,
    probe: NDArray[np.complexfloating] | Tensor | None = None,
    weight: NDArray[np.floating] | None = None,
) -> ModelCard:
    """Write a model's folder.

    Each file appears whole or not at all, the card last: a reader in between is told that weights and card differ.

    Parameters
    ----------
    folder : path
        Made when it does not exist.
    network : torch.nn.Module
        Whose state dict is kept.
    card : ModelCard
        Its ``weights_sha256`` is replaced by the digest of the file written.
    probe : (N, N) complex, optional
        Square-root photons.
    weight : (h, w) float, optional
        How much a patch's pixels count in a mosaic.

    Returns
    -------
    ModelCard
        The card as written.

    Raises
    ------
    ValueError
        When the card describes another probe than the one given.
    """
    folder = Path(folder)
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    if probe is not None:
        given = probe.detach().cpu().numpy() if isinstance(probe, Tensor) else probe
        array = np.ascontiguousarray(given, dtype=np.complex64)
        digest = hashlib.sha256(array.tobytes()).hexdigest()
        if card.probe is not None and card.probe.sha256 != digest:
            raise ValueError(
                f"save_model: the card of {card.name!r} describes another probe (sha256 {card.probe.sha256[:12]}…, "
                f"given {digest[:12]}…); make its reference with ProbeReference.from_probe"
            )
        for name, part in zip(_PROBE_PARTS, (array.real, array.imag), strict=True):
            tensors[name] = torch.from_numpy(np.ascontiguousarray(part))
    elif card.probe is not None:
        raise ValueError(f"save_model: the card of {card.name!r} names a probe, but none was given")
    if weight is not None:
        tensors[_WEIGHT] = torch.from_numpy(np.array(weight, dtype=np.float32))
    # One entry: safetensors writes several in any order, and the same model would not make the same file.
    data = write_tensors(tensors, metadata={"format": "pt"})
    written = ModelCard.model_validate({**card.model_dump(), "weights_sha256": hashlib.sha256(data).hexdigest()})
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / WEIGHTS_FILE, data, durable=True)
    written.save(folder)
    return written


def load_model(name_or_path: str | os.PathLike[str], device: str | torch.device = "auto") -> Model:
    """Load a model by name, ``name/version`` or folder.

    Parameters
    ----------
    name_or_path : str or path
        See `bluesky_ptychonn.card.find_model`.
    device : str or torch.device
        Where the network goes, see `choose_device`.

    Raises
    ------
    ValueError
        In words: unknown name, weights missing, changed or cut short, or made for another network.
    """
    folder = find_model(name_or_path)
    card = ModelCard.load(folder)
    chosen = choose_device(device)
    tensors = _verified_tensors(folder / WEIGHTS_FILE, card)
    probe = _take_probe(tensors, card)
    weight = tensors.pop(_WEIGHT, None)
    config = {"family": card.family, **card.network}
    with torch.device("meta"):  # a stranger's card may claim any size: it takes no memory before the weights are seen
        _compare(build_network(config).state_dict(), tensors, card)
    network = build_network(config)
    network.load_state_dict(tensors)
    network.to(chosen).eval().requires_grad_(False)
    return Model(card, network, None if probe is None else probe.to(chosen), weight)


def _verified_tensors(path: Path, card: ModelCard) -> dict[str, Tensor]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"model {card.name!r}: its weights are missing, {path} does not exist") from None
    check_digest(card, data, str(path))
    try:
        return read_tensors(data)
    except SafetensorError as error:
        raise ValueError(f"model {card.name!r}: {path} is not a safetensors file: {error}") from None


def _take_probe(tensors: dict[str, Tensor], card: ModelCard) -> Tensor | None:
    """Take the probe out of the tensors and compare it with the card's reference."""
    real, imag = (tensors.pop(name, None) for name in _PROBE_PARTS)
    if real is None or imag is None:
        if card.probe is not None:
            raise ValueError(f"model {card.name!r}: its card names a probe, but {WEIGHTS_FILE} holds none")
        return None
    probe = torch.complex(real, imag)
    if card.probe is not None:
        digest = hashlib.sha256(probe.numpy().tobytes()).hexdigest()
        if digest != card.probe.sha256:
            raise ValueError(
                f"model {card.name!r}: the probe in {WEIGHTS_FILE} (sha256 {digest[:12]}…) is not the one its card "
                f"describes ({card.probe.sha256[:12]}…)"
            )
    return probe


def _compare(expected: dict[str, Tensor], tensors: dict[str, Tensor], card: ModelCard) -> None:
    """Say how weights differ from those of the network that the card describes (ValueError)."""
    wrong = [f"lacks {name}" for name in expected if name not in tensors]
    wrong += [f"has {name}, which the network has not" for name in tensors if name not in expected]
    wrong += [
        f"{name} is {tuple(tensors[name].shape)}, the network's is {tuple(value.shape)}"
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"model {card.name!r}: its weights are for another network than its card describes: "
            f"{'; '.join(wrong[:3])}{more}"
        )
