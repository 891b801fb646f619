"""Where derived data comes from: the run it was made of, and what made it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def raw_of(start: Mapping[str, Any]) -> dict[str, Any]:
    """Return what derived data says of its run, from the start document and from nowhere else."""
    raw = {name: start[name] for name in ("uid", "scan_id", "plan_name", "time") if start.get(name) is not None}
    sample = start.get("sample_name") or start.get("sample")
    if sample is not None:
        raw["sample"] = sample.get("name", str(sample)) if isinstance(sample, Mapping) else sample
    return raw


def software() -> dict[str, str]:
    """Versions of what writes to the catalog."""
    found = {}
    for name in ("bluesky-ptychonn", "tiled", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
