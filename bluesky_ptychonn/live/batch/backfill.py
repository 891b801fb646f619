"""Runs of a catalog that have no whole reconstruction, and what becomes of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bluesky_ptychonn.catalog.connection.connect import connect_catalog
from bluesky_ptychonn.catalog.results.client import reconstructions
from bluesky_ptychonn.catalog.runs.stored_documents import find_runs
from bluesky_ptychonn.live.batch.reconstruct import reconstruct

log = logging.getLogger(__name__)


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


def unfinished(catalog: Any, *, since: float | None = None, raw: str | None = None) -> Iterator[Unfinished]:
    """Find the finished ptychography runs of a catalog that still lack a whole reconstruction, newest first.

    A run counts when it has no reconstruction at all; when the newest is ``live`` though the run is over, so that what
    made it was killed; or when the run succeeded and the newest is only ``partial`` or ``failed``. An aborted run with
    a partial reconstruction has what it can have.

    Parameters
    ----------
    catalog : anything `connect` takes
        The catalog.
    since : float, optional
        Only runs that began later, POSIX seconds.
    raw : str, optional
        Container of the runs, as in `reconstruct`.
    """
    from tiled.queries import Key

    root = connect_catalog(catalog)
    runs = find_runs(root, raw)
    if since is not None:
        runs = runs.search(Key("start.time") > since)
    for run in runs.sort(("start.time", -1)).values():
        start, stop = run.metadata["start"], run.metadata.get("stop")
        if not stop or not isinstance(start.get("ptychography"), dict):
            continue
        reason = _reason(root, start["uid"], str(stop.get("exit_status")))
        if reason:
            yield Unfinished(start["uid"], start.get("scan_id"), reason)


def _reason(root: Any, uid: str, exit_status: str) -> str:
    found = reconstructions(root, raw=uid, limit=20)
    if not found:
        return "has no reconstruction"
    if any(result.metadata["status"] == "complete" for result in found):
        return ""
    newest = found[0].metadata["status"]
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
    ConnectionError
        When the catalog does not answer any more.
    """
    todo = list(unfinished(catalog, since=since, raw=raw))
    for run in todo[:limit]:
        try:
            result: Any = reconstruct(run.uid, model, catalog, raw=raw, **options)
        except ValueError as error:
            log.warning("run %s: %s", run.uid, error)
            result = error
        yield run, result
