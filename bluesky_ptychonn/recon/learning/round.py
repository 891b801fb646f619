"""A learner's round in its folder: what goes in, the candidate, and how far it is."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from bluesky_ptychonn.card import ModelCard
from bluesky_ptychonn.files import read_json
from bluesky_ptychonn.recon.learning import candidate as steps
from bluesky_ptychonn.recon.learning.config import LearningConfig
from bluesky_ptychonn.recon.models.checkpoint import Model

_ROUND, _CANDIDATE, _CHALLENGER = "round", "candidate", "challenger"


class Stage(Enum):
    """How far a round is."""

    COLLECTING = "runs are taken until they make a round"
    TRAINING = "what it trains on is kept, its candidate is being trained"
    PROPOSED = "its candidate waits for a judgement"


@dataclass(frozen=True)
class Plan:
    """What a round is made of, settled before it begins; stored as it is.

    Attributes
    ----------
    round : int
        Counts from 1.
    champion : str
        Digest of the weights that it starts from.
    version : str
        Of the candidate.
    runs : list of str
        Taken since the last judgement.
    seed : int
    """

    round: int
    champion: str
    version: str
    runs: list[str]
    seed: int

    @classmethod
    def from_runs(cls, number: int, runs: Sequence[str], card: ModelCard, config: LearningConfig) -> Plan:
        """Settle a round: the same runs and champion give the same one."""
        digest, root = card.weights_sha256, re.sub(r"-learn\d+$", "", card.version)
        seed = steps.seed_of(config.seed, runs, digest)
        return cls(number, digest, f"{root}-learn{number}", list(runs), seed)


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


class Round:
    """The next round of a learner, or the one that is open.

    Parameters
    ----------
    folder : Path
        The learner's.
    number : int
        Of the round, from 1.
    champion : str
        Digest of the champion's weights; with another one the round begins anew.
    """

    def __init__(self, folder: Path, number: int, champion: str) -> None:
        self.number, self.champion = number, champion
        self.folder, self.candidate_folder = folder / _ROUND, folder / _CANDIDATE
        self._challenger_folder = folder / _CHALLENGER

    @property
    def stage(self) -> Stage:
        """How far it is."""
        if self.candidate() is not None:
            return Stage.PROPOSED
        return Stage.COLLECTING if self.plan() is None else Stage.TRAINING

    def plan(self) -> Plan | None:
        """Read what it is made of; None before it began."""
        try:
            plan = Plan(**read_json(self.folder / steps.PLAN) or {})
        except (TypeError, ValueError):
            return None
        return plan if (plan.champion, plan.round) == (self.champion, self.number) else None

    def begin(self, plan: Plan, files: Sequence[Path]) -> None:
        """Begin it: keep what it trains on, then its plan."""
        steps.freeze_inputs(self.folder, files, asdict(plan))

    def candidate(self) -> Candidate | None:
        """Read its candidate; None before that was written whole."""
        return self._read(self.candidate_folder, self.number)

    def challenger(self) -> Candidate | None:
        """Read the last round's candidate, where this round goes on from it: its gain alone was too small."""
        return self._read(self._challenger_folder, self.number - 1)

    def keep_challenger(self, candidate: Candidate | None) -> None:
        """Let the next round go on from a candidate, or from the champion."""
        shutil.rmtree(self._challenger_folder, ignore_errors=True)
        if candidate is not None:
            shutil.copytree(candidate.folder, self._challenger_folder)

    def _read(self, folder: Path, number: int) -> Candidate | None:
        found = steps.written(folder, number, self.champion)
        return None if found is None else Candidate(found[0], folder, found[1])
