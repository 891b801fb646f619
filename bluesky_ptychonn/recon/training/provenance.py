"""What a card says of a training: where the weights come from, and the counts they were trained on."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from bluesky_ptychonn.recon.data.simulated import SyntheticConfig
from bluesky_ptychonn.recon.training.config import TrainingConfig

#: An absorbing sample takes up to this part of the beam; the card's lower count limit allows for it.
_LARGEST_ABSORPTION = 0.75


def counts_range(synthetic: SyntheticConfig) -> tuple[float, float]:
    """Lowest and highest total counts of a frame in training."""
    photons, spread = synthetic.photons, synthetic.dose_spread
    return photons / spread * (1 - _LARGEST_ABSORPTION), photons * spread * 1.2


def provenance(config: TrainingConfig, record: Mapping[str, Any], command: str) -> dict[str, Any]:
    """Make the card's ``training``, JSON values; `record` is what `fit` gave, and ``started_from``, ``scans``."""
    return {
        "command": command,
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "frames": record["frames"],
        **{name: record[name] for name in ("started_from", "scans") if record.get(name)},
        "seconds": round(record["seconds"], 1),
        "software": {package: installed(package) for package in ("bluesky-ptychonn", "torch", "numpy")},
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _commit() -> str:
    """Commit of the code that trains, or ``unknown`` outside a checkout."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=os.fspath(Path(__file__).parent),
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()
