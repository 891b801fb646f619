"""Runs of a catalog that have no whole reconstruction, and what becomes of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bluesky_ptychonn.catalog.connection.connect import connect_catalog
from bluesky_ptychonn.catalog.registry.champion import usable_model
from bluesky_ptychonn.catalog.results.client import reconstructions
from bluesky_ptychonn.catalog.runs.stored_documents import find_runs
from bluesky_ptychonn.live.batch.reconstruct import attempt_of, reconstruct

log = logging.getLogger(__name__)
_MOST = 500  # reconstructions of a run that are looked at, the newest


@dataclass(frozen=True)
class Unfinished:
    """A run without a whole reconstruction.

    Attributes
    ----------
    uid : str
        Of the run.
    scan_id : int or None
        Of the run.
    reason : str
        Why it counts as unfinished, in words.
    """

    uid: str
    scan_id: int | None
    reason: str


def unfinished(
    catalog: Any, model: Any = None, *, since: float | None = None, raw: str | None = None, **options: Any
) -> Iterator[Unfinished]:
    """Find the finished ptychography runs of a catalog that still lack a whole reconstruction, newest first.

    A run counts when it has no reconstruction at all; when the newest is ``live`` though the run is over, so that what
    made it was killed; or when the run succeeded and the newest is only ``partial`` or ``failed``. An aborted run with
    a partial reconstruction has what it can have, and so has a run that `reconstruct` tried before with the same model
    and options: another attempt would end as that one did.

    Parameters
    ----------
    catalog : anything `connect` takes
        The catalog.
    model : str, Path or Model, optional
        What `reconstruct` would be asked to use, with the `options`; without one, earlier attempts are not looked at.
    since : float, optional
        Only runs that began later, POSIX seconds.
    raw : str, optional
        Container of the runs, as in `reconstruct`.
    """
    from tiled.queries import Key

    root = connect_catalog(catalog)
    attempt = None if model is None else attempt_of(model, root, options)
    runs = find_runs(root, raw)
    if since is not None:
        runs = runs.search(Key("start.time") > since)
    for run in runs.sort(("start.time", -1)).values():
        start, stop = run.metadata["start"], run.metadata.get("stop")
        if not stop or not isinstance(start.get("ptychography"), dict):
            continue
        uid = start["uid"]
        results = reconstructions(root, raw=uid, limit=_MOST)
        results += reconstructions(root, raw=uid, status="failed", limit=_MOST)
        if reason := why_unfinished([result.metadata for result in results], str(stop.get("exit_status")), attempt):
            yield Unfinished(uid, start.get("scan_id"), reason)


def why_unfinished(results: Sequence[Mapping[str, Any]], exit_status: str, attempt: str | None = None) -> str:
    """Say why a run lacks a whole reconstruction that it could have; nothing where it has what it can have.

    Parameters
    ----------
    results : sequence of mapping
        Metadata of its reconstructions, newest first, those without an image last.
    exit_status : str
        Of its stop document.
    attempt : str, optional
        See `attempt_of`.
    """
    if not results:
        return "has no reconstruction"
    ended = [result for result in results if result["status"] != "live"]
    if any(result["status"] == "complete" or attempt == result.get("attempt", "") for result in ended):
        return ""
    newest = results[0]["status"]
    if newest == "live":
        return "its reconstruction was interrupted"
    return f"its reconstruction is {newest}" if exit_status == "success" else ""


def backfill(
    catalog: Any,
    model: Any,
    *,
    since: float | None = None,
    limit: int | None = None,
    raw: str | None = None,
    **options: Any,
) -> Iterator[tuple[Unfinished, Any]]:
    """Reconstruct what `unfinished` finds, one run after the other.

    Parameters
    ----------
    catalog, since, raw
        See `unfinished`.
    model : str, Path or Model
        See `reconstruct`.
    limit : int, optional
        Most runs to take.
    **options
        Of `reconstruct`.

    Yields
    ------
    (Unfinished, PtychoReconstruction or ValueError)
        The run and its new reconstruction, or why there is none: one run that cannot be reconstructed stops no other.

    Raises
    ------
    ValueError
        In words, for a model that no run can be reconstructed with.
    ConnectionError
        When the catalog does not answer any more.
    """
    if not hasattr(model, "network"):
        usable_model(model, connect_catalog(catalog))  # else every run would say the same
    todo = list(unfinished(catalog, model, since=since, raw=raw, **options))
    for run in todo[:limit]:
        try:
            result: Any = reconstruct(run.uid, model, catalog, raw=raw, **options)
        except ValueError as error:
            log.warning("run %s: %s", run.uid, error)
            result = error
        yield run, result
