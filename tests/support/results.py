"""Made-up results, for what is written to and read from a catalog."""

from __future__ import annotations

import time
import uuid
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.catalog.connection.server import CatalogServer
from bluesky_ptychonn.catalog.results.block import Block
from bluesky_ptychonn.catalog.results.provenance import initial_metadata
from bluesky_ptychonn.catalog.results.sink import ResultSink
from bluesky_ptychonn.catalog.results.spool import Spool
from bluesky_ptychonn.recon.mosaic.stitch import MosaicImage

SHAPE = (8, 8)
PIXEL_M = 1e-8


def start_document(**more: Any) -> dict[str, Any]:
    """A start document with a uid of its own."""
    return {"uid": str(uuid.uuid4()), "time": time.time(), "scan_id": 5, "plan_name": "grid_scan", **more}


def make_sink(server: CatalogServer, start: dict[str, Any] | None = None, **more: Any) -> ResultSink:
    """A sink for small patches on a real server."""
    metadata = {"model": {"name": "made-up", "version": "1", "weights_sha256": "0" * 64}, **more.pop("metadata", {})}
    options: dict[str, Any] = {"key": uuid.uuid4().hex, **more}
    root = options.pop("root", None) or server.client
    about = [options.pop(name, default) for name, default in (("patch_shape", SHAPE), ("frames_expected", None))]
    limit = options.pop("spool_limit_bytes", 2**30)
    if (folder := options.pop("spool", None)) is not None:
        options["spool"] = Spool(folder / options["key"], limit)
    return ResultSink(root, initial_metadata(start or start_document(), metadata, *about), **options)


def patches_of(seq_nums: Any, take: int = 0) -> NDArray[np.complex64]:
    """Patches that tell their sequence number, and which take they are of."""
    numbers = np.asarray(list(seq_nums))
    rng = np.random.default_rng(take)
    wave = np.exp(1j * rng.uniform(-3, 3, (len(numbers), *SHAPE))) * (numbers[:, None, None] + 1000 * take)
    return wave.astype(np.complex64)


def block_of(seq_nums: Any, take: int = 0, flags: dict[int, str] | None = None, **changes: Any) -> Block:
    """A block of patches that tell their sequence number."""
    numbers = list(seq_nums)
    flag = [(flags or {}).get(number, "") for number in numbers]
    wave = patches_of(numbers, take)
    valid = np.array([not reason for reason in flag])
    wave[~valid] = np.nan
    place = np.array(numbers) * 1e-7
    trust = np.full(len(numbers), 0.25 + take / 4)
    columns = {"y_m": place, "x_m": -place, "trust": trust, "valid": valid, "flag": flag}
    values = {"seq_nums": numbers, "patches": wave, **columns, "time_raw": np.full(len(numbers), time.time())}
    return Block.from_patches(**{**values, **changes})


def picture(rows: int, columns: int, corner: tuple[int, int] = (0, 0), value: float = 1.0) -> MosaicImage:
    """A mosaic whose every pixel is `value`, with a corner that nothing covers."""
    arrays = [np.full((rows, columns), value * (i + 1), np.float32) for i in range(4)]
    for i, array in enumerate(arrays):
        array[:2, :2] = 0.0 if i == 2 else np.nan
    amplitude, phase, coverage, trust = arrays
    origin = (corner[0] * PIXEL_M, corner[1] * PIXEL_M)
    return MosaicImage(amplitude, phase, coverage, trust, origin, PIXEL_M)


def counts_of(reconstructed: int, *, expected: int | None = None, **rejected: int) -> dict[str, Any]:
    """Counts as a worker makes them."""
    seen = reconstructed + sum(rejected.values())
    return {"expected": expected, "seen": seen, "reconstructed": reconstructed, "rejected": rejected}
