"""What a training tells of itself while it runs: smoothed losses, rates and held-out errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bluesky_ptychonn.recon.data.batches import Mix, Source
from bluesky_ptychonn.recon.training.metrics_table import Row


class TrainingLog:
    """Smoothed losses, and a row now and then; `rows`, `losses` and `smooth` are the `state` of an earlier process.

    Examples
    --------
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
