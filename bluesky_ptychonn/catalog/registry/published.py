"""What the catalog knows of a model version: whose card, and whether its upload was finished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bluesky_ptychonn.card import ModelCard
from bluesky_ptychonn.recon.models.library import next_version, same_model

COMPLETE, UNFINISHED = "complete", "unfinished"


@dataclass(frozen=True)
class Published:
    """A model version in the catalog.

    Attributes
    ----------
    name, version : str
    state : str
        ``complete``, or ``unfinished`` while it is uploaded or where that was interrupted.
    champion : bool
        Whether it is what `Registry.fetch` gives without a version.
    card : ModelCard or None
        None where it cannot be read.
    size : int
        Of its weights, bytes.
    time : str
        When it was published, ISO 8601.
    by : str
        Who published it.
    """

    name: str
    version: str
    state: str
    champion: bool
    card: ModelCard | None
    size: int
    time: str
    by: str

    @classmethod
    def from_metadata(cls, name: str, version: str, metadata: Mapping[str, Any], champion: Any) -> Published:
        """Read a version's metadata, whatever is in it; `champion` is the version that its family names."""
        state, size = state_of(metadata), metadata.get("bytes")
        return cls(
            name=name,
            version=version,
            state=state,
            champion=version == champion and state == COMPLETE,
            card=_card_or_none(metadata),
            size=size if isinstance(size, int) else 0,
            time=str(metadata.get("time", "")),
            by=str(metadata.get("by", "")),
        )


def state_of(metadata: Mapping[str, Any]) -> str:
    """Whether an upload was finished: ``complete`` or ``unfinished``."""
    return COMPLETE if metadata.get("state") == COMPLETE else UNFINISHED


def _card_or_none(metadata: Mapping[str, Any]) -> ModelCard | None:
    try:
        return ModelCard.from_values(metadata.get("card"), "catalog")
    except ValueError:
        return None


def find_version(card: ModelCard, nodes: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """Version for a model among those of its name, and the state it has there: "" for a new one."""
    for wanted in (COMPLETE, UNFINISHED):
        for version, metadata in nodes.items():
            there = _card_or_none(metadata)
            if there is not None and state_of(metadata) == wanted and same_model(there, card):
                return version, wanted
    return next_version(nodes, card.version), ""
