"""``ptychonn models measure``: a model's error against the scan spacing, onto its card."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bluesky_ptychonn.cli.common.catalogs import CATALOG_VARIABLE, DeviceOption, ModelArgument, open_catalog, run_key
from bluesky_ptychonn.cli.models.cards import curve_head, curve_line, printable

if TYPE_CHECKING:
    from bluesky_ptychonn.card import MeasuredCurve, SamplingPoint
    from bluesky_ptychonn.recon.data.scans import LabelledScan


def measure(
    name: ModelArgument,
    labels: Annotated[
        list[str] | None, typer.Option(help="label or labelled run of the catalog to measure on; may be repeated")
    ] = None,
    catalog: Annotated[
        str | None, typer.Option(envvar=CATALOG_VARIABLE, help="where the labels are", show_default=False)
    ] = None,
    solver: Annotated[bool, typer.Option(help="beside an iterative solver (pty-chi, see label), same frames")] = False,
    scans: Annotated[
        int | None, typer.Option(help="simulated samples of each kind; by default 3, and none with labels")
    ] = None,
    starts: Annotated[int, typer.Option(min=1, help="choices of frames averaged at each step of a labelled run")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="another one gives other simulated samples")] = 0,
    out: Annotated[Path | None, typer.Option(help="folder for the model with the new card; by default its own")] = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure a model's error at several scan spacings, and write it on the card, which sparse plans obey.

    On held-out simulated samples, or on labelled runs of a catalog, whose frames are thinned.
    """
    from bluesky_ptychonn.card import CARD_FILE, find_model

    folder = find_model(name)
    scans = (0 if labels else 3) if scans is None else scans
    _check(folder, labels, catalog, scans, out)
    import torch

    from bluesky_ptychonn.recon.evaluation.error_vs_spacing import measure_labelled, measure_simulated, measured_card
    from bluesky_ptychonn.recon.models.checkpoint import load_model
    from bluesky_ptychonn.recon.models.library import WEIGHTS_FILE

    model = load_model(folder, device)
    options: dict[str, Any] = {
        "solver": solver,
        "device": device,
        "threads": torch.get_num_threads(),
        "progress": lambda point: typer.echo(curve_line(point)),
    }
    simulated: tuple[SamplingPoint, ...] = ()
    title = f"{model.card.name} {model.card.version}"
    if scans:
        typer.echo(printable(f"{title}, simulated, {scans} samples of each kind") + f"\n{curve_head(solver)}")
        simulated = measure_simulated(model, scans=scans, seed=seed, **options)
    curves: list[MeasuredCurve] = []
    for scan in _labelled(labels or [], catalog or ""):
        typer.echo(printable(f"{title}, {scan.source}, {scan.solver}") + f"\n{curve_head(solver)}")
        curves.append(measure_labelled(model, scan, starts=starts, **options))
    card = measured_card(model.card, simulated, curves, _record(name, labels, solver, scans, starts, seed))
    target = out or folder
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / WEIGHTS_FILE, out / WEIGHTS_FILE)
    card.save(target)
    low, high = card.measured_range_m
    typer.echo(f"sparse plans may take steps of {low * 1e6:.3f} to {high * 1e6:.3f} µm; {target / CARD_FILE}")


def _check(folder: Path, labels: list[str] | None, catalog: str | None, scans: int, out: Path | None) -> None:
    """Say before minutes of work what would stop it at the end."""
    if labels and not catalog:
        raise ValueError("measure: labels are in a catalog; say which with --catalog")
    if not labels and scans < 1:
        raise ValueError("measure: nothing to measure on; give --labels, or --scans of 1 or more")
    if out is None and not os.access(folder, os.W_OK):
        raise ValueError(
            f"measure: {folder} may not be written to; give --out, a folder for the model with its new card"
        )


def _labelled(labels: list[str], catalog: str) -> list[LabelledScan]:
    if not labels:
        return []
    from bluesky_ptychonn.live.batch.label import read_label

    with open_catalog(catalog) as root:
        return [read_label(root, run_key(which)) for which in labels]


def _record(name: str, labels: list[str] | None, solver: bool, scans: int, starts: int, seed: int) -> dict[str, Any]:
    """How this was measured, for the card."""
    from datetime import UTC, datetime

    from bluesky_ptychonn.catalog.results.provenance import software
    from bluesky_ptychonn.recon.solver.ptychi import solver_version

    command = ["ptychonn models measure", name, *(f"--labels {which}" for which in labels or [])]
    command += [*(["--solver"] if solver else []), f"--scans {scans}", f"--seed {seed}"]
    command += [f"--starts {starts}"] if labels else []
    return {
        "command": " ".join(command),
        "solver": f"pty-chi {solver_version()} LSQML" if solver else None,
        "software": software(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
