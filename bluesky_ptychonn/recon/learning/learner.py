"""Learn on from finished runs: take what is worth it, propose a candidate, judge it, keep or crown.

For each run the probe is tuned and a label made by the physics alone (`recon.learning.pseudo_label`); half of the run
by area goes into a bounded buffer (`recon.learning.replay_buffer`), the other half is held out. A round trains the
champion on by simulation through the recent tuned probes, by older ones in rehearsal, and by labelled frames of the
buffer (`recon.learning.candidate`), and judges what comes of it on held-out frames old and new
(`recon.learning.judge`). A network without a probe as input learns the same way: through the tuned probe its simulated
frames are those of the beam as it is now.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from bluesky_ptychonn.files import write_json
from bluesky_ptychonn.recon.data.scans import LabelledScan, MeasuredScan
from bluesky_ptychonn.recon.evaluation.trust_calibration import synthetic_config
from bluesky_ptychonn.recon.learning import candidate as rounds
from bluesky_ptychonn.recon.learning.config import LearningConfig
from bluesky_ptychonn.recon.learning.intake import Considered, Intake
from bluesky_ptychonn.recon.learning.judge import Judgement, compare_models, label_error
from bluesky_ptychonn.recon.learning.replay_buffer import ReplayBuffer
from bluesky_ptychonn.recon.models.checkpoint import Model, load_model
from bluesky_ptychonn.recon.networks.base import ObjectNetwork

__all__ = ["Candidate", "Considered", "Judgement", "Learner", "LearningConfig", "never"]

_STATE, _BUFFER, _HELD_OUT, _ROUND, _CANDIDATE = "state.json", "buffer", "held_out", "round", "candidate"
_CHALLENGER = "challenger"
_REMEMBERED = 10_000  # runs


def never() -> bool:
    """Do not stop."""
    return False


@dataclass(frozen=True)
class Candidate:
    """A model that may become champion.

    Attributes
    ----------
    model : Model
        As loaded from `folder`, on the CPU; its probe is the one the newest run tuned.
    folder : Path
        ``card.json`` and ``model.safetensors``; gone when the next candidate is made.
    record : dict
        JSON values: ``round``, ``champion`` (digest), ``runs``, ``started_from``, ``frames``, ``seconds``, ``probe``.
    """

    model: Model
    folder: Path
    record: dict[str, Any]


class Learner:
    """Learns from one run after another; all it knows lies in a folder, so it may be killed at any time.

    A round: `consider` each finished run, then `propose` a candidate, `judge` it, and `crown` it where the judgement
    says so; where it does not, the round has ended with the judgement. Where the gain alone was too small, the next
    round goes on from that candidate, so that what several rounds learned adds up. A run considered twice is answered
    from memory. A candidate that should be crowned is proposed and judged again, alike, until it is, so nothing is lost
    by a kill in between. The same runs in the same order give the same decisions.

    Parameters
    ----------
    folder : Path
        Its state; one learner's alone. Made when it does not exist. It takes what `LearningConfig` allows buffer and
        held-out frames, and the buffer's frames once more while a round is open, two candidates, one training state
        (four times the weights) and some 700 bytes a run.
    champion : Model
        With a probe, in use now. Another one than at the last time (somebody promoted or rolled back) is taken as it
        is: an open round begins anew from it, what was learned from stays. The open round's candidate counts as
        crowned.
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
        self._state = self._read()
        self._champion = _checked(champion)
        if self._state["champion"] != champion.card.weights_sha256:
            self.crown(champion)

    @property
    def champion(self) -> Model:
        """The model in use."""
        return self._champion

    @property
    def pending(self) -> tuple[str, ...]:
        """Runs taken since the last judgement; `LearningConfig.runs_a_round` make a candidate."""
        return tuple(self._state["pending"])

    @property
    def rounds(self) -> int:
        """Rounds judged so far."""
        return int(self._state["rounds"])

    def consider(
        self, scan: MeasuredScan, *, trust: ArrayLike, verdict_reasons: Sequence[str] = (), insist: bool = False
    ) -> Considered:
        """Take a finished run to learn from, or say why not.

        Parameters
        ----------
        scan : MeasuredScan
            All usable frames of the run; its `probe` is the one it was reconstructed with, at the flux of the run.
        trust : (n,) float
            Of each frame, 0 to 1.
        verdict_reasons : sequence of str
            Of the run's verdict, see `bluesky_ptychonn.recon.quality.verdict`.
        insist : bool
            Take the run whatever verdict, probe and label look like. The judgement of a candidate stays, and where it
            is against it the run is forgotten again.

        Raises
        ------
        ValueError
            When shapes disagree, or the frames are not this model's.
        """
        known = self._state["considered"].get(scan.source)
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
            axis=len(self._state["considered"]) % 2,
            insist=insist,
        )
        record = {key: getattr(considered, key) for key in ("taken", "reason", "frames", "held_out", "numbers")}
        self._state["considered"][scan.source] = record
        if considered.taken:
            self._state["pending"].append(scan.source)
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
        plan = self._plan()
        if plan is None:
            return None
        out, folder = self.folder / _CANDIDATE, self.folder / _ROUND
        done = rounds.written(out, plan["round"], plan["champion"])
        if done is not None:
            return Candidate(done[0], out, done[1])
        scans = ReplayBuffer(folder / rounds.SCANS, LabelledScan, self.config.buffer_bytes).scans()
        newest = next((scan for scan in scans if scan.source == plan["runs"][-1]), scans[-1] if scans else None)
        if newest is None:
            return None
        challenger = rounds.written(self.folder / _CHALLENGER, plan["round"] - 1, plan["champion"])
        start, _ = _working(self._champion if challenger is None else challenger[0])
        try:
            trained, told = rounds.train(self._champion, start, scans, folder, plan, self.config, stop, self._device)
        except rounds.Stopped:
            return None
        card = self._champion.card
        record = {
            "round": plan["round"],
            "champion": plan["champion"],
            "runs": plan["runs"],
            "started_from": f"{card.name} {card.version}, sha256 {card.weights_sha256}",
            **({} if challenger is None else {"went_on_from": challenger[0].card.version}),
            "frames": told["frames"],
            "seconds": round(told["seconds"], 1),
            "probe": f"tuned to {newest.source}",
        }
        training = {"command": "ptychonn learn", "seed": plan["seed"], **record}
        rounds.write(out, self._champion, trained, newest.probe, plan["version"], training, record["probe"])
        write_json(out / rounds.RECORD, record, durable=True, indent=True)
        return Candidate(load_model(out, "cpu"), out, record)

    def _plan(self) -> dict[str, Any] | None:
        """Read the plan of the open round, or settle a new one; None when there is nothing to learn."""
        folder, card = self.folder / _ROUND, self._champion.card
        try:
            plan: dict[str, Any] = json.loads((folder / rounds.PLAN).read_text(encoding="utf-8"))
            if (plan["champion"], plan["round"]) == (card.weights_sha256, self.rounds + 1):
                return plan
        except (OSError, ValueError, KeyError):
            pass  # none is open
        if len(self.pending) < self.config.runs_a_round:
            return None
        root = re.sub(r"-learn\d+$", "", card.version)
        plan = {
            "round": self.rounds + 1,
            "champion": card.weights_sha256,
            "version": f"{root}-learn{self.rounds + 1}",
            "runs": list(self.pending),
            "seed": rounds.seed_of(self.config.seed, self.pending, card.weights_sha256),
        }
        rounds.freeze_inputs(folder, self._buffer.files, plan)
        return plan

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
            self._state["best"],
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
            shutil.rmtree(self.folder / _CHALLENGER, ignore_errors=True)
            if found.harmless:
                shutil.copytree(candidate.folder, self.folder / _CHALLENGER)
            self._end_round(candidate.record)
        return replace(found, numbers=numbers)

    def _end_round(self, record: dict[str, Any]) -> None:
        self._state["pending"] = [source for source in self.pending if source not in record["runs"]]
        self._state["rounds"] = record["round"]
        self._save()

    def _forget_insisted(self, runs: set[str]) -> None:
        """Drop what was taken against the gate's advice and did no good, or every later round would train on it."""
        for source in runs:
            if self._state["considered"].get(source, {}).get("numbers", {}).get("insisted"):
                self._buffer.remove(source)
                self._held_out.remove(source)

    def crown(self, model: Model) -> None:
        """Take a model as champion: the candidate, which ends its round, or another one, after a rollback.

        After another one older scans are judged against what it makes of them: it was preferred to those since.
        """
        self._champion = _checked(model)
        network, _ = _working(model)
        candidate = rounds.written(self.folder / _CANDIDATE, self.rounds + 1, self._state["champion"])
        promoted = candidate is not None and candidate[0].card.weights_sha256 == model.card.weights_sha256
        best = self._state["best"] if promoted else {}
        errors = {scan.source: label_error(network, scan) for scan in self._held_out.scans()}
        self._state["best"] = {source: min(best.get(source, error), error) for source, error in errors.items()}
        self._state["champion"] = model.card.weights_sha256
        shutil.rmtree(self.folder / _CHALLENGER, ignore_errors=True)
        if promoted and candidate is not None:
            self._end_round(candidate[1])
        self._save()

    def _read(self) -> dict[str, Any]:
        empty = {"schema": 1, "rounds": 0, "champion": "", "pending": [], "best": {}, "considered": {}}
        try:
            state = json.loads((self.folder / _STATE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return empty
        except ValueError as error:
            raise ValueError(
                f"learning: {self.folder / _STATE} is not a learner's state: {error}; give another folder"
            ) from None
        if not isinstance(state, dict) or state.get("schema") != 1:
            raise ValueError(f"learning: {self.folder / _STATE} is of another version; give another folder")
        return {**empty, **state}

    def _save(self) -> None:
        considered = self._state["considered"]
        for source in list(considered)[: max(0, len(considered) - _REMEMBERED)]:
            del considered[source]
        write_json(self.folder / _STATE, self._state, durable=True, indent=True)


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
