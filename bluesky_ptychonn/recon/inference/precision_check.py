"""What a lower precision costs a model, measured on frames of its own before it is used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bluesky_ptychonn.card import ModelCard
from bluesky_ptychonn.optics.simulate import zone_plate_probe
from bluesky_ptychonn.recon.data.simulated import SimulatedFrames, SyntheticConfig

Patches = Callable[[Tensor, Tensor | None], Tensor]
#: Mean difference of patches that is borne: a fifth of the 0.1 rad below which a frame counts as right.
MOST_MEAN = 0.02
_MOST_PHOTONS = 1e9
_SEED = 11


@dataclass(frozen=True)
class PrecisionCheck:
    """Differences of patches from those in single precision, global phase removed, in units of the transmission.

    Which are rad, for phases near an amplitude of one.
    """

    largest: float
    mean: float
    frames: int
    limit: float = MOST_MEAN

    def as_record(self) -> dict[str, Any]:
        """Give JSON values; None for what is not finite."""
        return {name: value if np.isfinite(value) else None for name, value in asdict(self).items()}


def check_precision(
    name: str, card: ModelCard, probe: Tensor | None, n: int, low: Patches, single: Patches
) -> PrecisionCheck:
    """Compare a precision with single precision on simulated frames, `n` each at the model's usual and highest dose.

    Parameters
    ----------
    name : str
        Of the precision, for people.
    card, probe
        The model's; the probe (N, N) where patches are made.
    n : int
        Frames that `low` and `single` take at once, each with the probe or None: (n, N, N) to (n, h, w).

    Returns
    -------
    PrecisionCheck

    Raises
    ------
    ValueError
        In words, where the mean difference is above `MOST_MEAN`, or a patch is not finite.
    """
    apart = [
        _difference(low(counts, told), single(counts, told)) for counts, told in _test_frames(card, probe, n)
    ]  # each (n, h, w)
    found = torch.cat(apart)
    result = PrecisionCheck(float(found.max()), float(found.mean()), len(found))
    if not result.mean <= MOST_MEAN:
        raise ValueError(
            f"precision {name}: patches of model {card.name!r} differ by {result.mean:.2g} on average, at most "
            f"{result.largest:.2g}, from those in single precision; {MOST_MEAN} is allowed. Use precision fp32"
        )
    return result


def _difference(low: Tensor, single: Tensor) -> Tensor:
    turn = torch.exp(-1j * (low * single.conj()).sum(dim=(-2, -1), keepdim=True).angle())
    apart = (low * turn - single).abs()
    return torch.where(torch.isfinite(apart), apart, torch.inf)


def _test_frames(card: ModelCard, probe: Tensor | None, n: int) -> list[tuple[Tensor, Tensor | None]]:
    """Simulate counts (n, N, N), and the probe for them, at each dose."""
    size, (least, most) = card.input.frame_shape[0], card.input.counts_per_frame
    most = min(max(most, 10.0), _MOST_PHOTONS)
    usual = float((max(least, 1.0) * most) ** 0.5) if probe is None else float(probe.abs().square().sum())
    wave = zone_plate_probe((size, size), size / 3) if probe is None else probe.cpu().numpy()
    device = torch.device("cpu") if probe is None else probe.device
    frames = []
    for photons in (min(max(usual, 10.0), _MOST_PHOTONS), most):
        config = SyntheticConfig(photons=photons, dose_spread=1, scale_jitter=0, probe_error_rad=0, objects_per_batch=1)
        counts, told, _ = SimulatedFrames(wave, card.input.patch_shape[0], n, config, _SEED, device).batch(0)
        frames.append((counts, None if probe is None else told))
    return frames
