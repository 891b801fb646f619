"""What reconstructions and labels have in common: arrays and a table, found by the run they are of."""

from __future__ import annotations

import html
import io
import itertools
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiled.client.container import Container

from bluesky_ptychonn.catalog.connection.connect import PROCESSED, connect_catalog
from bluesky_ptychonn.catalog.connection.http import TiledNode
from bluesky_ptychonn.catalog.connection.layout import runs_path
from bluesky_ptychonn.catalog.results.overview import draw_overview


class DerivedData(Container):  # type: ignore[misc]  # Tiled is not typed
    """Something made from a run, in the catalog."""

    @property
    def _uid(self) -> str:
        return str(self.path_parts[-1])

    @property
    def _node(self) -> TiledNode:
        """For requests of our own: Tiled's table client would import dask."""
        return TiledNode(self)

    def _panels(self) -> Mapping[str, NDArray[np.float32]]:
        """Pictures of the overview; LookupError where there are none yet."""
        raise NotImplementedError

    def _repr_png_(self) -> bytes | None:
        """Show its overview where there is something to show, in a notebook or a Qt console."""
        try:
            overview = draw_overview(self._panels())
        except (LookupError, ConnectionError):
            return None  # the words beside it say how things stand
        from PIL import Image

        Image.fromarray(overview).save(file := io.BytesIO(), format="png")
        return file.getvalue()

    def _repr_html_(self) -> str:
        """Show what `repr` says, above the overview."""
        png = self._repr_png_()
        picture = "" if png is None else f'<br><img src="data:image/png;base64,{b64encode(png).decode()}">'
        return f"<div><code>{html.escape(repr(self))}</code>{picture}</div>"


class Found(list[Any]):
    """What was found in a catalog, newest first: a list that shows itself a line each."""

    def __repr__(self) -> str:
        return "[" + ",\n ".join(map(repr, self)) + "]"

    def _repr_html_(self) -> str:
        return f"<ol start=0>{''.join(f'<li><code>{html.escape(repr(one))}</code></li>' for one in self)}</ol>"


def find_derived(
    catalog: Any, spec: str, raw: Any, limit: int, *, unlike: str | None = None, **conditions: Any
) -> Found:
    """Find what was derived from runs, newest first, see `reconstructions`; a condition of None is none.

    Those with the status `unlike` are left out.
    """
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
        return Found()
    for key, value in conditions.items():
        if value is not None:
            found = found.search(Key(key) == value)
    if unlike is not None:
        found = found.search(Key("status") != unlike)
    return Found(itertools.islice(found.sort(("time_created", -1)).values(), limit))
