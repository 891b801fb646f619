"""From probe, scans and settings to what a training is fed and judged by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from bluesky_ptychonn.recon.data.batches import Batches, MixedBatches, Source, make_sources
from bluesky_ptychonn.recon.data.scans import LabelledScan, MeasuredScan
from bluesky_ptychonn.recon.evaluation.simulated_scans import HELD_OUT_SEED
from bluesky_ptychonn.recon.training.config import TrainingConfig
from bluesky_ptychonn.recon.training.early_stopping import EarlyStopping

_JUDGED_FRAMES = 128  # of each source


def check(
    probe: NDArray[np.complex64] | None,
    config: TrainingConfig,
    labelled: Sequence[LabelledScan],
    measured: Sequence[MeasuredScan],
) -> None:
    """Refuse, in words (ValueError), what cannot be trained on; see `bluesky_ptychonn.recon.training.fit.fit`."""
    size, mix = config.network.frame_size, config.mix
    if probe is not None and probe.shape != (size, size):
        raise ValueError(
            f"fit: probe is {probe.shape} px, the network's frames are ({size}, {size}) px; "
            "set frame_size of the network, or crop or pad the probe"
        )
    for what, share, scans in (("labelled", mix.labelled, labelled), ("label_free", mix.label_free, measured)):
        if bool(share) != bool(len(scans)):
            given = f"{len(scans)} scans are given" if len(scans) else "no scan is given"
            raise ValueError(
                f"fit: the mix gives {what} frames a share of {share:g}, and {given}; change one of the two"
            )
    for scan in (*labelled, *measured):
        if scan.geometry.frame_shape != (size, size) or not len(scan):
            raise ValueError(
                f"fit: {scan.source} has {len(scan)} frames of {scan.geometry.frame_shape} px, the network takes "
                f"({size}, {size}) px; cut or bin them to that, and give at least one"
            )


def prepare(
    probe: NDArray[np.complex64] | None,
    config: TrainingConfig,
    labelled: Sequence[LabelledScan],
    measured: Sequence[MeasuredScan],
    device: torch.device,
    *,
    judged: bool,
) -> tuple[MixedBatches, EarlyStopping]:
    """Make what a training is fed and judged by.

    Parameters
    ----------
    probe, config, labelled, measured
        See `bluesky_ptychonn.recon.training.fit.fit`.
    device : torch.device
        Where batches live.
    judged : bool
        Whether it is judged while it trains; then scans are split by area, and one half is kept back.
    """

    def sources(labelled: Sequence[LabelledScan], measured: Sequence[MeasuredScan], seed: int) -> dict[Source, Batches]:
        return make_sources(
            config.mix,
            probe,
            labelled,
            measured,
            config.synthetic,
            frame_size=config.network.frame_size,
            patch_size=config.network.patch_size,
            batch_size=config.batch_size,
            seed=seed,
            device=device,
        )

    if not judged:
        return MixedBatches(config.mix, sources(labelled, measured, config.seed)), EarlyStopping({}, config.mix, 0)
    labels, frames = [scan.halves() for scan in labelled], [scan.halves() for scan in measured]
    learnt = sources([half for half, _ in labels], [half for half, _ in frames], config.seed)
    kept_back = sources([half for _, half in labels], [half for _, half in frames], HELD_OUT_SEED + 1)
    count = -(-_JUDGED_FRAMES // config.batch_size)
    batches = {source: [data.batch(k) for k in range(count)] for source, data in kept_back.items()}
    return MixedBatches(config.mix, learnt), EarlyStopping(batches, config.mix, config.patience)
