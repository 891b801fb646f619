"""What reconstructions and labels have in common: arrays and a table, found by the run they are of."""

from __future__ import annotations

import itertools
from typing import Any

from tiled.client.container import Container

from bluesky_ptychonn.catalog.connection.connect import PROCESSED, connect_catalog
from bluesky_ptychonn.catalog.connection.http import TiledNode
from bluesky_ptychonn.catalog.connection.layout import runs_path


class DerivedData(Container):  # type: ignore[misc]  # Tiled is not typed
    """Something made from a run, in the catalog."""

    @property
    def _uid(self) -> str:
        return str(self.path_parts[-1])

    @property
    def _node(self) -> TiledNode:
        """For requests of our own: Tiled's table client would import dask."""
        return TiledNode(self)


def find_derived(catalog: Any, spec: str, raw: Any, limit: int, **conditions: Any) -> list[Any]:
    """Find what was derived from runs, newest first, see `reconstructions`; a condition of None is none."""
    from tiled.queries import Key, SpecsQuery

    if isinstance(raw, int):
        conditions["raw.scan_id"] = raw
    elif raw is not None:
        conditions["raw.uid"] = raw if isinstance(raw, str) else raw.metadata["start"]["uid"]
    root = connect_catalog(catalog)
    try:
        found = root[PROCESSED].search(SpecsQuery(include=[spec], exclude=[]))
    except KeyError:
        runs_path(root)  # refuses what is no place of runs; elsewhere nothing was made yet
        return []
    for key, value in conditions.items():
        if value is not None:
            found = found.search(Key(key) == value)
    return list(itertools.islice(found.sort(("time_created", -1)).values(), limit))
