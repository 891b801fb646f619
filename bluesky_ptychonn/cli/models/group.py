"""``ptychonn models``: which models there are, and what they promise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bluesky_ptychonn.cli.catalogs import open_catalog
from bluesky_ptychonn.cli.models.table import describe, one_line, printable, side_by_side

if TYPE_CHECKING:
    from bluesky_ptychonn.card import ModelCard
    from bluesky_ptychonn.catalog.registry.registry import Registry

models = typer.Typer(help="List, show, move and compare models; decide on champions.", invoke_without_command=True)

AlsoCatalogOption = Annotated[
    str | None,
    typer.Option("--catalog", help="also this catalog's: its folder, http(s) address, or Tiled profile"),
]
ModelArgument = Annotated[str, typer.Argument(help="name, name/version, or folder of a model")]


@models.callback()
def _list_by_default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_models()


@models.command("list")
def list_models(catalog: AlsoCatalogOption = None) -> None:
    """List the models that can be given by name, and those of a catalog."""
    from bluesky_ptychonn.card import available_models, load_card, model_folders

    found = available_models()
    if not found:
        typer.echo(f"no models; searched {', '.join(map(str, model_folders()))}")
    for name, folder in found.items():
        try:
            typer.echo(f"{name:<24} {one_line(load_card(folder))}")
        except ValueError as error:
            typer.echo(f"{name:<24} cannot be used: {error}")
    if catalog is None:
        return
    from bluesky_ptychonn.catalog.registry.registry import Registry

    with open_catalog(catalog) as root:
        published = Registry(root).list()
    typer.echo(f"in the catalog {catalog}:" if published else f"in the catalog {catalog}: no models")
    for one in published:
        words = "card cannot be read" if one.card is None else one_line(one.card)
        mark = "champion, " if one.champion else "unfinished upload, " if one.state != "complete" else ""
        typer.echo(printable(f"{f'{one.name}/{one.version}':<24} {mark}{words}, by {one.by} {one.time[:10]}"))


@models.command()
def show(name: ModelArgument, catalog: AlsoCatalogOption = None) -> None:
    """Show a model's card: its input, its probe, and its measured error against the scan spacing.

    With a catalog also how its champion came to be one.
    """
    if catalog is None:
        typer.echo("\n".join(describe(*_here(name))))
        return
    from bluesky_ptychonn.catalog.registry.registry import Registry

    with open_catalog(catalog) as root:
        registry = Registry(root)
        card, where = _there(registry, name, catalog)
        typer.echo("\n".join(describe(card, where)))
        if rows := registry.metrics(card.name, card.version):
            typer.echo(f"metrics of its training: {len(rows)} rows in models/{card.name}/{card.version}/metrics")
        for decision in registry.history(name.partition("/")[0]):
            words = (
                f"{decision.time[:19]} {decision.kind} {decision.before or '-'} -> {decision.version} "
                f"by {decision.by}: {decision.reason}"
            )
            typer.echo(printable(words))


@models.command()
def compare(first: ModelArgument, second: ModelArgument, catalog: AlsoCatalogOption = None) -> None:
    """Put two cards side by side: input, training, held-out errors, error against the scan spacing.

    With a catalog names are looked up there first, and then on this machine.
    """
    if catalog is None:
        cards = [_here(first), _here(second)]
    else:
        from bluesky_ptychonn.catalog.registry.registry import Registry

        with open_catalog(catalog) as root:
            registry = Registry(root)
            names = {one.name for one in registry.list()}
            cards = [
                _there(registry, name, catalog) if name.partition("/")[0] in names else _here(name)
                for name in (first, second)
            ]
    typer.echo("\n".join(side_by_side(cards)))


def split(name: str) -> tuple[str, str | None]:
    """Split what a user types for a model in a catalog into its name and, where there is one, its version."""
    model, slash, version = name.partition("/")
    return model, version if slash else None


def _here(name: str) -> tuple[ModelCard, str]:
    from bluesky_ptychonn.card import find_model, load_card

    return load_card(name), str(find_model(name))


def _there(registry: Registry, name: str, catalog: str) -> tuple[ModelCard, str]:
    model, version = split(name)
    if version is None and registry.champion(model) is None:
        complete = [one.version for one in registry.list() if one.name == model and one.state == "complete"]
        version = complete[-1] if complete else None
    return registry.card(model, version), f"catalog {catalog}"
