"""The training loop: one step after another, averaged weights, judgements, and a state that a kill cannot spoil."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bluesky_ptychonn.recon.data.batches import Batches, MixedBatches, Source, TrainingData, make_sources
from bluesky_ptychonn.recon.evaluation.simulated_scans import HELD_OUT_SEED
from bluesky_ptychonn.recon.networks.base import ObjectNetwork
from bluesky_ptychonn.recon.networks.families import build_network
from bluesky_ptychonn.recon.training.checkpoint import TrainingState, digest
from bluesky_ptychonn.recon.training.config import TrainingConfig
from bluesky_ptychonn.recon.training.distributed import ProcessGroup
from bluesky_ptychonn.recon.training.early_stopping import EarlyStopping
from bluesky_ptychonn.recon.training.losses import batch_loss
from bluesky_ptychonn.recon.training.metrics_table import TrainingLog
from bluesky_ptychonn.recon.training.schedule import rate

#: Called after a step with (frames done, frames in all, smoothed loss).
Progress = Callable[[int, int, float], None]
_JUDGED_FRAMES = 128  # of each source


class Training:
    """A training under way: network, optimiser, averaged weights and what is known of them, kept in one file.

    The averaged weights are no `torch.optim.swa_utils.AveragedModel`: that begins with a copy of the first step's
    weights and keeps them under other names, and a training of an earlier version could not go on.
    """

    def __init__(
        self,
        data: TrainingData,
        config: TrainingConfig,
        group: ProcessGroup,
        checkpoint: Path | None,
        start: Mapping[str, Tensor] | None,
    ) -> None:
        self._config, self._group = config, group
        self._file = TrainingState(checkpoint, config.identity, digest(data), group.size, config.save_every_s)
        torch.manual_seed(config.seed)
        self._network = _initial_network(config, start).to(group.device).train()
        self.kept = deepcopy(self._network).eval()
        self._optimiser = torch.optim.AdamW(
            self._network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self._scaler = torch.amp.GradScaler(group.device.type, enabled=config.precision == "float16")
        self._steps, self._judge_every = config.steps_of(group.size), config.judged_every(group.size)
        self._batches, self._judge = _prepare(data, config, group.device, judged=bool(self._judge_every))
        self._parts: dict[str, Any] = {
            "network": self._network,
            "kept": self.kept,
            "optimiser": self._optimiser,
            "scaler": self._scaler,
            "judge": self._judge,
        }
        state = self._file.load(group.device)
        for name, part in self._parts.items():
            if state.get(name):
                part.load_state_dict(state[name])
        self._step = state.get("step", 0)
        self._log = TrainingLog(config.mix, state.get("metrics", ()), state.get("losses", ()), state.get("smooth"))
        self._frames_a_step = config.batch_size * group.size
        self._began = time.monotonic() - state.get("seconds", 0.0)

    @property
    def record(self) -> dict[str, Any]:
        """See `fit`."""
        return {
            "loss": self._log.losses,
            "seconds": time.monotonic() - self._began,
            "frames": self._step * self._frames_a_step,
            "metrics": self._log.rows,
        }

    def run(self, progress: Progress | None) -> None:
        """Train to the end, or until patience runs out."""
        report_every, frames = max(1, self._steps // 100), self._frames_a_step
        device, precision = self._group.device.type, self._config.precision
        autocast = torch.autocast(device, getattr(torch, precision), enabled=precision != "float32")
        stop = self._judge.should_stop
        while self._step < self._steps and not stop:
            learning_rate = self._config.learning_rate * rate(self._step, self._steps, self._config.schedule)
            self._one_step(learning_rate, autocast)
            step = self._step
            judged = bool(self._judge_every) and (step % self._judge_every == 0 or step == self._steps)
            errors = self._judge.evaluate(self.kept) if judged and self._group.is_main else {}
            if judged or step % report_every == 0:
                self._log.row(step, step * frames, time.monotonic() - self._began, learning_rate, errors)
            if step % report_every == 0:
                self._log.percent()
            stop = judged and self._group.broadcast(self._judge.should_stop)
            if progress is not None and self._group.is_main:
                progress(step * frames, self._steps * frames, self._log.loss)
            if self._file.due:
                self._save()
        self._save()
        self._judge.restore(self.kept)
        self._group.broadcast_weights(self.kept)

    def _one_step(self, learning_rate: float, autocast: torch.autocast) -> None:
        for settings in self._optimiser.param_groups:
            settings["lr"] = learning_rate
        batch = self._batches.batch(self._step * self._group.size + self._group.rank)
        _normalise(self._network, by_batch=batch.truth is not None)
        with autocast:
            estimates = self._network.stages(batch.counts, batch.probe)
        losses = [batch_loss(estimate, batch, self._config.loss) for estimate in estimates]
        self._optimiser.zero_grad(set_to_none=True)
        self._scaler.scale(torch.stack(losses).sum()).backward()  # type: ignore[no-untyped-call]
        self._group.average(self._network)
        self._scaler.unscale_(self._optimiser)
        torch.nn.utils.clip_grad_norm_(self._network.parameters(), 1.0)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        # A short memory at first, so that the average is not dragged by the random start.
        _average(self.kept, self._network, min(self._config.ema, (1 + self._step) / (10 + self._step)))
        self._log.add(batch.source, float(losses[-1].detach()))
        self._step += 1

    def _save(self) -> None:
        if self._group.is_main:
            states = {name: part.state_dict() for name, part in self._parts.items()}
            spent = time.monotonic() - self._began
            self._file.save({**states, "step": self._step, "seconds": spent, **self._log.state})


def _initial_network(config: TrainingConfig, start: Mapping[str, Tensor] | None) -> ObjectNetwork:
    network = build_network(config.network)
    if start is not None:
        try:
            network.load_state_dict(dict(start))
        except RuntimeError as error:
            raise ValueError(f"fit: the weights to start from belong to another network: {error}") from None
    return network


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


def _prepare(
    data: TrainingData, config: TrainingConfig, device: torch.device, *, judged: bool
) -> tuple[MixedBatches, EarlyStopping]:
    """Make what a training is fed and judged by, on a device.

    Where it is judged while it trains, scans are split by area, and one half is kept back.
    """

    def sources(data: TrainingData, seed: int) -> dict[Source, Batches]:
        sizes = (config.network.frame_size, config.network.patch_size, config.batch_size)
        return make_sources(config.mix, data, config.synthetic, sizes, seed, device)

    if not judged:
        return MixedBatches(config.mix, sources(data, config.seed)), EarlyStopping({}, config.mix, 0)
    first, second = data.halves()
    count = -(-_JUDGED_FRAMES // config.batch_size)
    held_out = {
        source: [batches.batch(k) for k in range(count)]
        for source, batches in sources(second, HELD_OUT_SEED + 1).items()
    }
    learnt = MixedBatches(config.mix, sources(first, config.seed))
    return learnt, EarlyStopping(held_out, config.mix, config.patience)
