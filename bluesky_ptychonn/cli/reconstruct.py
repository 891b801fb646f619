"""``ptychonn reconstruct``: a run that is already in the catalog; ``backfill``: all runs that lack a reconstruction."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from bluesky_ptychonn.cli.catalogs import (
    MODEL_HELP,
    CatalogOption,
    DeviceOption,
    RunArgument,
    check_model,
    echo_result,
    open_catalog,
    run_key,
)


def reconstruct(
    catalog: CatalogOption,
    run: RunArgument,
    model: Annotated[str, typer.Option(help=MODEL_HELP)],
    device: DeviceOption = "auto",
    refine: Annotated[bool, typer.Option(help="refine the mosaic by sweeps of the physics through the probe")] = False,
    tune_probe: Annotated[
        bool, typer.Option(help="refine with the probe tuned to this run first, for optics that drift")
    ] = False,
    energy_ev: Annotated[float | None, typer.Option(help="photon energy, eV, where the run does not say")] = None,
    wavelength_m: Annotated[float | None, typer.Option(help="instead of it the wavelength, m: of electrons")] = None,
    distance_m: Annotated[float | None, typer.Option(help="sample to detector, m")] = None,
    pixel_pitch_m: Annotated[float | None, typer.Option(help="detector pixel pitch, m")] = None,
) -> None:
    """Reconstruct a run of the catalog with a model; the result goes into the same catalog."""
    from bluesky_ptychonn.card import load_card
    from bluesky_ptychonn.optics.geometry import Geometry
    from bluesky_ptychonn.recon.mosaic.refine_config import Refinement

    check_model(model)
    given = {
        "energy_ev": energy_ev,
        "wavelength_m": wavelength_m,
        "distance_m": distance_m,
        "pixel_pitch_m": pixel_pitch_m,
    }
    with open_catalog(catalog) as root:
        from bluesky_ptychonn.catalog.registry.champion import resolve_model
        from bluesky_ptychonn.live.batch.reconstruct import reconstruct as run_reconstruction

        resolved, geometry = resolve_model(model, root), None
        if any(value is not None for value in given.values()):
            frame_shape = load_card(resolved).input.frame_shape
            geometry = Geometry.from_document({**given, "frame_shape": frame_shape}, "command line")
        refinement = Refinement(tune_probe=True) if tune_probe else refine
        result = run_reconstruction(run_key(run), resolved, root, geometry=geometry, device=device, refine=refinement)
        notes = [_probe_note(result.metadata.get("refinement") or {})] if tune_probe else []
        echo_result(result, *notes)
        typer.echo(f"in the catalog as processed/{result.path_parts[-1]}")


def _probe_note(refinement: Mapping[str, Any]) -> str:
    """Say what tuning the probe found, from a reconstruction's metadata."""
    found = refinement.get("probe")
    if not found:
        return "probe: not tuned"
    large = [f"{name} {value:+.2f}" for name, value in found["aberrations_rad"].items() if abs(value) >= 0.03]
    aberrations = ", ".join(large) or "nothing above 0.03"
    used = "used" if found["used"] else "not used: the frames are explained as well without"
    return f"probe: {aberrations} rad (RMS over the pupil), {used}"


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

        count, found = 0, ((run, "") for run in unfinished(root, model, since=since, device=device))
        if not list_only:
            done = fill(root, model, since=since, limit=limit, device=device)
            found = ((run, f"; now {result!r}") for run, result in done)
        for run, now in found:
            count += 1
            typer.echo(f"scan {run.scan_id}, run {run.uid[:8]}: {run.reason}{now}")
        typer.echo(f"{count} runs" if count else "every finished ptychography run has its reconstruction")
