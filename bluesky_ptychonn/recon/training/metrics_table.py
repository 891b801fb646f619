"""What a training tells of itself: losses, rates and held-out errors in rows, as a CSV file and as a picture."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluesky_ptychonn.files import replacing

if TYPE_CHECKING:  # the tables are read where there is no torch
    from bluesky_ptychonn.recon.data.batches import Mix, Source

METRICS_FILE = "metrics.csv"
PLOT_FILE = "training.png"
#: One row: column to value, NaN where nothing was measured.
Row = dict[str, float]


class TrainingLog:
    """Smoothed losses, and a row now and then; `rows`, `losses` and `smooth` are the `state` of an earlier process.

    Examples
    --------
    >>> from bluesky_ptychonn.recon.data.batches import Mix
    >>> log = TrainingLog(Mix())
    >>> log.add("simulated", 0.5)
    >>> log.row(step=1, frames=16, seconds=2.0, learning_rate=1e-3, held_out={})
    >>> log.rows[0]["loss"], log.rows[0]["frames_per_s"]
    (0.5, 8.0)
    """

    def __init__(
        self,
        mix: Mix,
        rows: Sequence[Row] = (),
        losses: Sequence[float] = (),
        smooth: Mapping[Source, float] | float | None = None,
    ) -> None:
        self._mix = mix
        self.rows: list[Row] = [dict(row) for row in rows]
        self.losses = list(losses)
        if isinstance(smooth, float):  # as older trainings kept it
            smooth = {} if math.isnan(smooth) else {"simulated": smooth}
        self._smooth: dict[Source, float] = dict(smooth or {})

    @property
    def state(self) -> dict[str, Any]:
        """What has to be kept to go on later."""
        return {"metrics": self.rows, "losses": self.losses, "smooth": self._smooth}

    def add(self, source: Source, loss: float) -> None:
        """Take the loss of a batch into account."""
        before = self._smooth.get(source)
        self._smooth[source] = loss if before is None else 0.98 * before + 0.02 * loss

    @property
    def loss(self) -> float:
        """Smoothed losses, weighted by the shares of the sources met so far; NaN before the first."""
        if len(self._smooth) < 2:
            return next(iter(self._smooth.values()), math.nan)
        total = sum(self._mix.share(source) for source in self._smooth)
        return sum(self._mix.share(source) * loss for source, loss in self._smooth.items()) / total

    def percent(self) -> None:
        """Note the loss, as is done after every percent of a training."""
        self.losses.append(self.loss)

    def row(
        self, step: int, frames: int, seconds: float, learning_rate: float, held_out: Mapping[Source, float]
    ) -> None:
        """Add a row. `held_out` is by source; empty where nothing was measured now."""
        last = self.rows[-1] if self.rows else {"frames": 0.0, "seconds": 0.0}
        spent = seconds - last["seconds"]
        row: Row = {
            "step": step,
            "frames": frames,
            "seconds": seconds,
            "frames_per_s": (frames - last["frames"]) / spent if spent > 0 else math.nan,
            "learning_rate": learning_rate,
            "loss": self.loss,
        }
        row |= {f"loss_{source}": self._smooth.get(source, math.nan) for source in self._mix.sources}
        row |= {f"held_out_{source}": held_out.get(source, math.nan) for source in self._mix.sources}
        self.rows.append(row)


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
    """Read what `write_rows` wrote; ValueError when it is no such table."""
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
