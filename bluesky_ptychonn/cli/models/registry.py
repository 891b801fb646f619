"""``ptychonn models publish``, ``fetch``, ``promote`` and ``rollback``: models in a catalog."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bluesky_ptychonn.cli.common.catalogs import CatalogOption, ModelArgument, open_registry, split_name, without_key

if TYPE_CHECKING:
    from bluesky_ptychonn.catalog.registry.decisions import Decision

NameArgument = Annotated[str, typer.Argument(help="name of a model in the catalog")]


def publish(name: ModelArgument, catalog: CatalogOption) -> None:
    """Upload a model of this machine into a catalog; an interrupted upload goes on when this is repeated."""
    from bluesky_ptychonn.card import load_card

    with open_registry(catalog) as registry:
        version = registry.publish(name)
    typer.echo(f"{load_card(name).name}/{version} in the catalog {without_key(catalog)}")


def fetch(
    name: Annotated[str, typer.Argument(help="name (its champion) or name/version of a model in the catalog")],
    catalog: CatalogOption,
    to: Annotated[Path | None, typer.Option(help="folder of models; by default the user's")] = None,
) -> None:
    """Download a model from a catalog, checked, so that it can be given by name here."""
    with open_registry(catalog) as registry:
        folder = registry.fetch(*split_name(name), to=to)
    typer.echo(f"{split_name(name)[0]}/{folder.name} in {folder}")


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
    numbers = dict(_parse_number(text) for text in number) if number else None
    with open_registry(catalog) as registry:
        decision = registry.promote(name, version, reason, numbers)
    _echo_decision(name, decision)


def rollback(
    name: NameArgument,
    catalog: CatalogOption,
    reason: Annotated[str, typer.Option(help="why, in words; kept with the decision")] = "rolled back",
) -> None:
    """Make the champion before the present one the champion again."""
    with open_registry(catalog) as registry:
        decision = registry.rollback(name, reason)
    _echo_decision(name, decision)


def _echo_decision(name: str, decision: Decision) -> None:
    typer.echo(f"champion of {name}: {decision.version}, before {decision.before or 'none'}: {decision.reason}")


def _parse_number(text: str) -> tuple[str, float]:
    key, _, value = text.partition("=")
    try:
        return key, float(value)
    except ValueError:
        raise ValueError(f"--number {text!r}: give NAME=VALUE with a number, e.g. phase_mae_rad=0.08") from None
