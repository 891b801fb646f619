"""``ptychonn models list``, ``show`` and ``compare``: which models there are, and what their cards say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from bluesky_ptychonn.cli.common.catalogs import (
    AlsoCatalogOption,
    ModelArgument,
    open_registry,
    split_name,
    without_key,
)

if TYPE_CHECKING:
    from bluesky_ptychonn.card import ModelCard, SamplingPoint
    from bluesky_ptychonn.catalog.registry.registry import Registry

_TRAINING = {"trained on frames": "frames", "training (s)": "seconds", "seed": "seed"}


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
    typer.echo(f"in the catalog {without_key(catalog)}:{'' if published else ' no models'}")
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
    return registry.card(model, version), f"catalog {without_key(catalog)}"


def printable(text: str) -> str:
    """Take out what would steer the terminal: cards come from strangers too."""
    return "".join(c if c.isprintable() else "?" for c in text)


def one_line(card: ModelCard) -> str:
    """Say what a model takes, and where its error was measured."""
    shape = "×".join(map(str, card.input.frame_shape))
    if card.for_any_probe:
        return f"{card.family}, for any probe: give it yours (ptychonn train --start {card.name} --frames 0)"
    line = f"{card.family}, frames {shape}, object pixel {card.input.object_pixel_m * 1e9:.1f} nm"
    if card.sampling or card.labelled:
        low, high = card.measured_range_m
        line += f", measured at steps {low * 1e6:.2f} to {high * 1e6:.2f} µm"
    return line


def format_counts(card: ModelCard) -> str:
    """Say what counts a frame had in training, or that nobody knows."""
    if "counts_per_frame" in card.training.get("unknown", []):
        return "unknown"
    low, high = card.input.counts_per_frame
    return f"{low:.3g} to {high:.3g}"


def describe(card: ModelCard, where: str) -> list[str]:
    """Lines of ``models show``."""
    take, probe = card.input, card.probe
    lines = [
        f"{card.name} {card.version}, {card.family}, in {where}",
        f"takes   {take.frame_shape[0]} × {take.frame_shape[1]} px, {format_counts(card)} counts a frame",
        f"gives   {take.patch_shape[0]} × {take.patch_shape[1]} px of {take.object_pixel_m * 1e9:.2f} nm",
    ]
    if probe is not None:
        lines.append(f"probe   {probe.diameter_m * 1e6:.3f} µm ({probe.diameter_px:.1f} px) across, {probe.source}")
    lines.append(f"made by {card.training.get('command', 'unknown')}")
    imported = card.training.get("imported")
    if isinstance(imported, dict):
        lines.append(f"from    {imported.get('file')} ({imported.get('layout')}), sha256 {imported.get('sha256')}")
    listed = {key: "; ".join(map(str, card.training.get(key, ()))) for key in ("unknown", "assumed")}
    lines += [f"{key}: {values}" for key, values in listed.items() if values]
    lines += [f"held out: {key} {value:.4f}" for key, value in card.held_out.items()]
    if card.measured.get("command"):
        lines.append(f"measured by {card.measured['command']}, {card.measured.get('time', '')[:10]}")
    curves = {"simulated": card.sampling, **{curve.source: curve.points for curve in card.labelled}}
    for source, points in curves.items():
        if points:
            beside = any(point.solver_phase_mae_rad is not None for point in points)
            lines += [f"error, {source}:", curve_head(beside), *(curve_line(point) for point in points)]
    return [printable(line) for line in lines]


def curve_head(solver: bool) -> str:
    """Heading over `curve_line`."""
    head = "   step (µm)   step / probe   phase error (rad)   correlation   covered   frames"
    return head + ("   solver: error (rad)   correlation   seconds" if solver else "")


def curve_line(point: SamplingPoint) -> str:
    """Say what was measured at one step."""
    line = (
        f"{point.step_m * 1e6:>12.3f} {point.sampling:>14.2f} {point.phase_mae_rad:>19.3f} "
        f"{point.phase_correlation:>13.3f} {point.covered_fraction:>9.0%} {point.frames:>8}"
    )
    if point.solver_phase_mae_rad is None:
        return line  # not asked, or the label is the solver's own image of these frames
    theirs = (point.solver_phase_correlation or 0.0, point.solver_s or 0.0)
    return f"{line} {point.solver_phase_mae_rad:>21.3f} {theirs[0]:>13.3f} {theirs[1]:>9.1f}"


def side_by_side(cards: Sequence[tuple[ModelCard, str]]) -> list[str]:
    """Lines of ``models compare``: a row for everything the cards say, ``-`` where one is silent."""
    rows: dict[str, list[str]] = {
        "": [f"{card.name} {card.version}" for card, _ in cards],
        "in": [where for _, where in cards],
    }
    columns = [_column(card) for card, _ in cards]
    rows |= {title: [column[title] for column in columns] for title in columns[0]}
    for key in dict.fromkeys(key for card, _ in cards for key in card.held_out):
        rows[f"held out: {key}"] = [f"{card.held_out[key]:.4f}" if key in card.held_out else "-" for card, _ in cards]
    curves = [points for card, _ in cards for points in (card.sampling, *(curve.points for curve in card.labelled))]
    for step in sorted({point.step_m for points in curves for point in points}):
        rows[f"error at {step * 1e6:.3f} µm (rad)"] = [_error(card, step) for card, _ in cards]
    table = [[printable(cell) for cell in (title, *cells)] for title, cells in rows.items()]
    widths = [max(len(row[column]) for row in table) for column in range(len(cards) + 1)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def _column(card: ModelCard) -> dict[str, str]:
    """Tell what every card says, by title."""
    take, training = card.input, card.training
    return {
        "family": card.family,
        "frame (px)": "×".join(map(str, take.frame_shape)),
        "patch (px)": "×".join(map(str, take.patch_shape)),
        "object pixel (nm)": f"{take.object_pixel_m * 1e9:.2f}",
        "counts a frame": format_counts(card),
        "probe (µm)": "-" if card.probe is None else f"{card.probe.diameter_m * 1e6:.3f}",
        **{title: str(training.get(key, "-")) for title, key in _TRAINING.items()},
        "weights sha256": card.weights_sha256[:12],
    }


def _error(card: ModelCard, step_m: float) -> str:
    try:
        return f"{card.error_at(step_m):.3f}"
    except ValueError:  # never measured there
        return "-"
