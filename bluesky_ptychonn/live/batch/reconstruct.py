"""`reconstruct`: a run that is already in the catalog, down the same road as a live one."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any, Literal

from bluesky_ptychonn.card import find_model
from bluesky_ptychonn.catalog.connection.address import Address
from bluesky_ptychonn.catalog.registry.champion import resolve_model
from bluesky_ptychonn.catalog.runs.data_keys import DataKeys, RunError
from bluesky_ptychonn.catalog.runs.stored_documents import documents_of, find_run
from bluesky_ptychonn.live.pipeline.progress import Progress, Timing
from bluesky_ptychonn.live.pipeline.run import RunReconstruction
from bluesky_ptychonn.live.pipeline.settings import ReconstructionSettings
from bluesky_ptychonn.optics.framing import PreprocessConfig
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.recon.mosaic.refine_config import Refinement, asked_for

# No scan waits for the server, and nothing more will come: large blocks, no patience.
_PACE = Timing(block=256, flush_s=0.0, share=1.0, patience_s=0.0, outage_s=30.0, raw_s=0.0)


def reconstruct(
    run: Any,
    model: Any,
    catalog: Any,
    *,
    geometry: Geometry | None = None,
    frame_key: str | None = None,
    x_key: str | None = None,
    y_key: str | None = None,
    x_sign: int | None = None,
    y_sign: int | None = None,
    position_unit: str | None = None,
    stream: str = "primary",
    device: str = "auto",
    batch_size: int = 16,
    threads: int | None = None,
    raw: str = "raw",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    preprocess: PreprocessConfig | None = None,
    refine: bool | Refinement = False,
    progress: Callable[[Progress], None] | None = None,
) -> Any:
    """Reconstruct a run of the catalog with a model; the result goes into the same catalog, beside any earlier ones.

    Parameters
    ----------
    run : str, int or BlueskyRun client
        Uid, the beginning of one, scan_id, or the run itself.
    model : str, Path or Model
        Name of a model (its champion in the catalog, where there is one; see `LiveReconstruction`), its folder, or a
        loaded one.
    catalog : CatalogServer, Tiled client, address or profile name
        Where the run is, and the result goes.
    geometry, frame_key, x_key, y_key, x_sign, y_sign, position_unit, stream, precision, preprocess, refine
        See `LiveReconstruction`.
    device : str
        ``auto``, ``cpu``, ``cuda``.
    batch_size : int
        Frames the network takes at once.
    threads : int, optional
        Threads of the network on a CPU; torch's own choice by default.
    raw : str
        Container of the runs.
    progress : callable, optional
        Called after every block with where things stand.

    Returns
    -------
    PtychoReconstruction
        Client of the result: complete, or partial where frames are missing; it says which and why.

    Raises
    ------
    ValueError
        In words: unknown model or run, no geometry, a model that does not fit, positions without a unit.
    ConnectionError
        When the catalog does not answer.

    Examples
    --------
    >>> result = reconstruct("a1b2c3", "sim-lifted", catalog)  # doctest: +SKIP
    >>> result.phase.read()  # doctest: +SKIP
    """
    loaded = hasattr(model, "network")
    keys = DataKeys(frame_key, x_key, y_key, x_sign, y_sign, stream, position_unit)
    address = Address.from_catalog(catalog)
    root = address.client
    stored = find_run(root, run, raw)
    folder = "" if loaded else str(find_model(resolve_model(model, root)))
    order = ReconstructionSettings(
        folder,
        address.uri,
        geometry,
        keys,
        _PACE,
        device,
        batch_size,
        raw,
        threads or 0,
        precision=precision,
        preprocess=preprocess,
        refinement=asked_for(refine),
    )

    from bluesky_ptychonn.live.pipeline.factory import TiledComponentFactory

    factory = TiledComponentFactory(order, uuid.uuid4().hex, root=root, model=model if loaded else None)
    documents = documents_of(stored, keys)
    job = RunReconstruction(next(documents)[1], factory, geometry=geometry, keys=keys, pace=_PACE)
    job.hurry()
    try:
        for name, doc in documents:
            job.feed(name, doc)
    except RunError as error:
        job.fail(error)
    job.end("unknown", "the run has no stop document")
    while not job.progress.finished:
        time.sleep(max(0.0, min(job.due - time.monotonic(), 1.0)))
        job.step()
        if progress is not None:
            progress(job.progress)
    if job.given_up:
        raise ConnectionError(f"{address.uri}: {job.progress.problem}")
    if job.progress.state in ("failed", "ignored"):
        where = f"; see processed/{job.progress.key}" if job.progress.key else ""
        raise ValueError(f"run {job.progress.uid[:8]} cannot be reconstructed: {job.progress.problem}{where}")
    return root["processed"][job.progress.key]
