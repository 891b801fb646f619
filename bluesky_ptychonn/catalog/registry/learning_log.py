"""What a learner decided and why, run by run and candidate by candidate: a table in the catalog, ``learning/<name>``.

The history of champions (`decisions`) holds what changed the champion and nothing else; here is all that was
considered. A row takes about a kilobyte, so the runs of years stay a few megabytes, read in one request.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, get_args

from bluesky_ptychonn.catalog.connection.connect import connect_catalog
from bluesky_ptychonn.catalog.connection.errors import CatalogUnavailableError
from bluesky_ptychonn.catalog.connection.http import TiledNode
from bluesky_ptychonn.catalog.connection.layout import LEARNING
from bluesky_ptychonn.catalog.registry.decisions import user_name
from bluesky_ptychonn.files import as_json
from bluesky_ptychonn.recon.models.library import check_name

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["taken", "passed over", "promote", "keep"]
_COLUMNS = ("key", "time", "kind", "champion", "version", "reason", "by", "numbers")
_ATTEMPTS = 5


@dataclass(frozen=True)
class LearningRecord:
    """One decision of a learner.

    Parameters
    ----------
    key : str
        Uid of the run, or the round and the candidate's digest; no key is there twice.
    kind : {"taken", "passed over", "promote", "keep"}
        Of a run, whether it is learned from; of a candidate, whether it became champion.
    champion : str
        Version that was champion when it was decided.
    reason : str
        In words.
    version : str
        Of the candidate; empty where it was not published, and for a run.
    numbers : dict
        What it was decided on, JSON values.
    time : str
        ISO 8601, UTC.
    by : str
        Who decided.
    """

    key: str
    kind: Kind
    champion: str
    reason: str
    version: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat())
    by: str = field(default_factory=user_name)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"learning: kind {self.kind!r}; allowed: {', '.join(get_args(Kind))}")
        if not self.reason.strip():
            raise ValueError(f"learning: {self.kind} of {self.key!r} needs a reason, in words")
        object.__setattr__(self, "numbers", as_json(self.numbers))

    def __str__(self) -> str:
        """One line for people."""
        what = f"run {self.key[:8]}" if self.kind in ("taken", "passed over") else "candidate"
        named = f" {self.version}" if self.version else ""
        return f"{self.time[:19]} {what}{named}, champion {self.champion}: {self.kind}: {self.reason}"


class LearningLog:
    """The decisions of the learner of the model `name`, in whatever catalog `connect` takes."""

    def __init__(self, catalog: Any, name: str, before_request: Callable[[], None] | None = None) -> None:
        self._name = check_name(name)
        root = connect_catalog(catalog)
        self._root = TiledNode(root, (), before_request)
        self._node = TiledNode(root, (LEARNING,), before_request)

    def read(self) -> tuple[LearningRecord, ...]:
        """All of them, oldest first; none where there is no table yet."""
        if self._node.attributes(self._name) is None:
            return ()
        rows = self._node.read_rows(self._name, _schema()).to_pylist()
        return tuple(_from_row(row) for row in sorted(rows, key=lambda row: row["number"]))

    def add(self, record: LearningRecord) -> bool:
        """Add a decision; False where its key is there already, from an attempt whose answer was lost.

        ConnectionError when the catalog does not answer.
        """
        for attempt in range(_ATTEMPTS):
            there = self.read()
            if any(item.key == record.key for item in there):
                return False
            if not there:
                self._root.create(LEARNING)
                self._node.create_table(self._name, _schema(), "number")
            try:
                self._node.append_rows(self._name, _row(len(there), record))
            except CatalogUnavailableError:
                # Tiled has no better answer to a number that somebody else took just now.
                if attempt == _ATTEMPTS - 1 or len(self.read()) == len(there):
                    raise
            else:
                return True
        return False


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([pa.field("number", pa.int64()), *(pa.field(name, pa.string()) for name in _COLUMNS)])


def _row(number: int, record: LearningRecord) -> pa.Table:
    import pyarrow as pa

    values = {**vars(record), "numbers": json.dumps(record.numbers, allow_nan=False)}
    return pa.table({"number": [number], **{name: [values[name]] for name in _COLUMNS}}, schema=_schema())


def _from_row(row: Mapping[str, Any]) -> LearningRecord:
    return LearningRecord(
        **{name: row[name] for name in _COLUMNS if name != "numbers"}, numbers=json.loads(row["numbers"])
    )
