"""The metrics of a training as a table in the catalog, beside the weights they belong to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bluesky_ptychonn.catalog.connection.http import TiledNode
from bluesky_ptychonn.files import as_json
from bluesky_ptychonn.recon.training.metrics_table import Row, columns_of

if TYPE_CHECKING:
    import pyarrow as pa

METRICS = "metrics"
_KEY = "step"


def put_metrics(node: TiledNode, rows: Sequence[Row]) -> None:
    """Write the table, over what an earlier try left; nothing where there are no rows. Two requests, or four."""
    import pyarrow as pa

    if not rows:
        return
    schema = _schema(columns_of(rows))
    node.create_table(METRICS, schema, _KEY, replace=True)
    # As JSON: SQL knows no NaN either.
    columns = [pa.array(as_json([row[field.name] for row in rows]), field.type) for field in schema]
    node.append_rows(METRICS, pa.table(columns, schema=schema))


def get_metrics(node: TiledNode) -> list[Row]:
    """Read the table; no rows where there is none. Two requests."""
    found = node.attributes(METRICS)
    if found is None:
        return []
    table = node.read_rows(METRICS, _schema(found["structure"]["columns"]))
    return [{name: math.nan if cell is None else cell for name, cell in row.items()} for row in table.to_pylist()]


def _schema(columns: Sequence[str]) -> pa.Schema:
    import pyarrow as pa

    return pa.schema([pa.field(name, pa.int64() if name == _KEY else pa.float64()) for name in columns])
