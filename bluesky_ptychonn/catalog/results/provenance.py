"""Where derived data comes from: the run it was made of, and what made it."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bluesky_ptychonn.catalog.connection.address import RAW

UNITS = {
    "amplitude": "1", "phase": "rad", "coverage": "1", "trust": "1", "x_m": "m", "y_m": "m",
    "time_raw": "s", "time_done": "s", "pixel_m": "m", "origin_m": "m",
}  # fmt: skip


def raw_of(start: Mapping[str, Any], container: str = RAW) -> dict[str, Any]:
    """Return what derived data says of its run, from the start document, and where it lies if not in ``raw``."""
    raw = {name: start[name] for name in ("uid", "scan_id", "plan_name", "time") if start.get(name) is not None}
    sample = start.get("sample_name") or start.get("sample")
    if sample is not None:
        raw["sample"] = sample.get("name", str(sample)) if isinstance(sample, Mapping) else sample
    if container != RAW:
        raw["container"] = container
    return raw


def software() -> dict[str, str]:
    """Versions of what writes to the catalog; of ourselves also a digest, which tells one edited copy from another."""
    found = {"code_sha256": code_sha256()}
    for name in ("bluesky-ptychonn", "tiled", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@lru_cache(maxsize=1)
def code_sha256() -> str:
    """Digest of this package's Python files, as they lie there when first asked."""
    root, digest = Path(__file__).parents[2], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def initial_metadata(
    start: Mapping[str, Any],
    metadata: Mapping[str, Any],
    patch_shape: tuple[int, int] | None,
    frames_expected: int | None,
    container: str = RAW,
) -> dict[str, Any]:
    """Say of a reconstruction what is known before its first frame is done.

    Parameters
    ----------
    start, metadata : mapping
        The raw run's start document, see `raw_of`; provenance: model, geometry, device, software, ...
    patch_shape : tuple of int or None
        Rows and columns of a patch, px; None for a run that failed before its first frame.
    frames_expected : int or None
        Frames the plan announced; the arrays grow with what comes, whatever this says.
    container : str
        Of the raw run, below the catalog's.

    Raises
    ------
    ValueError
        When there is no uid, or the shape is none.
    """
    if not start.get("uid"):
        raise ValueError("result: the start document has no uid")
    if patch_shape is not None and min(patch_shape) < 1:
        raise ValueError(f"result: patch_shape {patch_shape} must be (rows, columns) in px, or None")
    ours = {
        "raw": raw_of(start, container),
        "status": "live",
        "patch_shape": None if patch_shape is None else list(patch_shape),
        "counts": {"expected": frames_expected},
        "units": UNITS,
        "time_created": time.time(),
        "nodes": {},
    }
    given = dict(metadata)
    given["software"] = {**software(), **(given.get("software") or {})}
    return {**given, **ours}
