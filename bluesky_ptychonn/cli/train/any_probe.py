"""``ptychonn train --probe any``: a model that is told its probe later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from bluesky_ptychonn.cli.train.progress_bar import TrainingBar

#: ``--probe`` value that means random probes.
ANY = "any"


def train_any(
    out: Path,
    name: str | None,
    version: str,
    family: str,
    frames: int,
    first: Any,
    photons: float | None,
    width: float | None,
    frame_size: int,
    patch: int | None,
    batch: int,
    learning_rate: float,
    seed: int,
    command: str,
    device: Any,
) -> None:
    """Train on random probes, see `recon.training.any_probe_model`."""
    from bluesky_ptychonn.optics.probe_family import ProbeFamily
    from bluesky_ptychonn.recon.data.simulated import SyntheticConfig
    from bluesky_ptychonn.recon.models.any_probe import resized
    from bluesky_ptychonn.recon.networks.networks import LiftedConfig
    from bluesky_ptychonn.recon.training.any_probe_model import train_any_probe_model
    from bluesky_ptychonn.recon.training.fit import TrainingConfig

    if family != "lifted":
        raise ValueError("train: --probe any is for --family lifted: a direct network is not told its probe")
    side = patch or frame_size // 2
    config = TrainingConfig(
        network=LiftedConfig(frame_size=frame_size, patch_size=side, width=int(width or 48))
        if first is None
        else resized(first.network.config, frame_size, side),
        # Doses from a third to three times: beamlines differ by more than one does from itself.
        synthetic=SyntheticConfig(photons=photons or 3e5, dose_spread=3.0, probes=ProbeFamily.broad()),
        frames=frames,
        batch_size=batch,
        learning_rate=learning_rate,
        seed=seed,
    )
    with TrainingBar() as bar:
        card = train_any_probe_model(
            config,
            out,
            name=name or out.name,
            version=version,
            command=command,
            device=device,
            progress=bar,
            start=first,
        )
    typer.echo(f"{card.name} {card.version} in {out}, for any probe")
    typer.echo(f"held-out patches, held-out probes: phase error {card.held_out['patch_phase_mae_rad']:.3f} rad")
