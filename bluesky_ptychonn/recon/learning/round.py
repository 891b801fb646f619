"""A learner's round in its folder: what goes in, the candidate, and how far it is.

What goes into it is settled first and kept, so that a killed round ends as it would have.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from bluesky_ptychonn.card import ModelCard
from bluesky_ptychonn.files import read_json, write_json
from bluesky_ptychonn.recon.learning.config import LearningConfig
from bluesky_ptychonn.recon.models.checkpoint import Model, load_model

SCANS, RECORD = "scans", "record.json"
_PLAN, _ROUND, _CANDIDATE, _CHALLENGER = "plan.json", "round", "candidate", "challenger"


class Stage(Enum):
    """How far a round is."""

    COLLECTING = "runs are taken until they make a round"
    TRAINING = "what it trains on is kept, its candidate is being trained"
    PROPOSED = "its candidate waits for a judgement"


@dataclass(frozen=True)
class Plan:
    """What a round is made of, settled before it begins; stored as it is.

    `champion` is the digest of the weights that it starts from, `version` the candidate's, `runs` were taken since the
    last judgement.
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
        seed = hashlib.sha256(json.dumps([config.seed, list(runs), digest]).encode()).digest()[:4]
        return cls(number, digest, f"{root}-learn{number}", list(runs), int.from_bytes(seed, "big"))


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
    """The next round in a learner's folder, or the one that is open; with another champion (digest) it begins anew."""

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
            plan = Plan(**read_json(self.folder / _PLAN) or {})
        except (TypeError, ValueError):
            return None
        return plan if (plan.champion, plan.round) == (self.champion, self.number) else None

    def begin(self, plan: Plan, files: Sequence[Path]) -> None:
        """Begin it: keep what it trains on, whatever the buffer drops meanwhile, then its plan."""
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / SCANS).mkdir(parents=True)
        for path in files:
            try:
                os.link(path, self.folder / SCANS / path.name)
            except OSError:  # no hard links here
                shutil.copyfile(path, self.folder / SCANS / path.name)
        write_json(self.folder / _PLAN, asdict(plan), durable=True, indent=True)

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
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            matches = (record["round"], record["champion"]) == (number, self.champion)
            return Candidate(load_model(folder, "cpu"), folder, record) if matches else None
        except (OSError, ValueError, KeyError):
            return None
