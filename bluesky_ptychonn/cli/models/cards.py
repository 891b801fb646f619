"""``ptychonn models list``, ``show`` and ``compare``: which models there are, and what their cards say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from bluesky_ptychonn.cli.catalogs import AlsoCatalogOption, ModelArgument, open_registry, split_name
from bluesky_ptychonn.cli.models.table import describe, one_line, printable, side_by_side

if TYPE_CHECKING:
    from bluesky_ptychonn.card import ModelCard
    from bluesky_ptychonn.catalog.registry.registry import Registry


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
    with open_registry(catalog) as registry:
        published = registry.list()
    typer.echo(f"in the catalog {catalog}:" if published else f"in the catalog {catalog}: no models")
    for model in published:
        summary = "card cannot be read" if model.card is None else one_line(model.card)
        mark = "champion, " if model.champion else "unfinished upload, " if model.state != "complete" else ""
        line = f"{f'{model.name}/{model.version}':<24} {mark}{summary}, by {model.by} {model.time[:10]}"
        typer.echo(printable(line))


def show(name: ModelArgument, catalog: AlsoCatalogOption = None) -> None:
    """Show a model's card: its input, its probe, and its measured error against the scan spacing.

    With a catalog also how its champion came to be one.
    """
    if catalog is None:
        typer.echo("\n".join(describe(*_here(name))))
        return
    with open_registry(catalog) as registry:
        card, where = _in_catalog(registry, name, catalog)
        typer.echo("\n".join(describe(card, where)))
        if rows := registry.metrics(card.name, card.version):
            typer.echo(f"metrics of its training: {len(rows)} rows in models/{card.name}/{card.version}/metrics")
        for decision in registry.history(split_name(name)[0]):
            change = f"{decision.kind} {decision.before or '-'} -> {decision.version}"
            typer.echo(printable(f"{decision.time[:19]} {change} by {decision.by}: {decision.reason}"))


def compare(first: ModelArgument, second: ModelArgument, catalog: AlsoCatalogOption = None) -> None:
    """Put two cards side by side: input, training, held-out errors, error against the scan spacing.

    With a catalog names are looked up there first, and then on this machine.
    """
    if catalog is None:
        cards = [_here(first), _here(second)]
    else:
        with open_registry(catalog) as registry:
            names = {model.name for model in registry.list()}
            cards = [
                _in_catalog(registry, name, catalog) if split_name(name)[0] in names else _here(name)
                for name in (first, second)
            ]
    typer.echo("\n".join(side_by_side(cards)))


def _here(name: str) -> tuple[ModelCard, str]:
    from bluesky_ptychonn.card import find_model, load_card

    return load_card(name), str(find_model(name))


def _in_catalog(registry: Registry, name: str, catalog: str) -> tuple[ModelCard, str]:
    model, version = split_name(name)
    if version is None and registry.champion(model) is None:
        complete = [item.version for item in registry.list() if item.name == model and item.state == "complete"]
        version = complete[-1] if complete else None
    return registry.card(model, version), f"catalog {catalog}"
