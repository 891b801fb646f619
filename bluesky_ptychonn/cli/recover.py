"""``ptychonn recover``: raw runs that the catalog would not take while they were measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bluesky_ptychonn.cli.common.catalogs import CatalogOption, open_catalog


def recover(
    catalog: CatalogOption,
    backup: Annotated[Path, typer.Argument(help="backup folder of the session: where its raw writer keeps such runs")],
) -> None:
    """Write the raw runs of a backup folder into the catalog."""
    if not backup.expanduser().is_dir():
        raise ValueError(f"{backup}: no such folder; the configuration's catalog.backup names it")
    with open_catalog(catalog) as root:
        from bluesky_ptychonn.catalog.raw.writer import recover as recover_runs

        runs = recover_runs(root, backup)
    for run in runs:
        typer.echo(f"{run.uid[:8] or run.file.name}  {run.outcome}")
    typer.echo(f"{len(runs)} files" if runs else f"nothing to recover in {backup}")
