"""How to train: settings that validate, and tell whether a half-done training is theirs."""

from __future__ import annotations

from typing import Literal, TypedDict

import torch
from pydantic import BaseModel, ConfigDict, Field

from bluesky_ptychonn.recon.data.batches import Mix
from bluesky_ptychonn.recon.data.simulated import SyntheticConfig
from bluesky_ptychonn.recon.networks.families import NetworkConfig
from bluesky_ptychonn.recon.training.losses import Kind
from bluesky_ptychonn.recon.training.schedule import Schedule

Precision = Literal["float32", "bfloat16", "float16"]
#: Settings that came later: left out of a checkpoint's identity at their defaults, so that older ones resume.
_LATER = ("mix", "schedule", "precision", "evaluate_every", "patience")
_JUDGED_PARTS = 50


class TrainingSettings(TypedDict, total=False):
    """Fields of `TrainingConfig` that a user chooses for any network and data."""

    frames: int
    batch_size: int
    learning_rate: float
    schedule: Schedule
    precision: Precision
    evaluate_every: int
    patience: int
    seed: int


class TrainingConfig(BaseModel):
    """How to train.

    Parameters
    ----------
    network : DirectConfig or LiftedConfig
        What to train.
    synthetic : SyntheticConfig
        What simulated frames vary over, and how far the dose of measured ones is lowered.
    mix : Mix
        Shares of the batches that are simulated, labelled and label-free; each batch is of one source.
    loss : {"complex", "amplitude_phase"}
        ``complex``: `gauge_free_loss`, weighted by the probe's modulus. ``amplitude_phase``: `amplitude_phase_loss`, as
        published for PtychoNN, weighted by its intensity; the direct family learns faster by it, see there.
    frames : int
        Frames seen in all; 0 keeps the weights it starts from.
    batch_size : int
        Frames a step, of each process.
    learning_rate : float
        Peak of the schedule.
    schedule : {"cosine", "cyclic"}
        See `bluesky_ptychonn.recon.training.schedule.rate`.
    precision : {"float32", "bfloat16", "float16"}
        Of the convolutions; transforms and losses stay in float32.
    weight_decay : float
        Of AdamW.
    ema : float
        Decay a step of the averaged weights, which are the ones kept.
    evaluate_every : int
        Frames between judgements on held-out frames; 0 for none, or 50 in all where there is a `patience`. Scans are
        then split by area, and trained on one half.
    patience : int
        Stop after this many judgements without gain and keep the best averaged weights; 0 goes on to the end and keeps
        the last ones.
    seed : int
        Of weights and data.
    save_every_s : float
        Seconds between checkpoints.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: NetworkConfig
    synthetic: SyntheticConfig = SyntheticConfig()
    mix: Mix = Mix()
    loss: Kind = "complex"
    frames: int = Field(default=100_000, ge=0, le=10**9)
    batch_size: int = Field(default=16, ge=1, le=4096)
    learning_rate: float = Field(default=2e-3, gt=0, le=1)
    schedule: Schedule = "cosine"
    precision: Precision = "float32"
    weight_decay: float = Field(default=1e-4, ge=0, le=1)
    ema: float = Field(default=0.998, ge=0, lt=1)
    evaluate_every: int = Field(default=0, ge=0)
    patience: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0)
    save_every_s: float = Field(default=60.0, gt=0)

    def steps_of(self, processes: int) -> int:
        """Optimiser steps of each of several processes that share the frames."""
        return max(1, round(self.frames / (self.batch_size * processes))) if self.frames else 0

    def judged_every(self, processes: int) -> int:
        """Count the steps between judgements on held-out frames; 0 for none."""
        if not self.evaluate_every:
            return max(1, self.steps_of(processes) // _JUDGED_PARTS) if self.patience else 0
        return max(1, round(self.evaluate_every / (self.batch_size * processes)))

    @property
    def identity(self) -> str:
        """What has to be the same for a checkpoint to be resumed, as JSON."""
        plain = {name for name in _LATER if getattr(self, name) == type(self).model_fields[name].default}
        return self.model_dump_json(exclude={"save_every_s"} | plain)

    def check_device(self, device: torch.device) -> None:
        """Refuse a precision that the device cannot train in (ValueError)."""
        if self.precision == "float16" and device.type != "cuda":
            raise ValueError(
                f"fit: precision float16 needs a CUDA device to scale the loss on, this is {device.type}; "
                "use float32 or bfloat16"
            )
        if self.precision == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise ValueError(f"fit: {torch.cuda.get_device_name(device)} knows no bfloat16; use float16 or float32")
