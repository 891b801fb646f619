"""The card of a new model: what follows from its network, and what whoever makes it adds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bluesky_ptychonn.card import InputContract, ModelCard
from bluesky_ptychonn.recon.networks.base import FamilyConfig


def new_card(config: FamilyConfig, name: str, version: str, contract: Mapping[str, Any], **promises: Any) -> ModelCard:
    """Make a card; the digest of the weights is for `save_model` to fill in.

    Parameters
    ----------
    config : FamilyConfig
        Of its network: family, frame and patch follow from it.
    name, version : str
        What users call it.
    contract : mapping
        What else `InputContract` says: ``object_pixel_m``, ``counts_per_frame``, …
    **promises
        What else `ModelCard` says; no probe by default.

    Raises
    ------
    pydantic.ValidationError
        For values that do not go together.
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
