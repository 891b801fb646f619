"""Train a network, by simulation through a probe, by labels, by the physics alone, or all at once.

Deterministic for a seed on a CPU, and resumable after any kill. On CUDA the sums of some gradients are added up as
threads come to them, so that weights of one seed differ by rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bluesky_ptychonn.recon.data.batches import Mix, TrainingData
from bluesky_ptychonn.recon.data.scans import LabelledScan, MeasuredScan
from bluesky_ptychonn.recon.data.simulated import SyntheticConfig
from bluesky_ptychonn.recon.evaluation.trust_calibration import synthetic_config
from bluesky_ptychonn.recon.models.checkpoint import Model
from bluesky_ptychonn.recon.networks.base import ObjectNetwork
from bluesky_ptychonn.recon.networks.families import network_config
from bluesky_ptychonn.recon.training.config import TrainingConfig, TrainingSettings
from bluesky_ptychonn.recon.training.distributed import process_group
from bluesky_ptychonn.recon.training.loop import Progress, Training

__all__ = ["Progress", "TrainingConfig", "fine_tune", "fit"]


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
    data = TrainingData(probe, labelled, measured)
    _check(data, config)
    with process_group(device) as group:
        config.check_device(group.device)
        training = Training(data, config, group, checkpoint, start)
        training.run(progress)
    return training.kept.cpu(), training.record


def fine_tune(
    model: Model,
    *,
    labelled: Sequence[LabelledScan] = (),
    measured: Sequence[MeasuredScan] = (),
    synthetic: SyntheticConfig | None = None,
    mix: Mix | None = None,
    checkpoint: Path | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    **settings: Unpack[TrainingSettings],
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
    checkpoint, device, progress
        See `fit`.
    frames : int
        Seen in all, 4000 by default.
    learning_rate : float
        Peak of the schedule, 3e-4 by default.
    batch_size, schedule, precision, evaluate_every, patience, seed
        See `TrainingConfig`.

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
    if mix is None:
        if probe is None and not labelled and not measured:
            raise ValueError(f"fine_tune: model {model.card.name!r} has no probe to simulate through; give scans")
        mix = Mix.usual(simulated=probe is not None, labelled=bool(labelled), label_free=bool(measured))
    network = network_config({"family": model.card.family, **model.card.network})
    values: TrainingSettings = {"frames": 4000, "learning_rate": 3e-4, **settings}
    config = TrainingConfig(
        network=network, synthetic=synthetic or synthetic_config(model), mix=mix, loss=network.loss, **values
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


def _check(data: TrainingData, config: TrainingConfig) -> None:
    """Refuse, in words (ValueError), what cannot be trained on."""
    size, mix, probe = config.network.frame_size, config.mix, data.probe
    if probe is not None and probe.shape != (size, size):
        raise ValueError(
            f"fit: probe is {probe.shape} px, the network's frames are ({size}, {size}) px; "
            "set frame_size of the network, or crop or pad the probe"
        )
    shares = (("labelled", mix.labelled, len(data.labelled)), ("label_free", mix.label_free, len(data.measured)))
    for what, share, scans in shares:
        if bool(share) != bool(scans):
            given = f"{scans} scans are given" if scans else "no scan is given"
            raise ValueError(
                f"fit: the mix gives {what} frames a share of {share:g}, and {given}; change one of the two"
            )
    for scan in data.scans:
        if scan.geometry.frame_shape != (size, size) or not len(scan):
            raise ValueError(
                f"fit: {scan.source} has {len(scan)} frames of {scan.geometry.frame_shape} px, the network takes "
                f"({size}, {size}) px; cut or bin them to that, and give at least one"
            )
