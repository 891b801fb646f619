"""Is a candidate better than the champion: on held-out frames of the newest runs, and no worse on the old ones.

Three judges, all on frames that nobody trained on. The labels of the held-out halves, each scan told its own probe. The
frames themselves, without a label: of the newest runs, the mosaic of every other patch has to foresee the frames
between them at least as well as the champion's does; that stops a network which learned to please wrong labels, a flat
answer included. And simulated frames through each scan's probe, whose truth is known.

What they cannot see is what no frame tells, see `bluesky_ptychonn.recon.learning.pseudo_label`: where that deceives the
label, it deceives the probe of the simulation too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bluesky_ptychonn.recon.data.scans import LabelledScan
from bluesky_ptychonn.recon.data.simulated import SyntheticConfig
from bluesky_ptychonn.recon.evaluation.simulated_scans import patch_error, phase_error, predict, stitched
from bluesky_ptychonn.recon.learning.config import LearningConfig
from bluesky_ptychonn.recon.learning.pseudo_label import scaled_like, unforeseen
from bluesky_ptychonn.recon.mosaic.stitch import MosaicImage
from bluesky_ptychonn.recon.networks.base import ObjectNetwork
from bluesky_ptychonn.recon.quality.trust import patch_weight

_SLACK = 0.1  # part of what the sample does: foreseeing is noisier than the error
_FOLDS = 2


@dataclass(frozen=True)
class Judgement:
    """Whether a candidate is promoted.

    Attributes
    ----------
    promote : bool
    reason : str
        In words with numbers.
    numbers : dict
        JSON values: errors of champion and candidate on the newest held-out scans and on each older one, rad, what was
        asked of them, frames, seconds.
    harmless : bool
        Whether nothing was against it, but for a gain too small, if that.
    """

    promote: bool
    reason: str
    numbers: dict[str, Any]
    harmless: bool = False


def label_error(network: ObjectNetwork, scan: LabelledScan, probe: Tensor | None = None) -> float:
    """Mean absolute phase error, rad, of patches against a scan's label, told its probe or another (N, N).

    Weighted by the light and by how far the label is known; global phase removed frame by frame.
    """
    own = torch.as_tensor(scan.probe)
    scaled = own if probe is None else scaled_like(probe.detach().cpu(), own)
    size = network.config.patch_size
    patches = torch.as_tensor(predict(network, scan.counts, scaled))
    everything = slice(None)
    weight = patch_weight(own, (size, size)) * torch.as_tensor(scan.known(everything, size))
    return float(phase_error(patches, torch.as_tensor(scan.truth(everything, size)), weight))


def unforeseen_by(network: ObjectNetwork, scan: LabelledScan, probe: Tensor) -> float | None:
    """Part of the photons that a network's mosaic of every other frame leaves unexplained in the frames between."""
    order = np.lexsort((scan.x_m, scan.y_m))  # frames lie in the order of their worth
    scaled = scaled_like(probe.detach().cpu(), torch.as_tensor(scan.probe))
    missed = []
    for fold in range(_FOLDS):
        asked, shown = scan.select(np.sort(order[fold::_FOLDS])), scan.select(np.sort(order[1 - fold :: _FOLDS]))
        if not len(shown):
            return None
        found = unforeseen(stitched(network, shown, scaled), asked, scaled)
        missed += [] if found is None else [found[0]]
    return float(np.mean(missed)) if missed else None


def compare_models(
    champion: tuple[ObjectNetwork, Tensor],
    candidate: tuple[ObjectNetwork, Tensor],
    newest: Sequence[LabelledScan],
    older: Sequence[LabelledScan],
    best: Mapping[str, float],
    synthetic: SyntheticConfig,
    config: LearningConfig,
) -> Judgement:
    """Judge a candidate.

    Parameters
    ----------
    champion, candidate : (ObjectNetwork, (N, N) Tensor)
        Network in evaluation mode on the CPU, and the probe it is used with.
    newest, older : sequence of LabelledScan
        Held-out scans of the runs since the last judgement, and of before.
    best : mapping of str to float
        Error of the best champion so far on each older scan, by source, rad.
    synthetic, config
        Of the simulated frames; what is asked.
    """
    if not newest:
        return Judgement(False, "no held-out frames of the newest runs are left to judge by", {"new": {}, "old": {}})
    networks = (champion[0], candidate[0])
    simulated = partial(_simulated, networks, synthetic=synthetic, config=config)
    now = {scan.source: _compare_newest(champion, candidate, scan) | simulated(scan) for scan in newest}
    before = {scan.source: _compare_older(networks, scan, best) | simulated(scan) for scan in older}
    against = _objections(now, before, config.margin_rad)
    was, becomes = (
        float(np.mean([found[name] for found in now.values()])) for name in ("champion_rad", "candidate_rad")
    )
    gained = 1 - becomes / was if was > 0 else 0.0
    harmless = not against
    if gained < config.gain:
        against.insert(0, f"it gains {gained:.1%} on the newest held-out frames, {config.gain:.1%} are asked")
    numbers = {
        "new": now,
        "old": before,
        "gain": gained,
        "gain_asked": config.gain,
        "margin_rad": config.margin_rad,
        "champion_rad": was,
        "candidate_rad": becomes,
        "frames": sum(found["frames"] for found in (*now.values(), *before.values())),
    }
    about = f"{was:.3f} to {becomes:.3f} rad on {sum(f['frames'] for f in now.values())} newest held-out frames"
    if against:
        return Judgement(False, f"kept: {'; '.join(against)} ({about})", numbers, harmless)
    worst = max((f["candidate_rad"] - f["best_rad"] for f in before.values()), default=0.0)
    reason = f"promoted: {about}, {worst:+.3f} rad at worst on {len(before)} older scans"
    return Judgement(True, reason, numbers, harmless)


def _compare_newest(
    champion: tuple[ObjectNetwork, Tensor], candidate: tuple[ObjectNetwork, Tensor], scan: LabelledScan
) -> dict[str, Any]:
    """Numbers of both on a scan of a newest run: by its label, and by what they foresee of its frames."""
    own, ones = torch.as_tensor(scan.probe), np.ones(scan.object.shape, np.float32)
    bare = MosaicImage(ones, 0 * ones, ones, ones, scan.origin_m, scan.pixel_m)
    return {
        "champion_rad": label_error(champion[0], scan, champion[1]),
        "champion_told_rad": label_error(champion[0], scan),
        "candidate_rad": label_error(candidate[0], scan),
        "champion_unforeseen": unforeseen_by(champion[0], scan, champion[1]),
        "candidate_unforeseen": unforeseen_by(candidate[0], scan, own),
        "bare": (unforeseen(bare, scan, own) or (0.0, None))[1],
        "frames": len(scan),
    }


def _compare_older(
    networks: tuple[ObjectNetwork, ObjectNetwork], scan: LabelledScan, best: Mapping[str, float]
) -> dict[str, Any]:
    """Numbers of champion and candidate on an older scan, and of the best champion so far."""
    reference, error = (label_error(network, scan) for network in networks)
    return {
        "champion_rad": reference,
        "best_rad": min(best.get(scan.source, reference), reference),
        "candidate_rad": error,
        "frames": len(scan),
    }


def _objections(now: Mapping[str, Any], before: Mapping[str, Any], margin_rad: float) -> list[str]:
    """Everything, but its gain, that is to be said against the candidate."""
    against = [words for source, found in now.items() for words in _blind(source, found)]
    for source, found in before.items():
        lost = found["candidate_rad"] - found["best_rad"]
        if lost > margin_rad:
            against.append(f"on run {_abbreviated(source)} it would lose {lost:.3f} rad, {margin_rad:g} are allowed")
    for source, found in {**now, **before}.items():
        lost = found["candidate_simulated_rad"] - found["champion_simulated_rad"]
        if lost > margin_rad:
            against.append(
                f"on simulated frames through the probe of run {_abbreviated(source)} it would lose {lost:.3f} rad"
            )
    return against


def _simulated(
    networks: tuple[ObjectNetwork, ObjectNetwork],
    scan: LabelledScan,
    *,
    synthetic: SyntheticConfig,
    config: LearningConfig,
) -> dict[str, float]:
    plain = synthetic.model_copy(update={"probes": None})
    errors = [patch_error(network, scan.probe, plain, frames=config.simulated_frames) for network in networks]
    return dict(zip(("champion_simulated_rad", "candidate_simulated_rad"), errors, strict=True))


def _blind(source: str, found: Mapping[str, Any]) -> list[str]:
    """Ask the frames, label or not, what is to be said against the candidate."""
    was, becomes, bare = (found[name] for name in ("champion_unforeseen", "candidate_unforeseen", "bare"))
    if was is None or becomes is None or bare is None or becomes <= min(was + _SLACK * bare, (1 - _SLACK) * bare):
        return []
    about = f"its mosaic of run {_abbreviated(source)} leaves {becomes:.2%} of the light unforeseen"
    return [f"{about}, the champion's {was:.2%}, a bare field {bare:.2%}"]


def _abbreviated(source: str) -> str:
    return source if len(source) <= 12 else source[:8]
