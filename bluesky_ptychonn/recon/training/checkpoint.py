"""The file that a training is kept in: replaced atomically, and resumed only by the training it belongs to."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bluesky_ptychonn.files import replacing
from bluesky_ptychonn.recon.data.batches import TrainingData


class TrainingState:
    """A training's checkpoint, written to `path` (None keeps nothing) every so many seconds.

    It belongs to a configuration's `identity`, the `digest` of the scans, and a number of processes.
    """

    def __init__(self, path: Path | None, identity: str, data: str, processes: int, every_s: float) -> None:
        self._path, self._every_s = path, every_s
        self._owner = {"config": identity, "data": data, "processes": processes}
        self._saved = time.monotonic()

    def load(self, device: torch.device) -> dict[str, Any]:
        """Read what was kept; nothing where there is no file. ValueError when it belongs to another training."""
        if self._path is None or not self._path.exists():
            return {}
        state: dict[str, Any] = torch.load(self._path, map_location=device, weights_only=True)
        there = {"config": state["config"], "data": state.get("data", ""), "processes": state.get("processes", 1)}
        what = {"config": "another configuration", "data": "other scans", "processes": "another number of processes"}
        for name, value in self._owner.items():
            if there[name] != value:
                raise ValueError(
                    f"fit: {self._path.name} belongs to {what[name]}; give its settings to resume it, or another --out "
                    "to start afresh"
                )
        return state

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return self._path is not None and time.monotonic() - self._saved > self._every_s

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep a state, whole or not at all."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self._path) as draft:
            torch.save({**self._owner, **state}, draft)
        self._saved = time.monotonic()


def digest(data: TrainingData) -> str:
    """Tell scans from others: SHA-256 of their numbers, an empty string where there are none."""
    if not data.scans:
        return ""
    found = hashlib.sha256()
    for scan in data.scans:
        found.update(type(scan).__name__.encode())
        for values in (scan.counts, scan.y_m, scan.x_m, scan.probe):
            found.update(values.tobytes())
    for scan in data.labelled:
        found.update(scan.object.tobytes())
    return found.hexdigest()
