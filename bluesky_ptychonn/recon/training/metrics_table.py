"""The rows that a training leaves behind: as a CSV file, and as a picture."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bluesky_ptychonn.files import replacing

METRICS_FILE = "metrics.csv"
PLOT_FILE = "training.png"
#: One row: column to value, NaN where nothing was measured.
Row = dict[str, float]


def columns_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """Columns in which any row has a number, in the order of the first row; `step` first."""
    return tuple(name for name in (rows[0] if rows else ()) if any(math.isfinite(row[name]) for row in rows))


def write_rows(path: str | os.PathLike[str], rows: Sequence[Row]) -> None:
    """Write rows as CSV, numbers exactly, an empty cell for what was not measured."""
    columns = columns_of(rows)
    path = Path(path)
    with replacing(path) as draft, draft.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow([_cell(row[name]) for name in columns])


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Read what `write_rows` wrote.

    Raises
    ------
    ValueError
        When it is no such table.
    """
    path = Path(path)
    with path.open(newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            rows = [{name: float(cell) if cell else math.nan for name, cell in row.items()} for row in reader]
        except (TypeError, ValueError, AttributeError, csv.Error) as error:
            raise ValueError(f"{path}: not a table of a training's metrics: {error}") from None
    if rows and "step" not in rows[0]:
        raise ValueError(f"{path}: not a table of a training's metrics: it has no column 'step'")
    return rows


def _cell(value: float) -> str:
    if not math.isfinite(value):
        return ""
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(float(value))


def plot_rows(path: str | os.PathLike[str], rows: Sequence[Row], title: str = "") -> None:
    """Draw losses, held-out errors and the learning rate against the frames seen, into a picture file."""
    from matplotlib.figure import Figure

    columns = columns_of(rows)
    frames = [row["frames"] for row in rows]
    figure = Figure(figsize=(7, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    for name in columns:
        if not name.startswith(("loss_", "held_out_")):
            continue
        judged = name.startswith("held_out_")
        source = name.removeprefix("held_out_" if judged else "loss_").replace("_", "-")
        shown: list[Any] = [(x, row[name]) for x, row in zip(frames, rows, strict=True) if math.isfinite(row[name])]
        label, marker = (f"held out, {source}", "o") if judged else (f"loss, {source}", "")
        above.plot(*zip(*shown, strict=True), label=label, marker=marker, markersize=3)
    above.set_yscale("log")
    above.set_ylabel("loss, error (rad)")
    above.set_title(title, fontsize="medium")
    if above.lines:
        above.legend(fontsize="small")
    below.plot(frames, [row["learning_rate"] for row in rows], color="0.3")
    below.set_ylabel("learning rate")
    below.set_xlabel("frames seen")
    figure.savefig(Path(path), dpi=120)
