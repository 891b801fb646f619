"""Which events a raw run has, here and in the catalog."""

from __future__ import annotations

import itertools
from array import array
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.catalog.connection.http import TiledNode

_TABLE = "internal"  # TiledWriter's; several of them, numbered, where a stream has more than a thousand columns


class EventCounter:
    """Counts a run's events, by stream.

    Examples
    --------
    >>> counter = EventCounter()
    >>> counter.add("descriptor", {"uid": "d", "name": "primary"})
    >>> for seq_num in (1, 2, 2):  # a plan that was paused and resumed says a number twice
    ...     counter.add("event", {"descriptor": "d", "seq_num": seq_num})
    >>> counter.compare({"primary": [2, 1, 2]}), counter.compare({"primary": [1, 2]})
    ('', '3 events of primary were written and 2 are read back')
    """

    def __init__(self) -> None:
        self._streams: dict[str, str] = {}
        self._seq_nums: defaultdict[str, array[int]] = defaultdict(lambda: array("q"))

    def add(self, name: str, doc: Mapping[str, Any]) -> None:
        """Count one document."""
        if name == "descriptor":
            self._streams[doc["uid"]] = doc["name"]
        elif name == "event":
            self._seq_nums[self._streams[doc["descriptor"]]].append(doc["seq_num"])
        elif name == "event_page":
            self._seq_nums[self._streams[doc["descriptor"]]].extend(doc["seq_num"])

    @property
    def counts(self) -> dict[str, int]:
        """Events of each stream."""
        return {stream: len(numbers) for stream, numbers in self._seq_nums.items()}

    def compare(self, found: Mapping[str, Any]) -> str:
        """Say in words what a catalog's run lacks or has twice; nothing where it has each event once."""
        wrong = []
        for stream in sorted({*self._seq_nums, *found}):
            ours, theirs = np.sort(self._numbers(stream)), np.sort(np.asarray(found.get(stream, ()), np.int64))
            if not np.array_equal(ours, theirs):
                wrong.append(f"{len(ours)} events of {stream} were written and {len(theirs)} are read back")
        return "; ".join(wrong)

    def foreign(self, found: Mapping[str, Any]) -> int:
        """How many of the catalog's events this run does not have."""
        return sum(len(np.setdiff1d(theirs, self._numbers(stream))) for stream, theirs in found.items())

    def _numbers(self, stream: str) -> NDArray[np.int64]:
        return np.asarray(self._seq_nums.get(stream, ()), np.int64)


def read_back(runs: Any, uid: str) -> dict[str, NDArray[np.int64]]:
    """Sequence numbers of all events of a catalog's run, by stream. Two requests, and two more for each stream.

    Not through Tiled's own table client: that brings dask with it, whose threads a session that ends has no more.
    """
    found = {}
    for stream in TiledNode(runs, (uid,)).children():
        node = TiledNode(runs, (uid, stream))
        if table := _table(node):
            found[stream] = node.read_column(table, "seq_num").astype(np.int64)
    return found


def _table(stream: TiledNode) -> str:
    """Name of the table that has the sequence numbers; empty where there is none."""
    for name in itertools.chain([_TABLE], (f"{_TABLE}_{number}" for number in itertools.count())):
        node = stream.attributes(name)
        if node is not None and "seq_num" in node["structure"].get("columns", ()):
            return name
        if node is None and name != _TABLE:
            break
    return ""
