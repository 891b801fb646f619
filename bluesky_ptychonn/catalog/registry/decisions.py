"""Which version of a model is its champion, and why: a list of decisions, the last one standing."""

from __future__ import annotations

import getpass
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from bluesky_ptychonn.card import ModelCard


@dataclass(frozen=True)
class Decision:
    """One version became the champion.

    Parameters
    ----------
    version : str
        The champion from then on.
    before : str or None
        The champion until then; kept in the catalog as ``from``.
    kind : str
        ``promote`` or ``rollback``.
    time : str
        ISO 8601, UTC.
    by : str
        Who decided.
    reason : str
        In words.
    numbers : dict
        What it was decided on, JSON values.
    """

    version: str
    before: str | None
    kind: str
    time: str
    by: str
    reason: str
    numbers: dict[str, Any] = field(default_factory=dict)

    def as_metadata(self) -> dict[str, Any]:
        """As it is kept in the catalog."""
        values = {name: value for name, value in vars(self).items() if name != "before"}
        return {**values, "from": self.before}

    @classmethod
    def from_metadata(cls, values: Mapping[str, Any]) -> Decision:
        """Read what `as_metadata` made; ValueError when something is missing."""
        try:
            texts = {name: str(values[name]) for name in ("version", "kind", "time", "by", "reason")}
            before = values["from"]
            return cls(**texts, before=None if before is None else str(before), numbers=dict(values["numbers"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"models: a decision in the catalog cannot be read ({error!r}): {values!r}") from None

    @classmethod
    def make(
        cls, kind: str, version: str, before: str | None, reason: str, numbers: Mapping[str, Any], by: str | None
    ) -> Decision:
        """Decide now.

        Raises
        ------
        ValueError
            For a decision without a reason, or numbers that are not JSON values.
        """
        if not reason.strip():
            raise ValueError(f"models: {kind} needs a reason, in words; it is kept with the decision")
        try:
            kept = json.loads(json.dumps(dict(numbers), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"models: the numbers of a decision must be finite JSON values: {error}") from None
        return cls(version, before, kind, datetime.now(UTC).isoformat(), by or user_name(), reason.strip(), kept)


def user_name() -> str:
    """Name of the user at work."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return "unknown"


def champion_before(history: Sequence[Decision]) -> str | None:
    """Champion that a rollback returns to: the one that the present champion's promotion replaced.

    Several rollbacks go further back, each undoing one promotion that stands.
    """
    standing: list[str] = []
    for decision in history:
        if decision.kind == "rollback":
            standing = standing[:-1]
        else:
            standing.append(decision.version)
    return standing[-2] if len(standing) > 1 else None


def numbers_of(card: ModelCard) -> dict[str, Any]:
    """Measured errors that a card promises: what a promotion is decided on where nothing else is given."""
    numbers: dict[str, Any] = dict(card.held_out)
    if card.sampling:
        numbers["step_m"] = [point.step_m for point in card.sampling]
        numbers["phase_mae_rad"] = [point.phase_mae_rad for point in card.sampling]
    return numbers
