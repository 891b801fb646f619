"""``ptychonn train``: from a probe to a model, by simulation, labels, the physics alone, or a mix of them."""

from __future__ import annotations

import contextlib
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from bluesky_ptychonn.cli.catalogs import CATALOG_VARIABLE
from bluesky_ptychonn.cli.train.any_probe import ANY, train_any
from bluesky_ptychonn.cli.train.progress_bar import TrainingBar


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
    family: Annotated[Literal["lifted", "direct"], typer.Option(help="lifted works through the probe")] = "lifted",
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
    distance_m: Annotated[float | None, typer.Option(help="sample to detector, m")] = None,
    pixel_pitch_m: Annotated[float | None, typer.Option(help="detector pixel pitch, m")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    threads: Annotated[int, typer.Option(help="torch threads on a CPU; 0 leaves them to torch")] = 0,
) -> None:
    """Train a model for a measured probe, measure it, and write its card.

    By simulation through the probe; with --labels also by what 'ptychonn label' made of measured runs, and with
    --measured by frames nobody has a label for. Several GPUs: torchrun --nproc-per-node 2 -m bluesky_ptychonn train ...
    """
    import torch

    from bluesky_ptychonn.cli.train.scans import mix_of, read_scans
    from bluesky_ptychonn.optics.probe_file import read_probe
    from bluesky_ptychonn.recon.data.simulated import SyntheticConfig
    from bluesky_ptychonn.recon.models.any_probe import resized
    from bluesky_ptychonn.recon.models.checkpoint import choose_device, load_model
    from bluesky_ptychonn.recon.training.distributed import rank_here
    from bluesky_ptychonn.recon.training.fit import TrainingConfig
    from bluesky_ptychonn.recon.training.model import train_model

    if threads:
        torch.set_num_threads(threads)
    first = None if start is None else load_model(start, "cpu")
    if frames < 1 and first is None:
        raise ValueError("train: --frames 0 trains nothing; give --start with a model to measure, or more frames")
    command = shlex.join(["ptychonn", *sys.argv[1:]])
    if probe == ANY:
        train_any(
            out,
            name,
            version,
            family,
            frames,
            first,
            photons,
            width,
            frame_size,
            patch,
            batch,
            learning_rate,
            seed,
            command,
            choose_device(device),
        )
        return
    wave, known = read_probe(probe)
    geometry = _geometry(known, wave.shape[0], energy_ev, distance_m, pixel_pitch_m)
    dose = photons or _photons(wave)
    if first is None:
        network = _network(family, wave.shape[0], patch, width, dose)
    else:
        network, family = resized(first.network.config, wave.shape[0], patch), first.card.family
    labelled, unlabelled = read_scans(labels or [], measured or [], catalog, wave, first)
    config = TrainingConfig(
        network=network,
        # A direct network cannot know the dose, so it is not asked to.
        synthetic=SyntheticConfig(photons=dose, dose_spread=2.0 if family == "lifted" else 1.05),
        mix=mix_of(mix, labelled=bool(labelled), label_free=bool(unlabelled)),
        loss="complex" if family == "lifted" else "amplitude_phase",
        frames=frames,
        batch_size=batch,
        learning_rate=learning_rate,
        schedule=schedule,
        precision=precision,
        patience=patience,
        seed=seed,
    )
    with TrainingBar() if rank_here() == 0 else contextlib.nullcontext() as bar:
        card = train_model(
            wave,
            geometry,
            config,
            out,
            labelled=labelled,
            measured=unlabelled,
            name=name or out.name,
            version=version,
            source=str(probe),
            command=command,
            device=choose_device(device),
            progress=bar,
            start=first,
        )
    if card is None:  # a helper of the process that writes
        return
    typer.echo(f"{card.name} {card.version} in {out}")
    typer.echo(f"held-out patches: phase error {card.held_out['patch_phase_mae_rad']:.3f} rad")
    typer.echo("held-out scans:   step / probe   step (µm)   phase error (rad)   correlation   frames")
    for point in card.sampling:
        typer.echo(
            f"{point.sampling:>30.2f} {point.step_m * 1e6:>11.3f} {point.phase_mae_rad:>19.3f} "
            f"{point.phase_correlation:>13.3f} {point.frames:>8d}"
        )


def _photons(wave: Any) -> float:
    """Photons in a probe in square-root photons; 1e5 for one that is only relative."""
    power = float((abs(wave) ** 2).sum())
    return power if power > 100 else 1e5


def _network(family: str, frame: int, patch: int | None, width: float | None, photons: float) -> Any:
    from bluesky_ptychonn.recon.networks.networks import DirectConfig, LiftedConfig

    if family == "lifted":
        return LiftedConfig(frame_size=frame, patch_size=patch or frame // 2, width=int(width or 40))
    return DirectConfig(
        frame_size=frame,
        patch_size=patch or frame // 2,
        width=width or 0.5,
        batch_norm=True,
        input_root=True,
        input_scale=round((photons / frame**2) ** 0.5, 1),
    )


def _geometry(known: Any, size: int, energy_ev: float | None, distance_m: float | None, pitch_m: float | None) -> Any:
    from bluesky_ptychonn.optics.geometry import Geometry

    given = {"energy_ev": energy_ev, "distance_m": distance_m, "pixel_pitch_m": pitch_m}
    missing = [f"--{key.replace('_', '-')}" for key, value in given.items() if value is None]
    if known is not None:
        changed = {key: value for key, value in given.items() if value is not None}
        return Geometry.from_document({**known.model_dump(), **changed}, "command line")
    if missing:
        raise ValueError(f"train: the probe's file says nothing of the geometry; give {', '.join(missing)} (eV, m, m)")
    return Geometry.from_document({**given, "frame_shape": (size, size)}, "command line")
