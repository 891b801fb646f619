"""A round's candidate: the champion's network trained on, measured and written as a model's folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PrivateAttr
from torch import Tensor

from bluesky_ptychonn.card import ModelCard
from bluesky_ptychonn.optics.probe_family import ProbeFamily
from bluesky_ptychonn.recon.data.batches import Mix
from bluesky_ptychonn.recon.data.scans import LabelledScan
from bluesky_ptychonn.recon.evaluation.simulated_scans import ScanSeries, simulation_geometry
from bluesky_ptychonn.recon.evaluation.trust_calibration import synthetic_config
from bluesky_ptychonn.recon.learning.config import LearningConfig
from bluesky_ptychonn.recon.models.checkpoint import Model, save_model
from bluesky_ptychonn.recon.networks.base import ObjectNetwork
from bluesky_ptychonn.recon.networks.families import network_config
from bluesky_ptychonn.recon.training.config import TrainingConfig
from bluesky_ptychonn.recon.training.fit import fit
from bluesky_ptychonn.recon.training.model import Effort, ModelInfo, measured_model

_STATE = "training.pt"
#: A candidate's card is measured more coarsely than that of a training: a round takes a minute, not hours.
_EFFORT = Effort(ScanSeries((0.2, 0.4, 0.6, 0.9), field_diameters=3.0), 256, {"frames": 512, "scans": 6})


class KnownProbes(ProbeFamily):
    """Probes that runs were tuned to, drawn by their shares; the ranges of the family are not used."""

    _probes: tuple[NDArray[np.complex64], ...] = PrivateAttr(default=())
    _shares: tuple[float, ...] = PrivateAttr(default=())

    @classmethod
    def from_probes(cls, probes: Sequence[NDArray[np.complex64]], shares: Sequence[float]) -> KnownProbes:
        """Take probes (N, N) complex64 and how often each is drawn, any scale."""
        family = cls()
        family._probes = tuple(probes)
        family._shares = tuple(np.asarray(shares, dtype=float) / np.sum(shares))
        return family

    def draw(self, size: int, rng: np.random.Generator) -> NDArray[np.complex64]:
        """Draw one of them; see `ProbeFamily.draw`."""
        return self._probes[int(rng.choice(len(self._probes), p=self._shares))]


class Stopped(Exception):  # noqa: N818  not an error
    """The round was asked to stop."""


def shares_of(scans: Sequence[LabelledScan], own: Tensor, config: LearningConfig) -> KnownProbes:
    """Probes to simulate through: the newest runs' evenly, and for rehearsal the older ones' and the champion's own."""
    probes = [scan.probe for scan in scans]
    recent, older = probes[-config.probes :], [*probes[: -config.probes], own.detach().cpu().numpy()]
    shares = [(1 - config.rehearsal) / len(recent)] * len(recent) + [config.rehearsal / len(older)] * len(older)
    return KnownProbes.from_probes([*recent, *older], shares)


def train_candidate(
    champion: Model,
    network: ObjectNetwork,
    scans: Sequence[LabelledScan],
    folder: Path,
    seed: int,
    config: LearningConfig,
    stop: Callable[[], bool],
    device: torch.device | str,
) -> tuple[ObjectNetwork, dict[str, Any]]:
    """Fine-tune the champion's network on simulation through known probes and labelled frames.

    Raises
    ------
    Stopped
        When asked to; the last checkpoint holds what was done.
    """
    if champion.probe is None:
        raise ValueError(f"learning: model {champion.card.name!r} has no probe")
    probes = shares_of(scans, champion.probe, config)
    architecture = network_config({"family": champion.card.family, **champion.card.network})
    training = TrainingConfig(
        network=architecture,
        synthetic=synthetic_config(champion).model_copy(update={"probes": probes}),
        mix=Mix(simulated=1 - config.mix, labelled=config.mix),
        loss=architecture.loss,
        frames=config.frames,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        seed=seed,
        save_every_s=config.save_every_s,
    )

    def progress(done: int, total: int, loss: float) -> None:
        if done < total and stop():
            raise Stopped

    return fit(
        None,
        training,
        labelled=scans,
        checkpoint=folder / _STATE,
        device=device,
        progress=progress,
        start=network.state_dict(),
    )


def write_candidate(
    out: Path,
    champion: Model,
    network: ObjectNetwork,
    probe: NDArray[np.complex64],
    version: str,
    training: dict[str, Any],
    source: str,
) -> ModelCard:
    """Measure a candidate on held-out simulated scans and write its folder; its input stays that of the champion."""
    synthetic, geometry = synthetic_config(champion), simulation_geometry(champion.card)
    card = champion.card.model_copy(update={"version": version, "training": {**champion.card.training, **training}})
    light = 1.0 if card.probe is None else card.probe.light_fraction or 1.0
    info = ModelInfo(card.name, version, source, light_fraction=light)
    model = measured_model(network, card, probe, geometry, synthetic, info, _EFFORT)
    return save_model(out, network, model.card, model.probe, None if model.weight is None else model.weight.numpy())
