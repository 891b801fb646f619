"""``ptychonn train``: from a probe to a model, by simulation, labels, the physics alone, or a mix of them."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bluesky_ptychonn.cli.common.catalogs import CATALOG_VARIABLE, open_catalog, run_key
from bluesky_ptychonn.cli.common.progress import show_progress

if TYPE_CHECKING:
    from bluesky_ptychonn.card import ModelCard


def train(
    probe: Annotated[
        str,
        typer.Option(
            help="'simulated', a file with the complex probe (.npy, .npz, .cxi, .h5), or 'any' for a model that is "
            "told its probe later"
        ),
    ],
    out: Annotated[Path, typer.Option(help="folder of the model; a killed training resumes from it")],
    name: Annotated[str | None, typer.Option(help="name of the model; the folder's by default")] = None,
    version: Annotated[str, typer.Option(help="version of the model")] = "1",
    family: Annotated[str, typer.Option(help="lifted works through the probe, direct from counts alone")] = "lifted",
    frames: Annotated[
        int, typer.Option(help="frames to train on; 0 with --start measures its weights for this probe")
    ] = 100_000,
    start: Annotated[
        str | None, typer.Option(help="model to start from; its network and family are taken, whatever its frame size")
    ] = None,
    photons: Annotated[
        float | None, typer.Option(help="photons a frame without sample; by default the probe's own, or 1e5")
    ] = None,
    width: Annotated[float | None, typer.Option(help="channels of a lifted, width factor of a direct network")] = None,
    frame_size: Annotated[int, typer.Option(help="side of a frame, px, with --probe any; else the probe's")] = 128,
    patch: Annotated[
        int | None, typer.Option(help="side of the predicted patch, px; by default half the frame")
    ] = None,
    batch: Annotated[int, typer.Option(help="frames a step")] = 16,
    learning_rate: Annotated[float, typer.Option(help="peak of the schedule")] = 2e-3,
    schedule: Annotated[Literal["cosine", "cyclic"], typer.Option(help="of the learning rate")] = "cosine",
    precision: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="of the convolutions; float16 on CUDA alone")
    ] = "float32",
    patience: Annotated[
        int, typer.Option(help="stop after this many judgements on held-out frames (50 in all) without gain; 0 never")
    ] = 0,
    labels: Annotated[
        list[str] | None,
        typer.Option(help="label in the catalog, by its uid or its run's, or .npz of one; may be given again"),
    ] = None,
    measured: Annotated[
        list[str] | None,
        typer.Option(help="run in the catalog, by uid, to train on without a label, or .npz; may be given again"),
    ] = None,
    catalog: Annotated[
        str | None,
        typer.Option(envvar=CATALOG_VARIABLE, help="catalog of --labels and --measured: folder, address or profile"),
    ] = None,
    mix: Annotated[
        str | None, typer.Option(help="shares of the batches, such as simulated=1,labelled=1,label-free=0.5")
    ] = None,
    seed: Annotated[int, typer.Option(help="of weights and data")] = 0,
    energy_ev: Annotated[float | None, typer.Option(help="photon energy, eV")] = None,
    wavelength_m: Annotated[
        float | None, typer.Option(help="wavelength, m, instead of a photon energy: of electrons")
    ] = None,
    distance_m: Annotated[float | None, typer.Option(help="sample to detector, m")] = None,
    pixel_pitch_m: Annotated[float | None, typer.Option(help="detector pixel pitch, m")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    threads: Annotated[int, typer.Option(help="torch threads on a CPU; 0: as many as processors are free")] = 0,
) -> None:
    """Train a model for a measured probe, measure it, and write its card.

    By simulation through the probe; with --labels also by what 'ptychonn label' made of measured runs, and with
    --measured by frames nobody has a label for. Several GPUs: torchrun --nproc-per-node 2 -m bluesky_ptychonn train ...
    """
    import torch

    from bluesky_ptychonn.cli.train import read_scans
    from bluesky_ptychonn.processors import free_processors
    from bluesky_ptychonn.recon.training.distributed import rank_here
    from bluesky_ptychonn.recon.training.model import ModelInfo
    from bluesky_ptychonn.recon.training.request import TrainRequest

    torch.set_num_threads(threads or free_processors())
    request = TrainRequest(
        probe=probe,
        out=out,
        info=ModelInfo(name or out.name, version, str(probe), shlex.join(["ptychonn", *sys.argv[1:]])),
        settings={
            "frames": frames,
            "batch_size": batch,
            "learning_rate": learning_rate,
            "schedule": schedule,
            "precision": precision,
            "patience": patience,
            "seed": seed,
        },
        geometry_given=_given(
            energy_ev=energy_ev, wavelength_m=wavelength_m, distance_m=distance_m, pixel_pitch_m=pixel_pitch_m
        ),
        family=family,
        start=start,
        photons=photons,
        width=width,
        patch=patch,
        frame_size=frame_size,
        mix=mix,
        device=device,
    )
    labelled: list[Any] = []
    unlabelled: list[Any] = []
    if not request.any_probe:
        labelled, unlabelled = read_scans(labels, measured, catalog, request.probe_wave, request.start_model)
    with _training_bar() if rank_here() == 0 else contextlib.nullcontext() as bar:
        card = request.run(labelled, unlabelled, bar)
    if card is not None:  # a helper of the process that writes has none
        _print_result(card, out)


def _given(**values: float | None) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def _print_result(card: ModelCard, out: Path) -> None:
    any_probe, of_probes = (", for any probe", ", held-out probes") if card.for_any_probe else ("", "")
    typer.echo(f"{card.name} {card.version} in {out}{any_probe}")
    typer.echo(f"held-out patches{of_probes}: phase error {card.held_out['patch_phase_mae_rad']:.3f} rad")
    if card.for_any_probe:
        return
    typer.echo("held-out scans:   step / probe   step (µm)   phase error (rad)   correlation   frames")
    for point in card.sampling:
        typer.echo(
            f"{point.sampling:>30.2f} {point.step_m * 1e6:>11.3f} {point.phase_mae_rad:>19.3f} "
            f"{point.phase_correlation:>13.3f} {point.frames:>8d}"
        )


@contextlib.contextmanager
def _training_bar() -> Iterator[Callable[[int, int, float], None]]:
    """Show frames, time left and the smoothed loss; what it yields takes frames done, all, and the loss."""
    with show_progress("training") as show:
        yield lambda done, total, loss: show(done, total, f"loss {loss:.4f}")


def read_scans(
    labels: list[str] | None, measured: list[str] | None, catalog: str | None, probe: Any, model: Any = None
) -> tuple[list[Any], list[Any]]:
    """Read labelled and measured scans, each an .npz file or something in the catalog.

    Measured runs get the probe (N, N), and are preprocessed as the model's card says. ValueError in words when there is
    no such file, label or run, or no catalog to look it up in.
    """
    from bluesky_ptychonn.recon.data.scans import LabelledScan, MeasuredScan

    labels, measured = labels or [], measured or []
    stored = [name for name in (*labels, *measured) if not _is_file(name)]
    if stored and catalog is None:
        raise ValueError(
            f"train: {', '.join(stored)} would be in a catalog; say which with --catalog, or give .npz files"
        )
    with open_catalog(catalog) if stored and catalog is not None else contextlib.nullcontext() as root:
        return (
            [LabelledScan.load(name) if _is_file(name) else _label(root, name) for name in labels],
            [MeasuredScan.load(name) if _is_file(name) else _run(root, name, probe, model) for name in measured],
        )


def _is_file(name: str) -> bool:
    return name.endswith(".npz") or Path(name).is_file()


def _label(root: Any, which: str) -> Any:
    from bluesky_ptychonn.live.batch.label import read_label

    return read_label(root, run_key(which))


def _run(root: Any, which: str, probe: Any, model: Any) -> Any:
    from bluesky_ptychonn.catalog.runs.measured import ProbeSetup, measured_run
    from bluesky_ptychonn.catalog.runs.stored_documents import find_run

    preprocess = None if model is None else model.card.input.preprocess
    return measured_run(find_run(root, run_key(which)), ProbeSetup.from_source(probe=probe, preprocess=preprocess)).scan
