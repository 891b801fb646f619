"""Is a run worth learning from, and which of its frames: the gate before the buffer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bluesky_ptychonn.recon.data.scans import LabelledScan, MeasuredScan
from bluesky_ptychonn.recon.learning.config import LearningConfig
from bluesky_ptychonn.recon.learning.novelty import novelty
from bluesky_ptychonn.recon.learning.pseudo_label import PseudoLabel, label, scaled_like
from bluesky_ptychonn.recon.learning.replay_buffer import ReplayBuffer
from bluesky_ptychonn.recon.mosaic.probe_tuning import TunedProbe
from bluesky_ptychonn.recon.networks.base import ObjectNetwork
from bluesky_ptychonn.recon.quality.verdict import Reason, ReasonKind

#: Verdicts by which the frames are not what the network takes them for. Another probe or sample is what to learn from.
_UNFIT = (
    ReasonKind.SHIFTED,
    ReasonKind.ENERGY,
    ReasonKind.LOST,
    ReasonKind.INTENSITY,
    ReasonKind.MODES,
    ReasonKind.INPUT,
)
#: Gaps between the halves of a run, in probe diameters: the widest that leaves a quarter of the frames to learn from.
_GAPS, _LEAST_HALF = (1.0, 0.5, 0.25), 0.25


@dataclass(frozen=True)
class Considered:
    """What became of a run.

    Attributes
    ----------
    taken : bool
        Whether it is learned from.
    reason : str
        Why, or why not, with numbers.
    source : str
        The run.
    frames, held_out : int
        Frames to learn from, and frames to judge by.
    probe : TunedProbe or None
        What the run's frames say about the probe; None where the run did not get that far, or was considered before.
    numbers : dict
        JSON values: what the gate measured.
    """

    taken: bool
    reason: str
    source: str
    frames: int
    held_out: int
    probe: TunedProbe | None
    numbers: dict[str, Any]

    def __str__(self) -> str:
        return f"{'taken' if self.taken else 'not taken'}: {self.reason}"


class Intake:
    """Labels runs, refuses the doubtful, and shares frames out between those to learn from and those to judge by."""

    def __init__(
        self,
        buffer: ReplayBuffer[LabelledScan],
        held_out: ReplayBuffer[LabelledScan],
        config: LearningConfig,
        device: torch.device,
    ) -> None:
        self._buffer, self._held_out, self._config, self._device = buffer, held_out, config, device

    def take(
        self,
        network: ObjectNetwork,
        probe: Tensor,
        scan: MeasuredScan,
        trust: NDArray[np.float64],
        reasons: Sequence[Reason],
        *,
        axis: int,
        insist: bool,
    ) -> Considered:
        """Take a run, or say why not; see `Learner.consider`.

        Network and probe are the champion's, on the CPU; the run is halved along `axis`.
        """

        def refused(why: str, pseudo: PseudoLabel | None = None) -> Considered:
            tuned = None if pseudo is None else pseudo.tuned
            return Considered(False, why, scan.source, 0, 0, tuned, _numbers(pseudo))

        unfit = [] if insist else [reason for reason in reasons if reason.kind in _UNFIT]
        if unfit:
            return refused(f"the verdict on the run says {unfit[0]}")
        usable = np.isfinite(trust) & (trust > 0)
        if usable.sum() < self._config.fewest_frames:
            least = self._config.fewest_frames
            return refused(f"{int(usable.sum())} of {len(scan)} frames have any trust, {least} are needed")
        pseudo = self._label(network, probe, scan.select(usable))
        if not insist and (why := self._reason_against(pseudo)):
            return refused(why, pseudo)
        first, second, gap = _halves(pseudo.scan, axis)
        if first is None or second is None:
            return refused(str(gap), pseudo)
        trusted = np.where(pseudo.trust >= self._config.least_trust, pseudo.trust, 0)
        learnt = _keep(self._buffer, pseudo.scan, first, trusted)
        held = _keep(self._held_out, pseudo.scan, second, trusted)
        if not learnt or not held:
            return refused(f"{learnt} frames to learn from and {held} to judge by had room and trust", pseudo)
        saw = "" if pseudo.foreseen is None else f", label foresees {pseudo.foreseen:.0%}"
        numbers = {**_numbers(pseudo), "gap_diameters": gap, **({"insisted": True} if insist else {})}
        reason = f"probe moved by {pseudo.tuned.rms_rad:.2f} rad{saw}"
        return Considered(True, reason, scan.source, learnt, held, pseudo.tuned, numbers)

    def _label(self, network: ObjectNetwork, probe: Tensor, scan: MeasuredScan) -> PseudoLabel:
        """Label a run from the champion's mosaic and probe; where that does not do, from less and from elsewhere.

        From a bare field, for a network may be far off; and from the probe that the run was reconstructed with.
        """
        run_probe = torch.as_tensor(scan.probe)
        own_probe = scaled_like(probe, run_probe)
        another = float((own_probe - run_probe).abs().max()) > 1e-3 * float(run_probe.abs().max())
        network = network.to(self._device)
        best: PseudoLabel | None = None
        for start, believed in ((network, own_probe), (None, own_probe), *([(network, run_probe)] if another else [])):
            pseudo = label(start, scan, believed, self._device)
            if best is None or (pseudo.foreseen or -np.inf) > (best.foreseen or -np.inf):
                best = pseudo
            if not self._reason_against(best):
                break
        network.cpu()
        if best is None:
            raise AssertionError("no label was tried")
        return best

    def _reason_against(self, pseudo: PseudoLabel) -> str:
        """Say why a label is not believed; empty where it is."""
        if pseudo.foreseen is None:
            return "too few of its frames overlap, or the sample does too little, to tell whether its label is right"
        most, least = self._config.most_tuning_rad, self._config.least_foreseen
        if pseudo.tuned.rms_rad > most:
            return f"the probe would have to move by {pseudo.tuned.rms_rad:.2f} rad, up to {most:g} is believed"
        if pseudo.foreseen < least:
            return (
                f"its label foresees {max(pseudo.foreseen, 0):.0%} of what the sample does to frames left out, "
                f"{least:.0%} are asked; positions, detector or probe are not as said"
            )
        return ""


def _keep(
    buffer: ReplayBuffer[LabelledScan], scan: LabelledScan, which: NDArray[np.bool_], trust: NDArray[np.floating]
) -> int:
    part = scan.select(which)
    buffer.remove(part.source)  # from an attempt that was killed; frames are no news beside themselves
    return buffer.add(part, trust[which], novelty(part.counts, buffer.features())).frames


def _numbers(pseudo: PseudoLabel | None) -> dict[str, Any]:
    if pseudo is None:
        return {}
    foreseen = None if pseudo.foreseen is None else round(pseudo.foreseen, 4)
    return {"foreseen": foreseen, "label_trust": round(float(pseudo.trust.mean()), 4), **pseudo.tuned.as_record()}


def _halves(scan: LabelledScan, axis: int) -> tuple[NDArray[np.bool_] | None, NDArray[np.bool_] | None, float | str]:
    """Which frames to learn from and which to judge by, and the gap between them in probe diameters; or why not."""
    along = (scan.y_m, scan.x_m)[axis]
    border = float(np.median(along))
    for gap in _GAPS:
        first = along < border - gap * scan.probe_diameter_m
        if first.sum() >= _LEAST_HALF * len(scan):
            return first, along >= border, gap
    try:
        scan.halves(axis, _GAPS[-1] * scan.probe_diameter_m)
    except ValueError as error:
        return None, None, str(error)
    return first, along >= border, _GAPS[-1]
