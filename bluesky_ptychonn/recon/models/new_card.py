"""The card of a new model: what follows from its network, and what whoever makes it adds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bluesky_ptychonn.card import InputContract, ModelCard
from bluesky_ptychonn.recon.networks.base import FamilyConfig


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
