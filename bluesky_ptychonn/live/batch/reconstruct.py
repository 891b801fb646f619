"""`reconstruct`: a run that is already in the catalog, down the same road as a live one."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any, Unpack

from bluesky_ptychonn.card import find_model
from bluesky_ptychonn.catalog.connection.connect import PROCESSED, Address
from bluesky_ptychonn.catalog.registry.champion import resolve_model
from bluesky_ptychonn.catalog.runs.data_keys import RunError
from bluesky_ptychonn.catalog.runs.stored_documents import container_of, documents_of, find_run
from bluesky_ptychonn.live.pipeline.progress import Progress, Timing
from bluesky_ptychonn.live.pipeline.run import RunReconstruction
from bluesky_ptychonn.live.pipeline.settings import (
    ReconstructionKeywords,
    ReconstructionOptions,
    ReconstructionSettings,
    takes_options,
    with_keywords,
)

# No scan waits for the server, and nothing more will come: large blocks, no patience.
_OPTIONS = ReconstructionOptions(
    pace=Timing(block=256, flush_s=0.0, share=1.0, patience_s=0.0, outage_s=30.0, raw_s=0.0)
)


@takes_options(ReconstructionOptions, ReconstructionKeywords)
def reconstruct(
    run: Any,
    model: Any,
    catalog: Any,
    *,
    progress: Callable[[Progress], None] | None = None,
    **keywords: Unpack[ReconstructionKeywords],
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
    progress : callable, optional
        Called after every block with where things stand.
    **keywords

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
    options = with_keywords(_OPTIONS, keywords, ReconstructionKeywords)
    loaded = model if hasattr(model, "network") else None
    address = Address.from_catalog(catalog)
    root = address.client
    stored = find_run(root, run, options.raw)
    settings = ReconstructionSettings.from_options(
        options,
        model="" if loaded is not None else str(find_model(resolve_model(model, root))),
        catalog=address.uri,
        threads=options.threads or 0,
        raw=container_of(root, stored),
    )

    from bluesky_ptychonn.live.pipeline.factory import TiledComponentFactory

    factory = TiledComponentFactory(settings, uuid.uuid4().hex, root=root, model=loaded)
    documents = documents_of(stored, settings.keys)
    job = RunReconstruction(
        next(documents)[1], factory, geometry=settings.geometry, keys=settings.keys, pace=settings.pace
    )
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
        where = f"; see {PROCESSED}/{job.progress.key}" if job.progress.key else ""
        raise ValueError(f"run {job.progress.uid[:8]} cannot be reconstructed: {job.progress.problem}{where}")
    return root[PROCESSED][job.progress.key]
