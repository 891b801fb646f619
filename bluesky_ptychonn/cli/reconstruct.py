"""``ptychonn reconstruct``: a run that is already in the catalog; ``backfill``: all runs that lack a reconstruction."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from bluesky_ptychonn.cli.common.catalogs import (
    MODEL_HELP,
    CatalogOption,
    RunArgument,
    check_model,
    echo_result,
    open_catalog,
    run_key,
)
from bluesky_ptychonn.cli.common.options import (
    GivenOptions,
    ProbeOption,
    ProbePixelOption,
    takes_reconstruction_options,
    with_probe,
)
from bluesky_ptychonn.cli.common.progress import show_progress

# Of `reconstruct`, which has a timing of its own and keeps no results on disk.
_takes_options = takes_reconstruction_options(without=("pace", "spool_mib"))


@_takes_options
def reconstruct(
    catalog: CatalogOption,
    run: RunArgument,
    model: Annotated[str, typer.Option(help=MODEL_HELP)],
    probe: ProbeOption = None,
    probe_pixel_m: ProbePixelOption = None,
    *,
    given: GivenOptions,
) -> None:
    """Reconstruct a run of the catalog with a model; the result goes into the same catalog."""
    check_model(model, probe)
    with open_catalog(catalog) as root:
        from bluesky_ptychonn.card import load_card
        from bluesky_ptychonn.catalog.registry.champion import resolve_model
        from bluesky_ptychonn.catalog.runs.data_keys import geometry_of
        from bluesky_ptychonn.catalog.runs.stored_documents import find_run
        from bluesky_ptychonn.live.batch.reconstruct import reconstruct as run_reconstruction

        resolved: Any = resolve_model(model, root)
        stored = find_run(root, run_key(run), given.get("raw"))
        start = stored.metadata["start"]
        said = start.get("ptychography") or {}
        keywords = given.keywords(load_card(resolved), recorded=said.get("geometry"))
        if probe is not None:
            recorded = geometry_of(start, keywords.get("geometry"))
            resolved = with_probe(resolved, probe, recorded, keywords.get("preprocess"), probe_pixel_m)
        with show_progress("reconstructing") as show:
            result = run_reconstruction(
                stored, resolved, root, progress=lambda now: show(now.done, now.expected, ""), **keywords
            )
        tuned = keywords.get("refine") and keywords["refine"].tune_probe
        notes = [_probe_note(result.metadata.get("refinement") or {})] if tuned else []
        echo_result(result, *notes)
        typer.echo(f"in the catalog as processed/{result.path_parts[-1]}")


def _probe_note(refinement: Mapping[str, Any]) -> str:
    """Say what tuning the probe found, from a reconstruction's metadata."""
    found = refinement.get("probe")
    if not found:
        return "probe: not tuned"
    large = [f"{name} {value:+.2f}" for name, value in found["aberrations_rad"].items() if abs(value) >= 0.03]
    aberrations = ", ".join(large) or "nothing above 0.03"
    used = "used" if found["used"] else "not used: the frames are explained as well without"
    return f"probe: {aberrations} rad (RMS over the pupil), {used}"


@_takes_options
def backfill(
    catalog: CatalogOption,
    model: Annotated[str, typer.Option(help=MODEL_HELP)],
    days: Annotated[float | None, typer.Option(help="only runs of the last days")] = None,
    limit: Annotated[int | None, typer.Option(help="most runs to reconstruct")] = None,
    list_only: Annotated[bool, typer.Option("--list", help="say which runs there are, and do nothing")] = False,
    *,
    given: GivenOptions,
) -> None:
    """Reconstruct the finished runs of a catalog that have no whole reconstruction."""
    check_model(model)
    since = None if days is None else time.time() - 86400 * days
    with open_catalog(catalog) as root:
        from bluesky_ptychonn.card import load_card
        from bluesky_ptychonn.catalog.registry.champion import resolve_model
        from bluesky_ptychonn.live.batch.backfill import backfill as fill
        from bluesky_ptychonn.live.batch.backfill import unfinished

        raw = given.get("raw")
        keywords = {"raw": raw} | given.keywords(load_card(resolve_model(model, root)))
        count, found = 0, ((run, "") for run in unfinished(root, model, since=since, **keywords))
        if not list_only:
            done = fill(root, model, since=since, limit=limit, **keywords)
            found = ((run, f"; now {result!r}") for run, result in done)
        for run, now in found:
            count += 1
            typer.echo(f"scan {run.scan_id}, run {run.uid[:8]}: {run.reason}{now}")
        typer.echo(f"{count} runs" if count else "every finished ptychography run has its reconstruction")
