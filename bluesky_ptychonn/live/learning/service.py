"""Learns beside a beamline: watches a catalog for finished runs, and promotes what was measured to be better.

Everything may be killed at any moment. What was decided about a run or a candidate is in the catalog (`LearningLog`),
what was learned in the folder (`recon.learning.learner`), and whatever is in only one of them is made good by the next
start.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bluesky_ptychonn.catalog.connection.connect import connect_catalog
from bluesky_ptychonn.catalog.connection.errors import is_outage
from bluesky_ptychonn.catalog.connection.layout import runs_path
from bluesky_ptychonn.catalog.registry.champion import Champion
from bluesky_ptychonn.catalog.registry.learning_log import Kind, LearningLog, LearningRecord
from bluesky_ptychonn.catalog.registry.registry import Registry
from bluesky_ptychonn.catalog.runs.run_list import EndedRuns, Listed, RunList
from bluesky_ptychonn.files import lock, read_json, write_json
from bluesky_ptychonn.live.learning.config import LearnerConfig
from bluesky_ptychonn.live.learning.promotion import BY, Promotions
from bluesky_ptychonn.live.learning.training_run import newest_reconstruction, training_run
from bluesky_ptychonn.paths import learning_root
from bluesky_ptychonn.recon.learning.config import LearningConfig
from bluesky_ptychonn.recon.models.library import check_name

if TYPE_CHECKING:
    from bluesky_ptychonn.recon.learning.learner import Candidate, Considered, Judgement
    from bluesky_ptychonn.recon.models.checkpoint import Model
    from bluesky_ptychonn.recon.quality.verdict import Reason

log = logging.getLogger(__name__)

_MOST_ATTEMPTS = 3  # at one run: a learner that dies of it is not to die of it for ever
_ATTEMPT, _IDENTITY, _LOCK = "attempt.json", "learner.json", "worker.lock"


class LearnerProtocol(Protocol):
    """What learns; `recon.learning.learner.Learner` is one."""

    @property
    def rounds(self) -> int:
        """Rounds that have ended."""

    def consider(self, scan: Any, *, trust: Any, verdict_reasons: Sequence[Reason] = ()) -> Considered:
        """Take a run or say why not; the same answer again for a run that was considered."""

    def propose(self, stop: Callable[[], bool]) -> Candidate | None:
        """Train a candidate, or go on with one; None when stopped, or when there is nothing to learn."""

    def judge(self, candidate: Candidate) -> Judgement:
        """Compare it with the champion; a no ends the round."""

    def set_champion(self, model: Model) -> None:
        """Take a model as champion; the candidate ends its round."""


class RoundState(Enum):
    """What became of a turn at a round."""

    NOT_DUE = "too few runs were taken since the last one"
    LEFT = "this is no time to compute; it goes on later where it is"
    OUTDATED = "somebody else made another champion; it begins anew from that one"
    DECIDED = "its candidate was promoted, or kept out"


@dataclass
class _AtWork:
    """The learner, the champion, and the digest of the model that the learner takes for it."""

    learner: LearnerProtocol
    champion: Model
    digest: str

    def set_champion(self, model: Model) -> None:
        """Tell the learner of another champion; not twice of the same, after which it forgets what came before."""
        if model.card.weights_sha256 != self.digest:
            self.learner.set_champion(model)
            self.digest = model.card.weights_sha256


class DutyCycle:
    """Keeps work below a part of the time.

    `wait` waits a number of seconds, and may return sooner.

    Examples
    --------
    >>> waits, now = [], iter([0.0, 3.0])
    >>> duty = DutyCycle(0.25, waits.append, lambda: next(now))
    >>> duty.begin()
    >>> duty.rest()
    >>> waits
    [9.0]
    """

    def __init__(
        self, share: float, wait: Callable[[float], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rest = 1 / share - 1
        self._wait = wait
        self._clock = clock
        self._since: float | None = None

    def begin(self) -> None:
        """Work begins now."""
        self._since = self._clock()

    def rest(self) -> None:
        """Wait as long as the work since `begin` asks for; nothing where none began."""
        if self._since is None:
            return
        worked, self._since = self._clock() - self._since, None
        if worked * self._rest > 0:
            self._wait(worked * self._rest)


class CatalogLearner:
    """Learns for the champion of one name in one catalog.

    Parameters
    ----------
    catalog : anything `connect` takes
    name : str
        Of the model; it needs a champion to begin with.
    folder : path, optional
        The learner's own; by default ``learning/<name>`` beside the journals.
    config : LearnerConfig, optional
    since : float, optional
        Runs that began earlier are left alone, POSIX s.
    raw : str
        Container of the runs, see `runs_path`.
    make_learner : callable, optional
        ``(folder, champion, LearningConfig, device) -> LearnerProtocol``.

    Raises
    ------
    ValueError
        When another learner has the folder, or the catalog has no champion of this name.

    Examples
    --------
    >>> registry = Registry(server)  # doctest: +SKIP
    >>> registry.promote("my-probe", registry.publish("my-probe"), "what we begin with")  # doctest: +SKIP
    >>> CatalogLearner(server, "my-probe").run(threading.Event(), once=True)  # doctest: +SKIP
    >>> registry.learning("my-probe")  # doctest: +SKIP
    """

    def __init__(
        self,
        catalog: Any,
        name: str,
        folder: str | Path | None = None,
        config: LearnerConfig | None = None,
        *,
        since: float | None = None,
        raw: str | None = None,
        make_learner: Callable[[Path, Model, LearningConfig, str], LearnerProtocol] | None = None,
    ) -> None:
        self.name = check_name(name)
        self.config = config or LearnerConfig()
        self.folder = Path(folder).expanduser() if folder is not None else learning_root() / name
        self.waiting_for = ""
        self._root = connect_catalog(catalog)
        self._since, self._raw = since, runs_path(self._root, raw)
        self._make_learner = make_learner or _learner
        self._registry = Registry(self._root)
        self._records = LearningLog(self._root, name)
        self._runs = RunList(self._root, self._raw)
        self._ended: EndedRuns | None = None
        self._champion = Champion(self._root, name, self.folder / "champions")
        self._closing = threading.Event()
        self._duty = DutyCycle(self.config.share, self._closing.wait)
        self._at_work: _AtWork | None = None
        self._checked_at = float("-inf")  # when it was last asked whether this is a time to compute
        self._once = False
        self._interrupted: RoundState | None = None
        if self._registry.decided(name) is None:
            raise ValueError(
                f"learning: the catalog has no champion {name!r} to begin with; 'ptychonn models publish {name}' and "
                f"'ptychonn models promote {name} VERSION' make one"
            )
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        owned = lock(self.folder / _LOCK)
        if owned is None:
            raise ValueError(f"learning: another learner is at work in {self.folder}")
        self._owned: int | None = owned
        self._promotions = Promotions(self._registry, self._records, name, _identity(self.folder))

    def close(self) -> None:
        """Leave the folder to another learner."""
        if self._owned is not None:
            os.close(self._owned)
            self._owned = None

    def run(self, closing: threading.Event, *, once: bool = False) -> None:
        """Work until `closing` is set; with `once` until all that there is now is learned from.

        Raises
        ------
        ConnectionError
            With `once`, when the catalog does not answer; otherwise it is asked again until it does.
        """
        self._closing, self._once = closing, once
        self._duty = DutyCycle(self.config.share, closing.wait)
        waiting_for = ""
        while not closing.is_set():
            try:
                did = self.turn()
            except Exception as error:
                if once or not is_outage(error):
                    raise
                did, self.waiting_for = False, f"{type(error).__name__}: {error}"
            if self.waiting_for != waiting_for:
                waiting_for = self.waiting_for
                log.info("waiting: %s", waiting_for) if waiting_for else log.info("at work again")
            if not did:
                if once and not self.waiting_for:
                    return
                closing.wait(self.config.poll_s)

    def turn(self) -> bool:
        """Do the next thing: consider a run, or go on with a round. Returns whether there was anything to do."""
        self._follow_champion()
        if self._ended is None:
            self._ended = EndedRuns(self._runs, (record.key for record in self._records.read()), self._since)
        self._checked_at = time.monotonic()
        self.waiting_for = self._busy(self._ended.refresh())
        if self.waiting_for:
            return False
        self._duty.begin()
        self._interrupted = None
        try:
            state = self._advance_round()  # before more runs are taken: it is judged as it would have been at the time
            if state is not RoundState.NOT_DUE:
                return state is not RoundState.LEFT
            run = self._next(self._ended)
            if run is None:
                return False
            self._consider(run)
            self._ended.done(run.uid)
            return True
        finally:
            self._duty.rest()

    # -- the catalog as it is

    def _follow_champion(self) -> None:
        """Work for the champion of now, whoever made it so."""
        folder = self._champion.current()
        if folder is None:
            raise ValueError(f"learning: the catalog has no champion {self.name!r} any more")
        from bluesky_ptychonn.recon.models.checkpoint import load_model

        work = self._at_work
        if work is not None and work.champion.card.version == folder.name:
            return
        model = load_model(folder, "cpu")
        if work is None:
            learner = self._make_learner(self.folder, model, self.config.round, self.config.device)
            work = self._at_work = _AtWork(learner, model, model.card.weights_sha256)
            log.info("champion %s is %s", self.name, self._version)
        else:
            before, work.champion = self._version, model
            work.set_champion(model)
            log.info("champion %s is %s, before %s", self.name, self._version, before)
        self._promotions.make_good(work.learner.rounds, self._version)

    @property
    def _version(self) -> str:
        return self._work.champion.card.version

    @property
    def _work(self) -> _AtWork:
        if self._at_work is None:
            raise RuntimeError("learning: no champion was looked up yet; call turn() or run()")
        return self._at_work

    def _busy(self, runs: Sequence[Listed]) -> str:
        """Why this is no moment to compute; empty when it is one."""
        for run in runs:
            if run.under_way(time.time(), self.config.longest_run_s):
                return f"{run} is under way"
        free = shutil.disk_usage(self.folder).free
        if free < self.config.free_disk_bytes:
            return (
                f"{self.folder} has {free / 2**20:.0f} MiB left on its disk, {self.config.free_disk_bytes / 2**20:.0f} "
                "are to stay free (free_disk_bytes)"
            )
        return ""

    def _next(self, ended_runs: EndedRuns) -> Listed | None:
        """Oldest run whose reconstruction is whole, or has had its time."""
        for run in ended_runs.waiting:
            ended = float((run.stop or {}).get("time", 0.0))
            settled = self._once or time.time() - ended > self.config.settle_s
            if settled or newest_reconstruction(self._root, run.uid, self.name) is not None:
                return run
        return None

    def _stop(self) -> bool:
        """Whether to leave a round for later; rests as long as our share of the time asks for."""
        self._duty.rest()
        self._duty.begin()
        self._interrupted = RoundState.LEFT if self._closing.is_set() else self._interruption()
        return self._interrupted is not None

    def _interruption(self) -> RoundState | None:
        if time.monotonic() - self._checked_at < self.config.poll_s:
            return None
        self._checked_at = time.monotonic()
        try:
            self.waiting_for = self._busy(self._runs.page(since=self._since, most=10))
            if self._registry.decided(self.name) != self._version:  # it starts from the wrong model
                return RoundState.OUTDATED
        except Exception as error:
            if not is_outage(error):
                raise
            self.waiting_for = f"the catalog does not answer: {error}"  # a scan may go on that we cannot see
        return RoundState.LEFT if self.waiting_for else None

    # -- runs

    def _consider(self, run: Listed) -> None:
        work = self._work
        try:
            self._count(run.uid)
            found = training_run(
                self._root, run.uid, work.champion, raw=self._raw, memory_bytes=self.config.memory_bytes
            )
            considered = work.learner.consider(found.scan, trust=found.trust, verdict_reasons=found.reasons)
            numbers = {**considered.numbers, "frames": considered.frames, "held_out": considered.held_out}
            numbers["reconstructed_by"] = found.made_by
            kind: Kind = "taken" if considered.taken else "passed over"
            reason = considered.reason
        except Exception as error:
            if is_outage(error):
                (self.folder / _ATTEMPT).unlink(missing_ok=True)
                raise
            numbers, kind = {}, "passed over"
            name = type(error).__name__
            reason = (str(error) or name) if isinstance(error, ValueError) else f"{name}: {error}"
            log.debug("run %s", run.uid, exc_info=error)
        self._promotions.keep(LearningRecord(run.uid, kind, self._version, reason, numbers=numbers, by=BY))
        (self.folder / _ATTEMPT).unlink(missing_ok=True)

    def _count(self, uid: str) -> None:
        """Note that a run is begun with; give up one that the learner died of time and again."""
        before = read_json(self.folder / _ATTEMPT) or {}
        times = int(before.get("times", 0)) + 1 if before.get("uid") == uid else 1
        if times > _MOST_ATTEMPTS:
            raise ValueError(f"the learner ended in the midst of it {_MOST_ATTEMPTS} times, out of memory perhaps")
        write_json(self.folder / _ATTEMPT, {"uid": uid, "times": times}, private=True)

    # -- rounds

    def _advance_round(self) -> RoundState:
        """Train, judge, decide; or leave it for later."""
        work = self._work
        candidate = work.learner.propose(self._stop)
        if candidate is None:
            return self._interrupted or (RoundState.LEFT if self._closing.is_set() else RoundState.NOT_DUE)
        self._duty.rest()
        self._duty.begin()
        judgement = work.learner.judge(candidate)
        numbers = {**judgement.numbers, **candidate.record}
        if not judgement.promote:
            self._promotions.record(candidate, "keep", self._version, judgement.reason, numbers)
            return RoundState.DECIDED
        self._promotions.promote(candidate, self._version, judgement.reason, numbers)
        # Whatever the catalog's champion is now: this round has ended, or it would be proposed for ever.
        work.set_champion(candidate.model)
        if self._registry.decided(self.name) == self._version:
            work.set_champion(work.champion)
        return RoundState.DECIDED


def _learner(folder: Path, champion: Model, config: LearningConfig, device: str) -> LearnerProtocol:
    from bluesky_ptychonn.recon.learning.learner import Learner
    from bluesky_ptychonn.recon.models.checkpoint import choose_device

    return Learner(folder / "learner", champion, config, device=choose_device(device))


def _identity(folder: Path) -> str:
    known = read_json(folder / _IDENTITY)
    if known is None:
        known = {"learner": uuid.uuid4().hex[:12]}
        write_json(folder / _IDENTITY, known, private=True)
    return str(known["learner"])
