"""``ptychonn models publish``, ``fetch``, ``promote`` and ``rollback``: models in a catalog."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bluesky_ptychonn.cli.catalogs import CatalogOption, open_catalog
from bluesky_ptychonn.cli.models.group import ModelArgument, models, split

NameArgument = Annotated[str, typer.Argument(help="name of a model in the catalog")]


@models.command()
def publish(name: ModelArgument, catalog: CatalogOption) -> None:
    """Upload a model of this machine into a catalog; an interrupted upload goes on when this is repeated."""
    from bluesky_ptychonn.card import load_card
    from bluesky_ptychonn.catalog.registry.registry import Registry

    with open_catalog(catalog) as root:
        version = Registry(root).publish(name)
    typer.echo(f"{load_card(name).name}/{version} in the catalog {catalog}")


@models.command()
def fetch(
    name: Annotated[str, typer.Argument(help="name (its champion) or name/version of a model in the catalog")],
    catalog: CatalogOption,
    to: Annotated[Path | None, typer.Option(help="folder of models; by default the user's")] = None,
) -> None:
    """Download a model from a catalog, checked, so that it can be given by name here."""
    from bluesky_ptychonn.catalog.registry.registry import Registry

    with open_catalog(catalog) as root:
        folder = Registry(root).fetch(*split(name), to=to)
    typer.echo(f"{name.partition('/')[0]}/{folder.name} in {folder}")


@models.command()
def promote(
    name: NameArgument,
    version: Annotated[str, typer.Argument(help="version that becomes the champion")],
    reason: Annotated[str, typer.Option(help="why, in words; kept with the decision")],
    catalog: CatalogOption,
    number: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE the decision rests on; repeat. By default the errors on the cards"),
    ] = None,
) -> None:
    """Make a version the champion, which fetch gives, and keep who decided it, why and on which numbers."""
    from bluesky_ptychonn.catalog.registry.registry import Registry

    numbers = dict(_number(words) for words in number) if number else None
    with open_catalog(catalog) as root:
        decision = Registry(root).promote(name, version, reason, numbers)
    typer.echo(f"champion of {name}: {decision.version}, before {decision.before or 'none'}: {decision.reason}")


@models.command()
def rollback(
    name: NameArgument,
    catalog: CatalogOption,
    reason: Annotated[str, typer.Option(help="why, in words; kept with the decision")] = "rolled back",
) -> None:
    """Make the champion before the present one the champion again."""
    from bluesky_ptychonn.catalog.registry.registry import Registry

    with open_catalog(catalog) as root:
        decision = Registry(root).rollback(name, reason)
    typer.echo(f"champion of {name}: {decision.version}, before {decision.before or 'none'}: {decision.reason}")


def _number(words: str) -> tuple[str, float]:
    key, _, value = words.partition("=")
    try:
        return key, float(value)
    except ValueError:
        raise ValueError(f"--number {words!r}: give NAME=VALUE with a number, e.g. phase_mae_rad=0.08") from None
