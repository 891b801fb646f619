"""`reconstruct`: a run that is already in the catalog, down the same road as a live one."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Unpack

from bluesky_ptychonn.card import load_card
from bluesky_ptychonn.catalog.connection.connect import PROCESSED, Address
from bluesky_ptychonn.catalog.registry.champion import usable_model
from bluesky_ptychonn.catalog.results.provenance import software
from bluesky_ptychonn.catalog.runs.data_keys import RunError
from bluesky_ptychonn.catalog.runs.stored_documents import container_of, documents_of, find_run
from bluesky_ptychonn.live.pipeline.progress import Progress, Timing
from bluesky_ptychonn.live.pipeline.protocols import ComponentFactory
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
    address = Address.from_catalog(catalog)
    root = address.client
    settings, loaded = _settings(model, address, keywords)
    stored = find_run(root, run, settings.raw)
    settings = settings.model_copy(update={"raw": container_of(root, stored)})

    from bluesky_ptychonn.live.pipeline.factory import TiledComponentFactory
    from bluesky_ptychonn.recon.device import torch_threads

    attempt = {"attempt": _digest(settings, loaded)}
    with torch_threads(settings.threads):
        factory = TiledComponentFactory(settings, uuid.uuid4().hex, root=root, model=loaded, metadata=attempt)
        job = _finish(stored, settings, factory, progress)
    if job.given_up:
        raise ConnectionError(f"{address.uri}: {job.progress.problem}")
    if job.progress.state in ("failed", "ignored"):
        where = f"; see {PROCESSED}/{job.progress.key}" if job.progress.key else ""
        raise ValueError(f"run {job.progress.uid[:8]} cannot be reconstructed: {job.progress.problem}{where}")
    return root[PROCESSED][job.progress.key]


def _finish(
    stored: Any,
    settings: ReconstructionSettings,
    factory: ComponentFactory,
    progress: Callable[[Progress], None] | None,
) -> RunReconstruction:
    """Reconstruct a stored run to its end, whatever that is."""
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
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # others may write there too
        job.fail(RunError(f"what the catalog holds of the run cannot be read: {type(error).__name__}: {error}"))
    stop = stored.metadata.get("stop") or {"reason": "the run has no stop document"}
    job.end(str(stop.get("exit_status", "unknown")), str(stop.get("reason") or ""))
    while not job.progress.finished:
        time.sleep(max(0.0, min(job.due - time.monotonic(), 1.0)))
        job.step()
        if progress is not None:
            progress(job.progress)
    return job


def attempt_of(model: Any, catalog: Any, keywords: Mapping[str, Any]) -> str:
    """Name what `reconstruct` would be asked to do with any run: its results have it in their metadata.

    Another attempt of the same name gives the same: what is in the catalog of a run that has ended does not change.
    """
    return _digest(*_settings(model, Address.from_catalog(catalog), keywords))


def _settings(model: Any, address: Address, keywords: Mapping[str, Any]) -> tuple[ReconstructionSettings, Any]:
    """Make the settings; with the model, where it is a loaded one."""
    options = with_keywords(_OPTIONS, keywords, ReconstructionKeywords)
    loaded = model if hasattr(model, "network") else None
    if loaded is not None:
        loaded.card.check_probe()
    folder = "" if loaded is not None else str(usable_model(model, address.client))
    settings = ReconstructionSettings.from_options(
        options, model=folder, catalog=address.uri, threads=options.threads or 0
    )
    return settings, loaded


def _digest(settings: ReconstructionSettings, loaded: Any) -> str:
    card = load_card(settings.model) if loaded is None else loaded.card
    matters = {"geometry", "keys", "mask", "precision", "preprocess", "refine"}
    asked = settings.model_dump(mode="json", include=matters)
    asked |= card.model_dump(mode="json", include={"name", "version", "weights_sha256"}) | {"software": software()}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
