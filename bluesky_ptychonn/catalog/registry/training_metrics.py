"""The metrics of a training as a table in the catalog, beside the weights they belong to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bluesky_ptychonn.catalog.connection.blobs import BlobNode
from bluesky_ptychonn.recon.training.metrics_table import Row, columns_of

if TYPE_CHECKING:
    import pyarrow as pa

METRICS = "metrics"
_KEY = "step"


def put_metrics(node: BlobNode, rows: Sequence[Row]) -> None:
    """Write the table, over what an earlier try left; nothing where there are no rows. Three requests."""
    import pyarrow as pa

    if not rows:
        return
    schema = _schema(columns_of(rows))
    node.delete(METRICS)
    node.create_table(METRICS, schema, _KEY)
    columns = [pa.array([_cell(row[field.name], field.type) for row in rows], field.type) for field in schema]
    node.append_rows(METRICS, pa.table(columns, schema=schema))


def get_metrics(node: BlobNode) -> list[Row]:
    """Read the table; no rows where there is none. Two requests."""
    found = node.attributes(METRICS)
    if found is None:
        return []
    table = node.read_rows(METRICS, _schema(found["structure"]["columns"]))
    return [{name: math.nan if cell is None else cell for name, cell in row.items()} for row in table.to_pylist()]


def _schema(columns: Sequence[str]) -> pa.Schema:
    import pyarrow as pa

    return pa.schema([pa.field(name, pa.int64() if name == _KEY else pa.float64()) for name in columns])


def _cell(value: float, kind: pa.DataType) -> float | int | None:
    import pyarrow as pa

    if not math.isfinite(value):
        return None  # SQL knows no NaN
    return int(value) if kind == pa.int64() else float(value)
