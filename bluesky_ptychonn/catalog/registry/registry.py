"""Models in the catalog: named, versioned, verified, with one champion for each name and the reasons for it.

::

    models/<name>            metadata: champion, history of decisions
    models/<name>/<version>  spec PtychoModel 1.0, metadata: card, state, bytes, time, by
    models/<name>/<version>/weights   (n,) uint8, the safetensors file
    models/<name>/<version>/metrics   table: losses, rates and held-out errors of the training, where they are known
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bluesky_ptychonn.card import ModelCard, find_model
from bluesky_ptychonn.catalog.connection.connect import MODELS, connect_catalog
from bluesky_ptychonn.catalog.connection.errors import CatalogUnavailableError
from bluesky_ptychonn.catalog.connection.http import TiledNode
from bluesky_ptychonn.catalog.connection.layout import create_in
from bluesky_ptychonn.catalog.registry.decisions import Decision, champion_before, numbers_of, user_name
from bluesky_ptychonn.catalog.registry.learning_log import LearningLog, LearningRecord
from bluesky_ptychonn.catalog.registry.published import COMPLETE, UNFINISHED, Published, find_version, state_of
from bluesky_ptychonn.catalog.registry.training_metrics import get_metrics, put_metrics
from bluesky_ptychonn.recon.models.library import (
    MOST_WEIGHTS,
    check_digest,
    check_name,
    kept,
    place,
    read_folder,
    users_folder,
)
from bluesky_ptychonn.recon.training.metrics_table import METRICS_FILE, Row, read_rows, write_rows

SPEC = {"name": "PtychoModel", "version": "1.0"}
WEIGHTS = "weights"


class Registry:
    """The models in a catalog.

    Everything here may be repeated after an interruption: what was done is found, what was not is done.

    Parameters
    ----------
    catalog : CatalogServer, path, str, or Tiled client
        See `bluesky_ptychonn.catalog.connection.server.connect`.
    api_key : str, optional
        Key for an address.
    before_request : callable, optional
        Called before every request.

    Examples
    --------
    >>> registry = Registry(server)  # doctest: +SKIP
    >>> version = registry.publish("models/my-probe")  # doctest: +SKIP
    >>> registry.promote("my-probe", version, "halves the error")  # doctest: +SKIP
    >>> LiveReconstruction(registry.fetch("my-probe"), server)  # doctest: +SKIP
    """

    def __init__(
        self, catalog: Any, api_key: str | None = None, *, before_request: Callable[[], None] | None = None
    ) -> None:
        self._root = connect_catalog(catalog, api_key)
        self._before_request = before_request
        self._models = self._at()

    def __repr__(self) -> str:
        return f"<Registry {self._root.uri}, {MODELS}/>"

    def _at(self, *path: str) -> TiledNode:
        return TiledNode(self._root, [MODELS, *path], self._before_request)

    # -- looking

    def list(self) -> tuple[Published, ...]:
        """Every version of every model, oldest first within a name."""
        found = []
        for name, family in sorted(self._models.nodes().items()):
            for version, metadata in self._at(name).nodes().items():
                found.append(Published.from_metadata(name, version, metadata, family.get("champion")))
        return tuple(found)

    def card(self, name: str, version: str | None = None) -> ModelCard:
        """Card of a version, by default of the champion.

        Raises
        ------
        ValueError
            In words: no such model or version, an upload that was not finished, or no champion.
        """
        return self._complete(name, version)[0]

    def champion(self, name: str) -> str | None:
        """Version that is the champion, None before the first promotion."""
        return _champion_of(self._family(name))

    def decided(self, name: str) -> str | None:
        """As `champion`, and None too for a name that the catalog does not have. One request."""
        found = self._at(check_name(name)).attributes()
        return None if found is None else _champion_of(found["metadata"])

    def history(self, name: str) -> tuple[Decision, ...]:
        """Decisions about the champion, oldest first."""
        return tuple(Decision.from_metadata(values) for values in self._family(name).get("history", []))

    def learning(self, name: str) -> tuple[LearningRecord, ...]:
        """Read what a learner decided on runs and candidates, oldest first; `history` has what changed the champion."""
        return LearningLog(self._root, name, self._before_request).read()

    # -- moving models

    def publish(self, model: str | Path, *, by: str | None = None) -> str:
        """Upload a model, read it back, and only then call it complete.

        Parameters
        ----------
        model : path or str
            Folder, name, or ``name/version`` of a model of this machine.
        by : str, optional
            Who publishes; the user's name by default.

        Returns
        -------
        str
            Its version in the catalog: the card's, or the next number where that is taken by another model. A model
            that is there already keeps its version, and an interrupted upload of it is finished.

        Raises
        ------
        ValueError
            In words, for a model that is damaged or unknown here.
        """
        folder = find_model(model)
        card, data = read_folder(folder)
        family = self._at(check_name(card.name))
        undecided: dict[str, Any] = {"champion": None, "history": []}
        made = create_in(self._models, self._root, MODELS, card.name, metadata=undecided)
        if not made and not family.attributes():
            raise ValueError(
                f"model {card.name!r}: the catalog has models of this name that this key does not show, another's. "
                "Publish it under another name, or have that user share the name"
            )
        while True:
            version, state = find_version(card, family.nodes())
            if state == COMPLETE:
                return version
            about = {
                "card": card.model_copy(update={"version": version}).model_dump(mode="json"),
                "state": UNFINISHED,
                "bytes": len(data),
                "time": datetime.now(UTC).isoformat(),
                "by": by or user_name(),
            }
            if family.create(version, metadata=about, specs=[SPEC]) or state == UNFINISHED:
                break  # else somebody took this version just now: look again
        node = self._at(card.name, version)
        node.put_bytes(WEIGHTS, data)
        check_digest(card, node.get_bytes(WEIGHTS, len(data)), f"what the catalog gave back for version {version!r}")
        put_metrics(node, _metrics_in(folder))
        node.update({"state": COMPLETE, "time": datetime.now(UTC).isoformat()})
        return version

    def fetch(self, name: str, version: str | None = None, to: str | Path | None = None) -> Path:
        """Download a version, by default the champion, checked against its card's digest.

        Parameters
        ----------
        name, version : str
        to : path, optional
            Folder of models; by default the user's, where models are then found by name.

        Returns
        -------
        Path
            ``<to>/<name>/<version>/``, whole or not there at all. A good copy that is there is not downloaded again.

        Raises
        ------
        ValueError
            In words: no such model or version, unfinished, changed in the catalog, or another model in its place.
        """
        card, size = self._complete(name, version)
        root = users_folder() if to is None else Path(to).expanduser()
        there = kept(card, root)
        if there is not None:
            return there
        data = self._at(name, card.version).get_bytes(WEIGHTS, size)
        check_digest(card, data, f"version {card.version!r} in the catalog")
        folder = place(card, data, root)
        if rows := get_metrics(self._at(name, card.version)):
            write_rows(folder / METRICS_FILE, rows)
        return folder

    def metrics(self, name: str, version: str | None = None) -> tuple[Row, ...]:
        """Rows of a version's training, by default of the champion's: column to number, NaN where there is none.

        Raises
        ------
        ValueError
            As from `card`.
        """
        return tuple(get_metrics(self._at(name, self._complete(name, version)[0].version)))

    # -- deciding

    def promote(
        self,
        name: str,
        version: str,
        reason: str,
        numbers: Mapping[str, Any] | None = None,
        *,
        by: str | None = None,
        over: str | None = None,
    ) -> Decision:
        """Make a version the champion, and keep who decided it, why, and on which numbers.

        Parameters
        ----------
        name, version : str
        reason : str
            In words; not empty.
        numbers : mapping, optional
            JSON values; by default the measured errors on the cards of this version and of the champion until now.
        by : str, optional
            Who decides; the user's name by default.
        over : str, optional
            Champion that the numbers compare it with; where that is another by now, it is not promoted.

        Returns
        -------
        Decision
            As recorded. Where the version is the champion already, the decision that made it so.

        Raises
        ------
        ValueError
            In words: no such version, an unfinished one, no reason, or a champion that changed meanwhile.
        """
        card, _ = self._complete(name, version)
        before = self.champion(name)
        if before == version and (history := self.history(name)):
            return history[-1]
        if over is not None and before != over:
            raise ValueError(f"model {name!r}: its champion became {before!r} meanwhile, not {over!r}; decide again")
        if numbers is None:
            numbers = {"candidate": numbers_of(card)}
            if before is not None:
                numbers["champion"] = numbers_of(self._complete(name, before)[0])
        return self._decide(name, Decision.make("promote", version, before, reason, numbers, by))

    def rollback(self, name: str, reason: str = "rolled back", *, by: str | None = None) -> Decision:
        """Make the champion before this one the champion again; each call undoes one promotion that stands.

        Raises
        ------
        ValueError
            When there was none before.
        """
        before, back = self.champion(name), champion_before(self.history(name))
        if back is None:
            raise ValueError(
                f"model {name!r}: no champion to go back to; the champion is {before or 'not decided'}, and none was "
                "before it"
            )
        card, _ = self._complete(name, back)
        numbers = {"candidate": numbers_of(card)}
        return self._decide(name, Decision.make("rollback", back, before, reason, numbers, by))

    def _decide(self, name: str, decision: Decision) -> Decision:
        """Write champion and decision in one request that fails where the champion is not the one decided about."""
        try:
            self._at(name).amend(
                [
                    {"op": "test", "path": "/champion", "value": decision.before},
                    {"op": "add", "path": "/history/-", "value": decision.as_metadata()},
                    {"op": "replace", "path": "/champion", "value": decision.version},
                ]
            )
        except CatalogUnavailableError:  # Tiled has no better answer to a test that fails, or ours was lost
            if decision not in self.history(name):
                now = self.champion(name)
                if now == decision.before:
                    raise
                raise ValueError(
                    f"model {name!r}: its champion became {now!r} meanwhile; look at its history and decide again"
                ) from None
        return decision

    # -- finding

    def _family(self, name: str) -> dict[str, Any]:
        found = self._at(check_name(name)).attributes()
        if found is None:
            names = ", ".join(sorted(self._models.nodes())) or "none"
            raise ValueError(f"model {name!r} is not in this catalog; there are: {names}. Publish it first")
        return dict(found["metadata"])

    def _complete(self, name: str, version: str | None) -> tuple[ModelCard, int]:
        """Card of a finished version, and the size of its weights in bytes."""
        if version is None:
            version = self.champion(name)
            if version is None:
                raise ValueError(
                    f"model {name!r} has no champion yet: name a version ({self._versions(name)}) or promote one"
                )
        found = self._at(check_name(name), check_name(version, "version")).attributes()
        if found is None:
            self._family(name)
            raise ValueError(f"model {name!r} has no version {version!r} in this catalog; {self._versions(name)}")
        metadata = found["metadata"]
        if state_of(metadata) != COMPLETE:
            raise ValueError(
                f"model {name!r}, version {version!r}: its upload was not finished; publish it again, that goes on "
                "where it stopped"
            )
        card = ModelCard.from_values(metadata.get("card"), f"model {name!r}, version {version!r} in the catalog")
        size = metadata.get("bytes")
        if (card.name, card.version) != (name, version) or not isinstance(size, int) or not 0 < size <= MOST_WEIGHTS:
            raise ValueError(
                f"model {name!r}, version {version!r}: its card in the catalog is of {card.name!r} {card.version!r}, "
                f"{size} bytes; it was changed there"
            )
        return card, size

    def _versions(self, name: str) -> str:
        nodes = self._at(name).nodes()
        known = [v if state_of(m) == COMPLETE else f"{v} (unfinished)" for v, m in nodes.items()]
        return f"there are: {', '.join(known) or 'none'}"


def _metrics_in(folder: Path) -> list[Row]:
    return read_rows(folder / METRICS_FILE) if (folder / METRICS_FILE).is_file() else []


def _champion_of(family: Mapping[str, Any]) -> str | None:
    champion = family.get("champion")
    return None if champion is None else str(champion)
