"""Put the commands of ``ptychonn models`` together."""

from __future__ import annotations

import typer

from bluesky_ptychonn.cli.models.cards import compare, list_models, show
from bluesky_ptychonn.cli.models.files import export, import_model
from bluesky_ptychonn.cli.models.measure import measure
from bluesky_ptychonn.cli.models.registry import fetch, promote, publish, rollback

models = typer.Typer(help="List, show, move and compare models; decide on champions.", invoke_without_command=True)
models.command("list")(list_models)
models.command()(show)
models.command()(compare)
models.command("import")(import_model)
models.command()(export)
models.command()(measure)
models.command()(publish)
models.command()(fetch)
models.command()(promote)
models.command()(rollback)


@models.callback()
def _list_by_default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_models()
