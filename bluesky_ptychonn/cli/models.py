"""``ptychonn models``: which models there are, and what they promise."""

from __future__ import annotations

from typing import Annotated

import typer

models = typer.Typer(help="List models, and show what one promises.", invoke_without_command=True)


@models.callback()
def _list_by_default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_models()


@models.command("list")
def list_models() -> None:
    """List the models that can be given by name."""
    from bluesky_ptychonn.card import available_models, load_card, model_folders

    found = available_models()
    if not found:
        typer.echo(f"no models; searched {', '.join(map(str, model_folders()))}")
    for name, folder in found.items():
        try:
            card = load_card(folder)
        except ValueError as error:
            typer.echo(f"{name:<24} cannot be used: {error}")
            continue
        shape = "×".join(map(str, card.input.frame_shape))
        words = f"{card.family}, frames {shape}, object pixel {card.input.object_pixel_m * 1e9:.1f} nm"
        if card.sampling:
            low, high = card.measured_range_m
            words += f", measured at steps {low * 1e6:.2f} to {high * 1e6:.2f} µm"
        typer.echo(f"{name:<24} {words}")


@models.command()
def show(name: Annotated[str, typer.Argument(help="name, name/version, or folder of a model")]) -> None:
    """Show a model's card: its input, its probe, and its measured error against the scan spacing."""
    from bluesky_ptychonn.card import find_model, load_card

    card, folder = load_card(name), find_model(name)
    take, probe = card.input, card.probe
    low, high = take.counts_per_frame
    typer.echo(f"{card.name} {card.version}, {card.family}, in {folder}")
    typer.echo(f"takes   {take.frame_shape[0]} × {take.frame_shape[1]} px, {low:.3g} to {high:.3g} counts a frame")
    typer.echo(f"gives   {take.patch_shape[0]} × {take.patch_shape[1]} px of {take.object_pixel_m * 1e9:.2f} nm")
    if probe is not None:
        typer.echo(f"probe   {probe.diameter_m * 1e6:.3f} µm ({probe.diameter_px:.1f} px) across, {probe.source}")
    typer.echo(f"made by {card.training.get('command', 'unknown')}")
    for key, value in card.held_out.items():
        typer.echo(f"held out: {key} {value:.4f}")
    if card.sampling:
        typer.echo("   step (µm)   step / probe   phase error (rad)   correlation   covered")
    for point in card.sampling:
        typer.echo(
            f"{point.step_m * 1e6:>12.3f} {point.sampling:>14.2f} {point.phase_mae_rad:>19.3f} "
            f"{point.phase_correlation:>13.3f} {point.covered_fraction:>9.0%}"
        )
