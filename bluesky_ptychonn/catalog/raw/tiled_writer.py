"""One raw run's documents through TiledWriter, in as few requests as they can go."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

_MANY = 1 << 30


class _Batch(int):
    """A batch size that changes while TiledWriter works; all it does with one is compare."""

    size = 1

    def __le__(self, other: int) -> bool:
        return self.size <= other


class BatchedTiledWriter:
    """One run into TiledWriter: what comes in one turn goes out in one request for each table or array."""

    def __init__(self, runs: Any, uid: str) -> None:
        from bluesky_tiled_plugins import TiledWriter
        from bluesky_tiled_plugins.writing.tiled_writer import RunNormalizer

        self._uid = uid
        self._batch = _Batch(1)
        # All arrays as arrays: a server whose tables are in SQLite (ours) refuses a table with lists in it.
        self._writer = TiledWriter(runs, normalizer=None, batch_size=self._batch, max_array_size=0)
        self._held: list[tuple[str, dict[str, Any]]] = []
        self._normalizer = RunNormalizer()
        self._normalizer.subscribe(lambda name, doc: self._held.append((name, doc)))

    def put(self, name: str, doc: dict[str, Any]) -> None:
        """Bring one document to today's schema and hold it until `flush`."""
        self._normalizer(name, doc)

    def flush(self) -> None:
        """Write what is held."""
        held, self._held = self._held, []
        for data, group in itertools.groupby(held, key=lambda item: item[0] in ("event", "stream_datum")):
            if data:
                self._write_data(list(group))
                continue
            for name, doc in group:
                # The normalizer drops whose resource it is, and TiledWriter's router asks.
                self._write(name, {"run_start": self._uid, **doc} if name == "stream_resource" else doc)

    def _write_data(self, documents: Iterable[tuple[str, dict[str, Any]]]) -> None:
        events = [doc for name, doc in documents if name == "event"]
        last = {doc["descriptor"]: number for number, doc in enumerate(events)}
        for number, doc in enumerate(events):
            self._write("event", doc, 1 if last[doc["descriptor"]] == number else _MANY)
        for doc in _merged([doc for name, doc in documents if name == "stream_datum"]):
            self._write("stream_datum", doc)

    def _write(self, name: str, doc: dict[str, Any], batch: int = 1) -> None:
        self._batch.size = batch
        self._writer(name, doc)


def _merged(datums: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join stream datums that follow one another."""
    from bluesky_tiled_plugins.writing.tiled_writer import concatenate_stream_datums

    merged: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for doc in datums:
        known = merged.setdefault((doc["stream_resource"], doc["descriptor"]), [])
        if known and all(known[-1][span]["stop"] == doc[span]["start"] for span in ("indices", "seq_nums")):
            known[-1] = concatenate_stream_datums(known[-1], doc)
        else:
            known.append(doc)
    return [doc for known in merged.values() for doc in known]
