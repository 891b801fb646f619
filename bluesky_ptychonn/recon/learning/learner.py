"""Learn on from finished runs: take what is worth it, propose a candidate, judge it, keep or promote.

For each run the probe is tuned and a label made by the physics alone (`recon.learning.pseudo_label`); half of the run
by area goes into a bounded buffer (`recon.learning.replay_buffer`), the other half is held out. A round trains the
champion on by simulation through the recent tuned probes, by older ones in rehearsal, and by labelled frames of the
buffer (`recon.learning.candidate`), and judges what comes of it on held-out frames old and new
(`recon.learning.judge`). A network without a probe as input learns the same way: through the tuned probe its simulated
frames are those of the beam as it is now.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from bluesky_ptychonn.files import write_json
from bluesky_ptychonn.recon.data.scans import LabelledScan, MeasuredScan
from bluesky_ptychonn.recon.evaluation.trust_calibration import synthetic_config
from bluesky_ptychonn.recon.learning.candidate import Stopped, train_candidate, write_candidate
from bluesky_ptychonn.recon.learning.config import LearningConfig
from bluesky_ptychonn.recon.learning.intake import Considered, Intake
from bluesky_ptychonn.recon.learning.judge import Judgement, compare_models, label_error
from bluesky_ptychonn.recon.learning.replay_buffer import ReplayBuffer
from bluesky_ptychonn.recon.learning.round import RECORD, SCANS, Candidate, Plan, Round, Stage
from bluesky_ptychonn.recon.models.checkpoint import Model, load_model
from bluesky_ptychonn.recon.networks.base import ObjectNetwork
from bluesky_ptychonn.recon.quality.verdict import Reason

__all__ = ["Candidate", "Considered", "Judgement", "Learner", "LearningConfig", "Stage", "never"]

_STATE, _BUFFER, _HELD_OUT = "state.json", "buffer", "held_out"
_REMEMBERED = 10_000  # runs


def never() -> bool:
    """Do not stop."""
    return False


@dataclass
class _State:
    """What a learner knows beside frames and weights, stored as JSON."""

    rounds: int = 0  # that have ended
    champion: str = ""  # digest of its weights
    pending: list[str] = field(default_factory=list)  # runs taken since the last judgement
    best: dict[str, float] = field(default_factory=dict)  # least error so far on each held-out scan, rad
    considered: dict[str, dict[str, Any]] = field(default_factory=dict)  # what became of runs

    @classmethod
    def load(cls, path: Path) -> _State:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls()
        except ValueError as error:
            raise ValueError(f"learning: {path} is not a learner's state: {error}; give another folder") from None
        if not isinstance(values, dict) or values.get("schema") not in (1, 2):
            raise ValueError(f"learning: {path} is of another version; give another folder")
        state = cls(**{item.name: values[item.name] for item in fields(cls) if item.name in values})
        if values["schema"] == 1:  # reasons began with "taken: " or "not taken: "
            for record in state.considered.values():
                record["reason"] = record["reason"].partition("taken: ")[2] or record["reason"]
        return state

    def save(self, path: Path) -> None:
        for source in list(self.considered)[: max(0, len(self.considered) - _REMEMBERED)]:
            del self.considered[source]
        write_json(path, {"schema": 2, **asdict(self)}, durable=True, indent=True)


class Learner:
    """Learns from one run after another; all it knows lies in a folder, so it may be killed at any time.

    A round: `consider` each finished run, then `propose` a candidate, `judge` it, and `set_champion` where the
    judgement says so; where it does not, the round has ended with the judgement. Where the gain alone was too small,
    the next round goes on from that candidate, so that what several rounds learned adds up. A run considered twice is
    answered from memory. A candidate that should be promoted is proposed and judged again, alike, until it is, so
    nothing is lost by a kill in between. The same runs in the same order give the same decisions.

    Parameters
    ----------
    folder : Path
        Its state; one learner's alone. Made when it does not exist. It takes what `LearningConfig` allows buffer and
        held-out frames, and the buffer's frames once more while a round is open, two candidates, one training state
        (four times the weights) and some 700 bytes a run.
    champion : Model
        With a probe, in use now. Another one than at the last time (somebody promoted or rolled back) is taken as it
        is: an open round begins anew from it, what was learned from stays. The open round's candidate counts as
        promoted.
    config : LearningConfig, optional
    device : torch.device or str
        Where labels are made and candidates trained.

    Raises
    ------
    ValueError
        For a model without a probe, or a folder that is not a learner's.
    """

    def __init__(
        self,
        folder: Path,
        champion: Model,
        config: LearningConfig | None = None,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self.folder, self.config = Path(folder), config or LearningConfig()
        self._device = torch.device(device)
        self._buffer = ReplayBuffer(self.folder / _BUFFER, LabelledScan, self.config.buffer_bytes)
        self._held_out = ReplayBuffer(self.folder / _HELD_OUT, LabelledScan, self.config.held_out_bytes)
        self._intake = Intake(self._buffer, self._held_out, self.config, self._device)
        self._state = _State.load(self.folder / _STATE)
        self._champion = _checked(champion)
        if self._state.champion != champion.card.weights_sha256:
            self.set_champion(champion)

    @property
    def champion(self) -> Model:
        """The model in use."""
        return self._champion

    @property
    def pending(self) -> tuple[str, ...]:
        """Runs taken since the last judgement; `LearningConfig.runs_a_round` make a candidate."""
        return tuple(self._state.pending)

    @property
    def rounds(self) -> int:
        """Rounds judged so far."""
        return self._state.rounds

    def consider(
        self, scan: MeasuredScan, *, trust: ArrayLike, verdict_reasons: Sequence[Reason] = (), insist: bool = False
    ) -> Considered:
        """Take a finished run to learn from, or say why not.

        Parameters
        ----------
        scan : MeasuredScan
            All usable frames of the run; its `probe` is the one it was reconstructed with, at the flux of the run.
        trust : (n,) float
            Of each frame, 0 to 1.
        verdict_reasons : sequence of Reason
            Of the run's verdict.
        insist : bool
            Take the run whatever verdict, probe and label look like. The judgement of a candidate stays, and where it
            is against it the run is forgotten again.

        Raises
        ------
        ValueError
            When shapes disagree, or the frames are not this model's.
        """
        known = self._state.considered.get(scan.source)
        if known is not None:
            return Considered(source=scan.source, probe=None, **known)
        wanted, got = self._champion.card.input.frame_shape, scan.geometry.frame_shape
        trusted = np.asarray(trust, dtype=float)
        if got != wanted or trusted.shape != (len(scan),):
            raise ValueError(
                f"learning: run {scan.source} has {len(scan)} frames of {got} px and trust for {trusted.shape}; model "
                f"{self._champion.card.name!r} takes {wanted} px, and trust is one number a frame"
            )
        self._champion.card.check_geometry(scan.geometry)
        considered = self._intake.take(
            *_working(self._champion),
            scan,
            trusted,
            verdict_reasons,
            axis=len(self._state.considered) % 2,
            insist=insist,
        )
        record = {key: getattr(considered, key) for key in ("taken", "reason", "frames", "held_out", "numbers")}
        self._state.considered[scan.source] = record
        if considered.taken:
            self._state.pending.append(scan.source)
        self._save()
        return considered

    def propose(self, stop: Callable[[], bool] = never) -> Candidate | None:
        """Train a candidate; a round that was stopped or killed goes on where it was.

        Parameters
        ----------
        stop : callable
            Asked after every step; True ends the call. At most the last `LearningConfig.save_every_s` seconds are lost.

        Returns
        -------
        Candidate or None
            None when stopped, or when fewer runs were taken since the last judgement than make a round.
        """
        current, card = self._round, self._champion.card
        match current.stage:
            case Stage.PROPOSED:
                return current.candidate()
            case Stage.COLLECTING if len(self.pending) >= self.config.runs_a_round:
                current.begin(Plan.from_runs(current.number, self.pending, card, self.config), self._buffer.files)
        plan = current.plan()
        if plan is None:
            return None
        out, folder = current.candidate_folder, current.folder
        scans = ReplayBuffer(folder / SCANS, LabelledScan, self.config.buffer_bytes).scans()
        newest = next((scan for scan in scans if scan.source == plan.runs[-1]), scans[-1] if scans else None)
        if newest is None:
            return None
        challenger = current.challenger()
        start, _ = _working(self._champion if challenger is None else challenger.model)
        try:
            trained, outcome = train_candidate(
                self._champion, start, scans, folder, plan.seed, self.config, stop, self._device
            )
        except Stopped:
            return None
        record = {
            "round": plan.round,
            "champion": plan.champion,
            "runs": plan.runs,
            "started_from": f"{card.name} {card.version}, sha256 {card.weights_sha256}",
            **({} if challenger is None else {"went_on_from": challenger.model.card.version}),
            "frames": outcome["frames"],
            "seconds": round(outcome["seconds"], 1),
            "probe": f"tuned to {newest.source}",
        }
        training = {"command": "ptychonn learn", "seed": plan.seed, **record}
        write_candidate(out, self._champion, trained, newest.probe, plan.version, training, record["probe"])
        write_json(out / RECORD, record, durable=True, indent=True)
        return Candidate(load_model(out, "cpu"), out, record)

    @property
    def _round(self) -> Round:
        return Round(self.folder, self.rounds + 1, self._state.champion)

    @property
    def stage(self) -> Stage:
        """How far the round is."""
        return self._round.stage

    def judge(self, candidate: Candidate) -> Judgement:
        """Compare a candidate with the champion on held-out scans, old and new; a no ends the round."""
        began = time.perf_counter()
        runs = set(candidate.record["runs"])
        scans = self._held_out.scans()
        newest = [scan for scan in scans if scan.source in runs]
        older = _spread([scan for scan in scans if scan.source not in {*runs, *self.pending}], self.config.old_scans)
        found = compare_models(
            _working(self._champion),
            _working(candidate.model),
            newest,
            older,
            self._state.best,
            synthetic_config(self._champion),
            self.config,
        )
        numbers = {
            **found.numbers,
            "seconds": round(time.perf_counter() - began, 1),
            "round": candidate.record["round"],
        }
        if not found.promote:
            self._forget_insisted(runs)
            self._round.keep_challenger(candidate if found.harmless else None)
            self._end_round(candidate.record)
        return replace(found, numbers=numbers)

    def _end_round(self, record: dict[str, Any]) -> None:
        self._state.pending = [source for source in self.pending if source not in record["runs"]]
        self._state.rounds = record["round"]
        self._save()

    def _forget_insisted(self, runs: set[str]) -> None:
        """Drop what was taken against the gate's advice and did no good, or every later round would train on it."""
        for source in runs:
            if self._state.considered.get(source, {}).get("numbers", {}).get("insisted"):
                self._buffer.remove(source)
                self._held_out.remove(source)

    def set_champion(self, model: Model) -> None:
        """Take a model as champion: the candidate, which ends its round, or another one, after a rollback.

        After another one older scans are judged against what it makes of them: it was preferred to those since.
        """
        self._champion = _checked(model)
        network, _ = _working(model)
        candidate = self._round.candidate()
        promoted = candidate is not None and candidate.model.card.weights_sha256 == model.card.weights_sha256
        best = self._state.best if promoted else {}
        errors = {scan.source: label_error(network, scan) for scan in self._held_out.scans()}
        self._state.best = {source: min(best.get(source, error), error) for source, error in errors.items()}
        self._state.champion = model.card.weights_sha256
        self._round.keep_challenger(None)
        if promoted and candidate is not None:
            self._end_round(candidate.record)
        self._save()

    def _save(self) -> None:
        self._state.save(self.folder / _STATE)


def _checked(model: Model) -> Model:
    if model.probe is None or not isinstance(model.network, ObjectNetwork):
        raise ValueError(
            f"learning: model {model.card.name!r} has no probe; a learner follows a probe it is given first"
        )
    return model


def _working(model: Model) -> tuple[ObjectNetwork, torch.Tensor]:
    """Network and probe on the CPU."""
    checked = _checked(model)
    assert isinstance(checked.network, ObjectNetwork) and checked.probe is not None  # noqa: S101, PT018
    return checked.network.cpu().eval(), checked.probe.detach().cpu()


def _spread(scans: Sequence[LabelledScan], most: int) -> list[LabelledScan]:
    """Take some of many, evenly, the first and the last among them."""
    if len(scans) <= most:
        return list(scans)
    return [scans[round(k)] for k in np.linspace(0, len(scans) - 1, most)]
