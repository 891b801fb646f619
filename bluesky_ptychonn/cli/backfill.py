"""``ptychonn backfill``: what was measured and not reconstructed, or not to the end."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from bluesky_ptychonn.cli.catalogs import MODEL_HELP, CatalogOption, DeviceOption, check_model, open_catalog


def backfill(
    catalog: CatalogOption,
    model: Annotated[str, typer.Option(help=MODEL_HELP)],
    days: Annotated[float | None, typer.Option(help="only runs of the last days")] = None,
    limit: Annotated[int | None, typer.Option(help="most runs to reconstruct")] = None,
    device: DeviceOption = "auto",
    list_only: Annotated[bool, typer.Option("--list", help="say which runs there are, and do nothing")] = False,
) -> None:
    """Reconstruct the finished runs of a catalog that have no whole reconstruction."""
    check_model(model)
    since = None if days is None else time.time() - 86400 * days
    with open_catalog(catalog) as root:
        from bluesky_ptychonn.live.batch.backfill import backfill as fill
        from bluesky_ptychonn.live.batch.backfill import unfinished

        count = 0
        if list_only:
            for run in unfinished(root, since=since):
                count += 1
                typer.echo(f"scan {run.scan_id}, run {run.uid[:8]}: {run.reason}")
        else:
            for run, result in fill(root, model, since=since, limit=limit, device=device):
                count += 1
                typer.echo(f"scan {run.scan_id}, run {run.uid[:8]}: {run.reason}; now {result!r}")
        typer.echo(f"{count} runs" if count else "every finished ptychography run has its reconstruction")
