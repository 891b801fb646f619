"""The table of frames in the catalog: one row a frame, whatever is sent how often."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_ptychonn.catalog.connection.errors import CatalogUnavailableError
from bluesky_ptychonn.catalog.connection.http import TiledNode
from bluesky_ptychonn.catalog.results.block import Block, frames_schema, last_of_each

if TYPE_CHECKING:
    import pyarrow as pa

NAME = "frames"
_CORRECT_S = 2.0  # between corrections, at least


class FrameTable:
    """Rows keyed by sequence number. Rows can only be appended, so a changed row means a new table.

    Attributes
    ----------
    node : str or None
        Node in use, named in the reconstruction's metadata under ``nodes``.
    written : set of int
        Sequence numbers in the table.
    """

    def __init__(self, container: TiledNode) -> None:
        self._container = container
        self.node: str | None = None
        self.written: set[int] = set()
        self._invalid: set[int] = set()
        self._corrections: list[pa.Table] = []
        self._corrected_at, self._correcting_s = 0.0, 0.0
        self._generation = 0

    @property
    def valid(self) -> int:
        """Frames with a reconstruction."""
        return len(self.written) - len(self._invalid)

    def create(self) -> None:
        """Make the empty table: two requests."""
        self._container.create_table(NAME, frames_schema(), "seq_num")
        self._container.update({"nodes": {NAME: NAME}})
        self.node = NAME

    def resume(self, nodes: Mapping[str, Any]) -> None:
        """Go on with the table that an earlier process made."""
        self.node = nodes.get(NAME)
        if self.node is not None:
            self._generation = generation_of(self.node)
            self._read_numbers()

    def _read_numbers(self) -> None:
        rows = self._read()
        numbers, valid = rows["seq_num"].to_pylist(), rows["valid"].to_pylist()
        self.written = set(numbers)
        self._invalid = {number for number, fine in zip(numbers, valid, strict=True) if not fine}

    def add(self, block: Block) -> None:
        """Write the rows of a block: one request, a few more now and then where it holds frames again."""
        rows = block.table()
        new = np.array([number not in self.written for number in block.seq_num.tolist()])
        if new.any():
            new = self._append(rows, new)
        if not new.all():
            self._corrections.append(rows.filter(~new))
        self.written.update(block.seq_num.tolist())
        self._invalid.difference_update(block.seq_num.tolist())
        self._invalid.update(block.seq_num[~block.valid].tolist())
        # A table is rewritten as a whole: a run that is measured all over again does not pay that for every block.
        if self._corrections and time.monotonic() > self._corrected_at + max(_CORRECT_S, 20 * self._correcting_s):
            self.correct()

    def _append(self, rows: pa.Table, new: Any) -> Any:
        """Append the new rows; returns which of them were not there."""
        try:
            self._container.append_rows(str(self.node), rows.filter(new))
        except CatalogUnavailableError:
            # Perhaps an earlier try arrived and its answer did not: then the server refuses to hold a frame twice.
            self._read_numbers()
            still = np.array([number not in self.written for number in rows["seq_num"].to_pylist()])
            if np.array_equal(still, new):
                raise
            if still.any():
                self._container.append_rows(str(self.node), rows.filter(still))
            return still
        return new

    def correct(self) -> None:
        """Replace rows that were measured again: readers see the old table, then the new one. Six requests, or none."""
        import pyarrow as pa

        if not self._corrections:
            return
        began = time.monotonic()
        rows = pa.concat_tables([self._read(), *self._corrections])
        self._replace(_latest(rows))
        self._corrections.clear()
        self._corrected_at = time.monotonic()
        self._correcting_s = self._corrected_at - began

    def finish(self) -> None:
        """Correct what is left, and take the name of the schema again."""
        self.correct()
        if self.node not in (None, NAME):
            self._replace(self._read())

    def _read(self) -> pa.Table:
        return self._container.read_rows(str(self.node), frames_schema())

    def _replace(self, rows: pa.Table) -> None:
        old = str(self.node)
        self._generation += 1
        new = NAME if old != NAME else f"{NAME}_{self._generation}"
        self._container.create_table(new, frames_schema(), "seq_num", replace=True)
        self._container.append_rows(new, rows)
        self._container.update({"nodes": {NAME: new}})
        self.node = new
        self._container.delete(old)


def _latest(rows: pa.Table) -> pa.Table:
    """Return the last row of each frame; where that has no `time_done`, the one before it had."""
    numbers, done = rows["seq_num"].to_numpy(), rows["time_done"].to_numpy()
    timed = ~np.isnan(done)
    known = dict(zip(numbers[timed].tolist(), done[timed].tolist(), strict=True))
    latest = rows.take(last_of_each(numbers))
    place = latest.schema.get_field_index("time_done")
    times = [known.get(number, float("nan")) for number in latest["seq_num"].to_pylist()]
    return latest.set_column(place, latest.schema.field(place), [times])


def generation_of(node: str) -> int:
    """Return the number at the end of a node's name, 0 where there is none."""
    number = node.rpartition("_")[2]
    return int(number) if number.isdigit() else 0
