"""Train a model for any probe of a family, judge it on probes and samples it never saw, and write its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bluesky_ptychonn.card import InputContract, ModelCard
from bluesky_ptychonn.recon.data.simulated import SimulatedFrames
from bluesky_ptychonn.recon.evaluation.simulated_scans import HELD_OUT_SEED, stitching_weight
from bluesky_ptychonn.recon.models.checkpoint import Model, save_model
from bluesky_ptychonn.recon.networks.networks import ObjectNetwork
from bluesky_ptychonn.recon.training.fit import Progress, TrainingConfig, fit
from bluesky_ptychonn.recon.training.model import TRAINING_STATE
from bluesky_ptychonn.recon.training.provenance import counts_range, provenance

#: Object pixel on the card of a model that knows pixels only.
_NOMINAL_PIXEL_M = 1e-8


def train_any_probe_model(
    config: TrainingConfig,
    out: Path,
    *,
    name: str,
    version: str = "1",
    command: str = "",
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    start: Model | None = None,
) -> ModelCard:
    """Train a lifted network on random probes and write its folder; see `recon.training.model.train_model`.

    Raises
    ------
    ValueError
        When the configuration names no family of probes, or a network that is not told its probe.
    """
    if config.synthetic.probes is None or config.network.family != "lifted":
        raise ValueError("produce_any: a lifted network and a family of probes (synthetic.probes) are needed")
    weights = None if start is None else start.network.state_dict()
    network, record = fit(
        None, config, checkpoint=out / TRAINING_STATE, device=device, progress=progress, start=weights
    )
    if start is not None:
        record["started_from"] = f"{start.card.name} {start.card.version}, sha256 {start.card.weights_sha256}"
    card = write_any_probe_model(network, config, record, out, name, version, command)
    (out / TRAINING_STATE).unlink(missing_ok=True)
    return card


def write_any_probe_model(
    network: ObjectNetwork,
    config: TrainingConfig,
    record: dict[str, Any],
    out: Path,
    name: str,
    version: str,
    command: str,
) -> ModelCard:
    """Judge a trained network on unseen probes and samples, and write the model's folder."""
    size, patch = config.network.frame_size, config.network.patch_size
    card = ModelCard(
        name=name,
        version=version,
        family=config.network.family,
        network=config.network.model_dump(mode="json"),
        input=InputContract(
            frame_shape=(size, size),
            patch_shape=(patch, patch),
            object_pixel_m=_NOMINAL_PIXEL_M,
            counts_per_frame=counts_range(config.synthetic),
        ),
        probe=None,
        held_out={"patch_phase_mae_rad": family_error(network, config)}
        | ({"training_loss": float(record["loss"][-1])} if record["loss"] else {}),
        training={
            **provenance(config, record, command),
            "assumed": ["object pixel: any, it works in pixels", "frame size: any multiple of 16 px, set by the probe"],
        },
        weights_sha256="0" * 64,
    )
    return save_model(out, network.eval(), card)


def family_error(
    network: ObjectNetwork, config: TrainingConfig, *, batches: int = 64, seed: int = HELD_OUT_SEED
) -> float:
    """Mean absolute phase error of patches, rad, on held-out samples through held-out probes, one a batch.

    Weighted by each probe's intensity, global phase removed frame by frame.
    """
    patch = network.config.patch_size
    data = SimulatedFrames(None, patch, 8, config.synthetic, seed, frame_size=network.config.frame_size)
    total = 0.0
    with torch.inference_mode():
        for index in range(batches):
            counts, told, truth = data.batch(index)
            weight = torch.as_tensor(stitching_weight(told.numpy(), truth.shape[-1]))
            weight = weight / weight.sum()
            cross = network(counts, told) * truth.conj()
            turn = torch.exp(-1j * (cross * weight).sum(dim=(-2, -1), keepdim=True).angle())
            total += float(((cross * turn).angle().abs() * weight).sum(dim=(-2, -1)).mean()) / batches
    return total
