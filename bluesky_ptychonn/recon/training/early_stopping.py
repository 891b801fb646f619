"""Judge a network while it trains, on frames it does not train on, and tell when it stopped getting better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bluesky_ptychonn.recon.data.batches import Batch, Mix, Source
from bluesky_ptychonn.recon.evaluation.simulated_scans import phase_error
from bluesky_ptychonn.recon.networks.base import ObjectNetwork
from bluesky_ptychonn.recon.quality.trust import patch_weight
from bluesky_ptychonn.recon.training.losses import label_free_loss


class EarlyStopping:
    """Remembers the best weights, and how many judgements in a row were no better.

    Errors of several sources count by their shares in `mix`, each in units of what it was at first. `batches` are by
    source and never trained on; `patience` judgements without gain end a training, 0 never.
    """

    def __init__(self, batches: Mapping[Source, Sequence[Batch]], mix: Mix, patience: int) -> None:
        self._batches, self._mix, self._patience = dict(batches), mix, patience
        self._first: dict[Source, float] = {}
        self._lowest, self._waited = math.inf, 0
        self._best: dict[str, Tensor] = {}

    def evaluate(self, network: ObjectNetwork) -> dict[Source, float]:
        """Measure a network in evaluation mode.

        By source: phase error of patches, rad, or the label-free loss where nobody knows the phase.
        """
        with torch.inference_mode():
            errors = {source: _error(network, batches) for source, batches in self._batches.items()}
        self._first = self._first or {source: max(error, 1e-12) for source, error in errors.items()}
        score = sum(self._mix.share(source) * error / self._first[source] for source, error in errors.items())
        if score < self._lowest:
            self._lowest, self._waited = score, 0
            self._best = {name: value.clone() for name, value in network.state_dict().items()}
        else:
            self._waited += 1
        return errors

    @property
    def should_stop(self) -> bool:
        """Whether patience ran out."""
        return bool(self._patience) and self._waited >= self._patience

    def restore(self, network: ObjectNetwork) -> None:
        """Give a network the best weights, where there was any patience at all."""
        if self._patience and self._best:
            network.load_state_dict(self._best)

    def state_dict(self) -> dict[str, Any]:
        """Give what has to be kept to go on later."""
        return {"first": self._first, "lowest": self._lowest, "waited": self._waited, "best": self._best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._first, self._best = dict(state["first"]), dict(state["best"])
        self._lowest, self._waited = state["lowest"], state["waited"]


def _error(network: ObjectNetwork, batches: Sequence[Batch]) -> float:
    total = weights = 0.0
    for batch in batches:
        patch = network(batch.counts, batch.probe)
        if batch.truth is None:
            total += float(label_free_loss(patch, batch))
            weights += 1
            continue
        weight = patch_weight(batch.probe, patch.shape[-2:]).expand(len(patch), -1, -1)
        if batch.known is not None:
            weight = weight * batch.known
        here = float(weight.sum())
        total += float(phase_error(patch, batch.truth, weight)) * here
        weights += here
    return total / weights if weights else math.nan
