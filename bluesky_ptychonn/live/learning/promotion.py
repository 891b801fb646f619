"""What becomes of a candidate: promoted over the champion it was compared with, or kept out; and the record of it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from bluesky_ptychonn.catalog.registry.learning_log import Kind, LearningLog, LearningRecord
from bluesky_ptychonn.catalog.registry.registry import Registry
from bluesky_ptychonn.files import as_json

if TYPE_CHECKING:
    from bluesky_ptychonn.recon.learning.learner import Candidate

log = logging.getLogger(__name__)

#: Who decides.
BY = "ptychonn learn"


class Promotions:
    """Decides on candidates for a model's champion and records it; all may be repeated after an interruption.

    Rounds are counted by each `learner` for itself.
    """

    def __init__(self, registry: Registry, records: LearningLog, name: str, learner: str) -> None:
        self._registry, self._records, self._name, self._learner = registry, records, name, learner

    def promote(self, candidate: Candidate, champion: str, reason: str, numbers: dict[str, Any]) -> Kind:
        """Make a candidate champion over the version `champion` that it was compared with; returns what was recorded.

        It is kept out where somebody decided otherwise.
        """
        if reason_against := self._rolled_back(candidate.model.card.weights_sha256):
            return self.record(candidate, "keep", champion, reason_against, numbers)
        version = self._registry.publish(candidate.folder, by=BY)
        numbers = as_json({**numbers, "learner": self._learner})
        try:
            self._registry.promote(self._name, version, reason, numbers, by=BY, over=champion)
        except ValueError as error:
            return self.record(candidate, "keep", champion, str(error), numbers, version)
        return self.record(candidate, "promote", champion, reason, numbers, version)

    def record(
        self,
        candidate: Candidate,
        kind: Kind,
        champion: str,
        reason: str,
        numbers: dict[str, Any],
        version: str = "",
    ) -> Kind:
        """Record a decision on a candidate."""
        key = f"round {candidate.record['round']} {candidate.model.card.weights_sha256[:12]}"
        numbers = {**numbers, "learner": self._learner, "round": candidate.record["round"]}
        self.keep(LearningRecord(key, kind, champion, reason, version, numbers, by=BY))
        return kind

    def keep(self, record: LearningRecord) -> None:
        """Add a decision to the catalog's table, once."""
        if self._records.add(record):
            log.info("%s", record)

    def make_good(self, rounds: int, champion: str) -> None:
        """Record rounds that ended just before a kill: promoted ones from the history, others without their numbers."""
        ours = (record.numbers for record in self._records.read() if record.numbers.get("learner") == self._learner)
        for number in sorted(set(range(1, rounds + 1)) - {numbers.get("round") for numbers in ours}):
            about = {"round": number, "learner": self._learner}
            key, reason = f"round {number} {self._learner}", "kept; a kill just then lost the numbers"
            record = LearningRecord(key, "keep", champion, reason, "", about, by=BY)
            for done in self._registry.history(self._name):
                if about.items() <= done.numbers.items():
                    record = LearningRecord(
                        key, "promote", done.before or "", done.reason, done.version, done.numbers, done.time, BY
                    )
            self.keep(record)

    def _rolled_back(self, digest: str) -> str:
        """Say who undid the promotion of these very weights; empty where nobody did."""
        for done in reversed(self._registry.history(self._name)):
            before = done.before if done.kind == "rollback" else None
            if before is not None and self._registry.card(self._name, before).weights_sha256 == digest:
                return f"these weights were champion as {before}, until {done.by} rolled them back: {done.reason}"
        return ""
