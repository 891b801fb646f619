"""From probe, scans and settings to what a training is fed and judged by."""

from __future__ import annotations

import torch

from bluesky_ptychonn.recon.data.batches import Batches, MixedBatches, Source, TrainingData, make_sources
from bluesky_ptychonn.recon.evaluation.simulated_scans import HELD_OUT_SEED
from bluesky_ptychonn.recon.training.config import TrainingConfig
from bluesky_ptychonn.recon.training.early_stopping import EarlyStopping

_JUDGED_FRAMES = 128  # of each source


def check(data: TrainingData, config: TrainingConfig) -> None:
    """Refuse, in words (ValueError), what cannot be trained on; see `bluesky_ptychonn.recon.training.fit.fit`."""
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


def prepare(
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
