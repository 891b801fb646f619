"""Train a network by simulation through a probe: deterministic for a seed, resumable after any kill."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from bluesky_ptychonn.recon.network import NetworkConfig, ObjectNetwork, build_network, fix_gauge
from bluesky_ptychonn.recon.synthetic import SimulatedFrames, SyntheticConfig

#: Called after a step with (frames done, frames in all, smoothed loss).
Progress = Callable[[int, int, float], None]


class TrainingConfig(BaseModel):
    """How to train.

    Parameters
    ----------
    network : DirectConfig or LiftedConfig
        What to train.
    synthetic : SyntheticConfig
        What to train on.
    loss : {"complex", "amplitude_phase"}
        ``complex``: `gauge_free_loss`, weighted by the probe's modulus. ``amplitude_phase``: `amplitude_phase_loss`, as
        published for PtychoNN, weighted by its intensity; the direct family learns faster by it, see there.
    frames : int
        Simulated frames seen in all; 0 keeps the weights it starts from.
    batch_size : int
        Frames a step.
    learning_rate : float
        Peak of the schedule: linear warm-up over the first 3 %, cosine to zero.
    weight_decay : float
        Of AdamW.
    ema : float
        Decay a step of the averaged weights, which are the ones kept.
    seed : int
        Of weights and data.
    save_every_s : float
        Seconds between checkpoints.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: NetworkConfig
    synthetic: SyntheticConfig = SyntheticConfig()
    loss: Literal["complex", "amplitude_phase"] = "complex"
    frames: int = Field(default=100_000, ge=0, le=10**9)
    batch_size: int = Field(default=16, ge=1, le=4096)
    learning_rate: float = Field(default=2e-3, gt=0, le=1)
    weight_decay: float = Field(default=1e-4, ge=0, le=1)
    ema: float = Field(default=0.998, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)
    save_every_s: float = Field(default=60.0, gt=0)

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return max(1, round(self.frames / self.batch_size)) if self.frames else 0


def probe_weight(probe: Tensor, patch_size: int, power: float = 1.0, floor: float = 0.02) -> Tensor:
    """Weight of the loss, (h, w) float32, sum 1: the probe's modulus to a power, and a small floor.

    The modulus rather than the intensity where a network can see them: sparse scans also need the dimmer parts of the
    field.
    """
    margin = (probe.shape[-1] - patch_size) // 2
    beam = probe[margin : margin + patch_size, margin : margin + patch_size].abs()
    weight = (beam / beam.max()) ** power + floor
    return weight / weight.sum()


def gauge_free_loss(patch: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean modulus of the difference after taking out the global phase of each patch. (B, h, w) → scalar."""
    with torch.no_grad():
        turn = torch.exp(1j * (patch * truth.conj() * weight).sum(dim=(-2, -1), keepdim=True).angle())
    difference = patch - truth * turn
    modulus = (difference.real.square() + difference.imag.square() + 1e-8).sqrt()
    return (modulus * weight).sum(dim=(-2, -1)).mean()


def amplitude_phase_loss(patch: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of the errors of amplitude and phase, as published (L1 on both). (B, h, w) → scalar.

    The truth's weighted mean is turned to be real, which gives the network one answer to aim at. A direct network,
    which sees counts only, needs that: after 8,000 frames of one training the mosaic of every 6th frame of the measured
    star had a phase correlation of 0.48 with this loss and 0.43 with `gauge_free_loss`.
    """
    truth = fix_gauge(truth, weight)
    amplitude = (patch.abs() - truth.abs()).abs()
    phase = (patch * truth.conj()).angle().abs()
    return ((amplitude + phase) * weight).sum(dim=(-2, -1)).mean()


def _rate(step: int, config: TrainingConfig) -> float:
    warm_up = max(1, round(0.03 * config.steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, config.steps - warm_up)))


def _average(kept: ObjectNetwork, network: ObjectNetwork, decay: float) -> None:
    with torch.no_grad():
        for a, b in zip(kept.state_dict().values(), network.state_dict().values(), strict=True):
            if a.is_floating_point():
                a.lerp_(b, 1 - decay)
            else:
                a.copy_(b)


def fit(
    probe: NDArray[np.complex64] | None,
    config: TrainingConfig,
    *,
    checkpoint: Path | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    start: Mapping[str, Tensor] | None = None,
) -> tuple[ObjectNetwork, dict[str, Any]]:
    """Train a network.

    Parameters
    ----------
    probe : (N, N) complex64 ndarray or None
        Measured probe, any scale; None to train for a family of probes, ``config.synthetic.probes``.
    config : TrainingConfig
        How.
    checkpoint : Path, optional
        File that the state is kept in and resumed from. It is replaced atomically and belongs to one configuration.
    device : torch.device or str
        Where to train.
    progress : callable, optional
        See `Progress`.
    start : mapping of str to Tensor, optional
        Weights to start from instead of random ones: another model's state dict.

    Returns
    -------
    network : ObjectNetwork
        Averaged weights, in evaluation mode, on the CPU.
    record : dict
        ``loss`` (list of smoothed losses, one a percent), ``seconds``, ``frames``.

    Raises
    ------
    ValueError
        When the probe or the weights to start from do not fit the network, or the checkpoint belongs to another
        configuration.
    """
    size = config.network.frame_size
    if probe is not None and probe.shape != (size, size):
        raise ValueError(
            f"fit: probe is {probe.shape} px, the network's frames are ({size}, {size}) px; "
            "set frame_size of the network, or crop or pad the probe"
        )
    torch.manual_seed(config.seed)
    network = build_network(config.network)
    if start is not None:
        try:
            network.load_state_dict(dict(start))
        except RuntimeError as error:
            raise ValueError(f"fit: the weights to start from belong to another network: {error}") from None
    network = network.to(device).train()
    kept = deepcopy(network)
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    patch = config.network.patch_size
    data = SimulatedFrames(probe, patch, config.batch_size, config.synthetic, config.seed, device, size)
    if config.loss == "complex":
        score, shape = gauge_free_loss, (1.0, 0.02)
    else:
        score, shape = amplitude_phase_loss, (2.0, 0.01)
    identity = config.model_dump_json(exclude={"save_every_s"})
    step, smooth, losses, spent = 0, math.nan, [], 0.0
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if state["config"] != identity:
            raise ValueError(
                f"fit: {checkpoint.name} belongs to another configuration; give its settings to resume it, "
                "or another --out to start afresh"
            )
        network.load_state_dict(state["network"])
        kept.load_state_dict(state["kept"])
        optimiser.load_state_dict(state["optimiser"])
        step, smooth, losses, spent = state["step"], state["smooth"], list(state["losses"]), state["seconds"]

    def save() -> None:
        if checkpoint is None:
            return
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        draft = checkpoint.with_suffix(".part")
        torch.save(
            {
                "config": identity,
                "network": network.state_dict(),
                "kept": kept.state_dict(),
                "optimiser": optimiser.state_dict(),
                "step": step,
                "smooth": smooth,
                "losses": losses,
                "seconds": spent + time.monotonic() - started,
            },
            draft,
        )
        draft.replace(checkpoint)

    started = saved = time.monotonic()
    report_every = max(1, config.steps // 100)
    while step < config.steps:
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * _rate(step, config)
        counts, told, truth = data.batch(step)
        weight = probe_weight(told, patch, *shape)
        losses_by_stage = [score(e, truth, weight) for e in network.stages(counts, told)]
        loss = torch.stack(losses_by_stage).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        # A short memory at first, so that the average is not dragged by the random start.
        _average(kept, network, min(config.ema, (1 + step) / (10 + step)))
        last = float(losses_by_stage[-1].detach())
        smooth = last if math.isnan(smooth) else 0.98 * smooth + 0.02 * last
        step += 1
        if step % report_every == 0:
            losses.append(smooth)
        if progress is not None:
            progress(step * config.batch_size, config.steps * config.batch_size, smooth)
        if time.monotonic() - saved > config.save_every_s:
            save()
            saved = time.monotonic()
    save()
    record = {
        "loss": losses,
        "seconds": spent + time.monotonic() - started,
        "frames": config.steps * config.batch_size,
    }
    return kept.eval().cpu(), record
