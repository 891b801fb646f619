"""Train a network, by simulation through a probe, by labels, by the physics alone, or all at once.

Deterministic for a seed, and resumable after any kill.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bluesky_ptychonn.moved import called
from bluesky_ptychonn.recon.data.batches import Mix
from bluesky_ptychonn.recon.data.scans import LabelledScan, MeasuredScan
from bluesky_ptychonn.recon.data.simulated import SyntheticConfig
from bluesky_ptychonn.recon.models.checkpoint import Model
from bluesky_ptychonn.recon.networks.networks import ObjectNetwork, build_network, network_config
from bluesky_ptychonn.recon.training.checkpoint import TrainingState, digest
from bluesky_ptychonn.recon.training.config import Precision, TrainingConfig
from bluesky_ptychonn.recon.training.data import check, prepare
from bluesky_ptychonn.recon.training.distributed import process_group
from bluesky_ptychonn.recon.training.log import TrainingLog
from bluesky_ptychonn.recon.training.losses import batch_loss
from bluesky_ptychonn.recon.training.schedule import Schedule, rate

__all__ = ["Progress", "TrainingConfig", "fine_tune", "fit"]

called(__name__)  # `from ...recon.training import fit` gave the function in 0.1.0

#: Called after a step with (frames done, frames in all, smoothed loss).
Progress = Callable[[int, int, float], None]


def fit(
    probe: NDArray[np.complex64] | None,
    config: TrainingConfig,
    *,
    labelled: Sequence[LabelledScan] = (),
    measured: Sequence[MeasuredScan] = (),
    checkpoint: Path | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    start: Mapping[str, Tensor] | None = None,
) -> tuple[ObjectNetwork, dict[str, Any]]:
    """Train a network.

    Under `torchrun` each process takes its own batches and all end with the same weights; the first alone writes the
    checkpoint and reports, of its own batches.

    Parameters
    ----------
    probe : (N, N) complex64 ndarray or None
        Measured probe, any scale, to simulate through; None to train for a family of probes,
        ``config.synthetic.probes``, or without simulated frames.
    config : TrainingConfig
        How; its `mix` says how much of what.
    labelled : sequence of LabelledScan
        Measured frames with the object that a solver found.
    measured : sequence of MeasuredScan
        Measured frames without one.
    checkpoint : Path, optional
        File that the state is kept in and resumed from. It is replaced atomically and belongs to one configuration and
        its scans.
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
        ``loss`` (list of smoothed losses, one a percent), ``seconds``, ``frames``, and ``metrics``: rows of step,
        frames, seconds, frames a second, learning rate, losses and held-out errors by source.

    Raises
    ------
    ValueError
        When probe, scans or the weights to start from do not fit the network, the mix asks for frames that are not
        given, the device cannot work in the precision, or the checkpoint belongs to another training.
    """
    check(probe, config, labelled, measured)
    with process_group(device) as group:
        config.check_device(group.device)
        kept_in = TrainingState(
            checkpoint, config.identity, digest(labelled, measured), group.size, config.save_every_s
        )
        torch.manual_seed(config.seed)
        network = _begun(config, start).to(group.device).train()
        kept = deepcopy(network).eval()
        optimiser = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        scaler = torch.amp.GradScaler(group.device.type, enabled=config.precision == "float16")
        steps, judged_every = config.steps_of(group.size), config.judged_every(group.size)
        supply, judge = prepare(probe, config, labelled, measured, group.device, judged=bool(judged_every))
        parts: dict[str, Any] = {
            "network": network,
            "kept": kept,
            "optimiser": optimiser,
            "scaler": scaler,
            "judge": judge,
        }
        state = kept_in.load(group.device)
        for name, part in parts.items():
            if state.get(name):
                part.load_state_dict(state[name])
        step, spent = state.get("step", 0), state.get("seconds", 0.0)
        log = TrainingLog(config.mix, state.get("metrics", ()), state.get("losses", ()), state.get("smooth"))
        autocast = _autocast(config, group.device)
        report_every, frames_a_step = max(1, steps // 100), config.batch_size * group.size
        began = time.monotonic() - spent

        def save() -> None:
            if group.leads:
                states = {name: part.state_dict() for name, part in parts.items()}
                kept_in.save({**states, "step": step, "seconds": time.monotonic() - began, **log.state})

        stop = judge.over
        while step < steps and not stop:
            pace = config.learning_rate * rate(step, steps, config.schedule)
            for settings in optimiser.param_groups:
                settings["lr"] = pace
            batch = supply.batch(step * group.size + group.rank)
            _normalise(network, by_batch=batch.truth is not None)
            with autocast:
                estimates = network.stages(batch.counts, batch.probe)
            losses = [batch_loss(estimate, batch, config.loss) for estimate in estimates]
            optimiser.zero_grad(set_to_none=True)
            scaler.scale(torch.stack(losses).sum()).backward()  # type: ignore[no-untyped-call]
            group.average(network)
            scaler.unscale_(optimiser)
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            scaler.step(optimiser)
            scaler.update()
            # A short memory at first, so that the average is not dragged by the random start.
            _average(kept, network, min(config.ema, (1 + step) / (10 + step)))
            log.add(batch.source, float(losses[-1].detach()))
            step += 1
            judged = bool(judged_every) and (step % judged_every == 0 or step == steps)
            errors = judge.look(kept) if judged and group.leads else {}
            if judged or step % report_every == 0:
                log.row(step, step * frames_a_step, time.monotonic() - began, pace, errors)
            if step % report_every == 0:
                log.percent()
            stop = judged and group.told(judge.over)
            if progress is not None and group.leads:
                progress(step * frames_a_step, steps * frames_a_step, log.loss)
            if kept_in.due:
                save()
        save()
        judge.restore(kept)
        group.share(kept)
    record = {
        "loss": log.losses,
        "seconds": time.monotonic() - began,
        "frames": step * frames_a_step,
        "metrics": log.rows,
    }
    return kept.cpu(), record


def fine_tune(
    model: Model,
    *,
    labelled: Sequence[LabelledScan] = (),
    measured: Sequence[MeasuredScan] = (),
    synthetic: SyntheticConfig | None = None,
    mix: Mix | None = None,
    frames: int = 4000,
    learning_rate: float = 3e-4,
    batch_size: int = 16,
    schedule: Schedule = "cosine",
    precision: Precision = "float32",
    evaluate_every: int = 0,
    patience: int = 0,
    seed: int = 0,
    checkpoint: Path | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> tuple[ObjectNetwork, dict[str, Any]]:
    """Train a model on, with what was measured since: `fit` from its weights, at a lower rate.

    Parameters
    ----------
    model : Model
        To begin with; it is left as it is.
    labelled, measured
        See `fit`.
    synthetic : SyntheticConfig, optional
        What simulated frames vary over; by default as the model was trained, for its probe.
    mix : Mix, optional
        Shares; by default `Mix.usual`, with simulated frames where the model has a probe, so that nothing is forgotten.
    frames : int
        Seen in all.
    learning_rate, batch_size, schedule, precision, evaluate_every, patience, seed
        See `TrainingConfig`.
    checkpoint, device, progress
        See `fit`.

    Returns
    -------
    network : ObjectNetwork
        In evaluation mode, on the CPU.
    record : dict
        As from `fit`.

    Raises
    ------
    ValueError
        As from `fit`, and when there is nothing to train on.
    """
    probe = None if model.probe is None else model.probe.detach().cpu().numpy()
    lifted = model.card.family == "lifted"
    if mix is None:
        if probe is None and not labelled and not measured:
            raise ValueError(f"fine_tune: model {model.card.name!r} has no probe to simulate through; give scans")
        mix = Mix.usual(simulated=probe is not None, labelled=bool(labelled), label_free=bool(measured))
    config = TrainingConfig(
        network=network_config({"family": model.card.family, **model.card.network}),
        synthetic=_as_trained(model) if synthetic is None else synthetic,
        mix=mix,
        loss="complex" if lifted else "amplitude_phase",
        frames=frames,
        batch_size=batch_size,
        learning_rate=learning_rate,
        schedule=schedule,
        precision=precision,
        evaluate_every=evaluate_every,
        patience=patience,
        seed=seed,
    )
    return fit(
        probe if mix.simulated else None,
        config,
        labelled=labelled,
        measured=measured,
        checkpoint=checkpoint,
        device=device,
        progress=progress,
        start=model.network.state_dict(),
    )


def _as_trained(model: Model) -> SyntheticConfig:
    """Tell what a model's simulated frames varied over, as its card has it, for its own probe."""
    config = model.card.training.get("config")
    if isinstance(config, dict) and isinstance(config.get("synthetic"), dict):
        return SyntheticConfig.model_validate({**config["synthetic"], "probes": None})
    photons = 1e5 if model.probe is None else float(model.probe.abs().square().sum())
    return SyntheticConfig(photons=photons, dose_spread=2.0 if model.card.family == "lifted" else 1.05)


def _begun(config: TrainingConfig, start: Mapping[str, Tensor] | None) -> ObjectNetwork:
    network = build_network(config.network)
    if start is not None:
        try:
            network.load_state_dict(dict(start))
        except RuntimeError as error:
            raise ValueError(f"fit: the weights to start from belong to another network: {error}") from None
    return network


def _autocast(config: TrainingConfig, device: torch.device) -> AbstractContextManager[Any]:
    if config.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, getattr(torch, config.precision))


def _normalise(network: ObjectNetwork, *, by_batch: bool) -> None:
    """Say by what batch normalisation goes: the batch, or what it has kept.

    A label-free batch shows few places of the sample, which do not stand for all: normalised by it, the half-trained
    network of `bluesky_ptychonn.recon.training.losses` went from 0.074 to 0.080 rad, and to 0.071 by what was kept.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train(by_batch)


def _average(kept: ObjectNetwork, network: ObjectNetwork, decay: float) -> None:
    with torch.no_grad():
        for a, b in zip(kept.state_dict().values(), network.state_dict().values(), strict=True):
            if a.is_floating_point():
                a.lerp_(b, 1 - decay)
            else:
                a.copy_(b)
