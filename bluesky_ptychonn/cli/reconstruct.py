"""``ptychonn reconstruct``: a run that is already in the catalog."""

from __future__ import annotations

from typing import Annotated

import typer

from bluesky_ptychonn.cli.catalogs import CatalogOption, open_catalog, run_key


def reconstruct(
    catalog: CatalogOption,
    run: Annotated[str, typer.Argument(help="uid of the run, its first letters, its scan id, or 'latest'")],
    model: Annotated[str, typer.Option(help="name or folder of the model")],
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    refine: Annotated[bool, typer.Option(help="refine the mosaic by sweeps of the physics through the probe")] = False,
    energy_ev: Annotated[float | None, typer.Option(help="photon energy, eV, where the run does not say")] = None,
    distance_m: Annotated[float | None, typer.Option(help="sample to detector, m")] = None,
    pixel_pitch_m: Annotated[float | None, typer.Option(help="detector pixel pitch, m")] = None,
) -> None:
    """Reconstruct a run of the catalog with a model; the result goes into the same catalog."""
    from bluesky_ptychonn.card import load_card
    from bluesky_ptychonn.optics.geometry import Geometry

    card = load_card(model)  # an unknown model is said before a server is started
    given = {"energy_ev": energy_ev, "distance_m": distance_m, "pixel_pitch_m": pixel_pitch_m}
    geometry = None
    if any(value is not None for value in given.values()):
        geometry = Geometry.from_document({**given, "frame_shape": card.input.frame_shape}, "command line")
    with open_catalog(catalog) as root:
        from bluesky_ptychonn.stream.reconstruct import reconstruct as run_reconstruction

        result = run_reconstruction(run_key(run), model, root, geometry=geometry, device=device, refine=refine)
        typer.echo(repr(result))
        for problem in result.problems:
            typer.echo(f"  {problem}")
        typer.echo(f"in the catalog as processed/{result.path_parts[-1]}")
