"""One run from documents to a finished reconstruction: pair, fetch, reconstruct, stitch, write; one step at a time."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

from bluesky_ptychonn.catalog.connection.errors import is_outage
from bluesky_ptychonn.catalog.results.verification import in_words
from bluesky_ptychonn.catalog.runs.data_keys import DataKeys, DocumentError, RunError, geometry_of
from bluesky_ptychonn.catalog.runs.pairing import NoFrame, RunPairing
from bluesky_ptychonn.live.pipeline.assembly import LONGEST_REST, Assembly
from bluesky_ptychonn.live.pipeline.problems import Problem, ProblemKind
from bluesky_ptychonn.live.pipeline.progress import Progress, Timing
from bluesky_ptychonn.live.pipeline.protocols import ComponentFactory, Sink
from bluesky_ptychonn.live.pipeline.waiting import RawRunWait, Retry
from bluesky_ptychonn.optics.geometry import Geometry

log = logging.getLogger(__name__)


class Phase(Enum):
    """Where the reconstruction of a run stands; `RunReconstruction.phase` says when it goes from one to the next."""

    OPENING = "no frame can be fetched yet"
    RUNNING = "frames come in"
    ENDING = "no document will come; frames are still under way, or results"
    FAILING = "it cannot be reconstructed, which its result has yet to say"
    FINISHED = "nothing is left to do"


@dataclass(frozen=True)
class _End:
    """How a run ended, and when on the clock."""

    exit_status: str
    reason: str
    at: float


class RunReconstruction:
    """Reconstructs one run while its documents come in.

    Feed it documents and call `step` when it is `due`, until ``progress.finished``. What is wrong with the run is never
    raised: it ends in `progress` and, where the run says that it is ptychography, in a result marked ``failed``.

    Parameters
    ----------
    start : mapping
        The start document.
    factory : ComponentFactory
    geometry, keys, pace
        See `ReconstructionOptions`.
    clock : callable
        Monotonic seconds.
    made_by : str
        Model that an earlier worker began this run with, ``name/version``.

    Attributes
    ----------
    progress : Progress
    given_up : bool
        Whether the catalog was away for too long: not the run's fault, and another session may finish it.
    """

    def __init__(
        self,
        start: Mapping[str, Any],
        factory: ComponentFactory,
        *,
        geometry: Geometry | None = None,
        keys: DataKeys | None = None,
        pace: Timing | None = None,
        clock: Callable[[], float] = time.monotonic,
        made_by: str = "",
    ) -> None:
        self.start = start
        self.pace = pace or Timing()
        self.progress = Progress(uid=start["uid"], scan_id=start.get("scan_id"))
        self.given_up = False
        self._factory = factory
        self._clock = clock
        self._geometry: Geometry | None = None
        self._pairing: RunPairing | None = None
        self._assembly: Assembly | None = None
        self._error: RunError | None = None
        self._end: _End | None = None
        self._age_s = 0.0  # of the last document
        self._unusable = Counter[str]()  # documents that could not be used, by kind
        self._due_at = 0.0
        self._retry = Retry(clock)
        self._closing_since: float | None = None
        try:
            self._pairing = RunPairing(start, keys or DataKeys())
            self.progress.expected = self._pairing.expected
            self._geometry = geometry_of(start, geometry)
            self._factory = factory.for_run(made_by)  # once: no run changes its model
            self.progress.model = self._factory.model
        except RunError as error:
            self._error = error
        # Holds nothing of this run: in a cycle its patches and frames would lie in memory for many runs more.
        self._raw_run = RawRunWait(partial(self._factory.is_raw_run_complete, start), self.pace, clock)

    # -- documents in

    def feed(self, name: str, doc: Mapping[str, Any], age_s: float = 0.0) -> None:
        """Take a document of this run, made so long ago; one that cannot be used is passed over, and counted."""
        self._age_s = max(0.0, age_s)  # a run that was left behind has been waited for already
        if self._pairing is not None:  # of a run that is refused, frames are counted
            try:
                self._pairing.feed(name, doc, time.time() - self._age_s)
            except RunError as error:
                self._error = self._error or error
            except DocumentError as error:
                self.pass_over(name, str(error))
            self.progress.seen = self._pairing.seen
        if name == "stop":
            self.end(str(doc.get("exit_status", "unknown")), str(doc.get("reason") or ""))

    def pass_over(self, kind: str, message: str, number: int = 1) -> None:
        """Count documents that cannot be used: frames may be missing, so the result will not say ``complete``."""
        if kind not in self._unusable:  # once: whoever sends one such document may send thousands
            log.warning("run %s: passed over, %s", self.progress.uid, message)
        self._unusable[kind] += number

    def end(self, exit_status: str, reason: str = "") -> None:
        """Expect no more documents: the stop document came, or never will."""
        if self._end is None:
            self._end = _End(exit_status, reason, self._clock() - self._age_s)

    def fail(self, error: RunError) -> None:
        """Say that the run cannot be reconstructed; its result will say so too."""
        self._error = self._error or error

    def hurry(self) -> None:
        """Wait for a catalog that does not answer for ``pace.outage_s`` only: the session is being closed."""
        if self._closing_since is None:
            self._closing_since = self._clock()

    # -- work

    @property
    def phase(self) -> Phase:
        """Where it stands."""
        if self.progress.finished:
            return Phase.FINISHED
        if self._error is not None:
            return Phase.FAILING
        if self._assembly is None:
            return Phase.OPENING
        return Phase.RUNNING if self._end is None else Phase.ENDING

    @property
    def due(self) -> float:
        """When `step` has something to do, on the clock."""
        phase, assembly = self.phase, self._assembly
        if phase is Phase.FINISHED:
            return float("inf")
        if self._retry.since is not None:
            return self._retry.due_at
        if phase is Phase.FAILING:
            return 0.0
        ready = 0 if self._pairing is None else self._pairing.ready
        waits = assembly is not None and assembly.waits
        if self._end is not None:
            return self._due_at if waits and not ready else 0.0
        if ready >= self.pace.block:
            return 0.0
        due_at = self._due_at if ready or waits else float("inf")
        return due_at if assembly is None else min(due_at, assembly.mosaic_due_at)

    def step(self) -> None:
        """Do one block of work: read, reconstruct, write; a mosaic when it is time; finish when all is done."""
        if self.phase is Phase.FINISHED:
            return
        try:
            if self._error is not None:
                self._write_failure(self._error)
            else:
                self._advance()
        except RunError as error:
            self._error = error  # the catalog hears of it in the next step, which may be repeated
        except Exception as error:  # noqa: BLE001  # shown in status and log; the run is tried again, not lost
            self._try_later(error)
        else:
            self._retry.succeed()

    def _try_later(self, error: Exception) -> None:
        first, outage = self._retry.since is None, is_outage(error)
        self._retry.fail(outage=outage)
        problem = self._note(Problem.from_error(error))
        if first or not outage:
            level = logging.INFO if outage else logging.WARNING  # an outage is told once a session, not for each run
            exc_info = None if outage else error
            log.log(level, "run %s: %s; trying again", self.progress.uid, problem.message, exc_info=exc_info)
        if self._retry.exhausted or (self._retry.since is not None and self._waited_enough(self._retry.since)):
            self._give_up(outage=outage)

    def _waited_enough(self, since: float) -> bool:
        """Whether the session is being closed and has waited long enough for what it has waited for `since` then."""
        closing = self._closing_since
        return closing is not None and self._clock() - max(since, closing) > self.pace.outage_s

    def _give_up(self, *, outage: bool) -> None:
        log.error("run %s: given up: %s", self.progress.uid, self.progress.problem)
        self.given_up = outage
        if not outage:
            try:  # a result left live would be taken for one that was interrupted, and made again and again
                return self._write_failure(RunError(self.progress.problem))
            except Exception:
                log.exception("run %s: its result cannot be closed", self.progress.uid)
        return self._finish("failed")

    def _advance(self) -> None:
        assembly = self._assembly or self._open()
        pairing = self._pairing
        if assembly is None or pairing is None:
            return
        running = self._end is None
        if running and self._clock() >= assembly.mosaic_due_at:
            assembly.write_mosaic(self.progress)
        else:
            over = self._frames_are_over(assembly)
            took = assembly.work(pairing, running=running, over=over) + assembly.deliver()
            # The busier the catalog, the longer between our requests: the scan comes first. One slow answer is no rule.
            rest = min(took * (1 / self.pace.share - 1), LONGEST_REST * self.pace.flush_s) if running else 0.0
            self._due_at = self._clock() + max(self.pace.flush_s, rest)
        assembly.report(pairing, self.progress)
        if self._end is not None and not pairing.ready:
            self._conclude(assembly, pairing, self._end)

    def _open(self) -> Assembly | None:
        """Make what the run's reconstruction consists of, once its frames are known."""
        geometry, pairing = self._geometry, self._pairing
        if geometry is None or pairing is None:
            return None  # for a reason that `_error` says
        if pairing.layout is None:
            if self._end is not None:
                raise RunError(self._without_a_frame(pairing, self._end))
            return None
        try:
            reconstructor = self._factory.reconstructor(geometry)
        except ValueError as error:
            raise RunError(str(error)) from None
        source = self._factory.source(self.start, pairing.keys.stream, pairing.layout)
        metadata = {**reconstructor.describe(), "geometry": geometry.model_dump(mode="json")}
        sink = self._sink(metadata, reconstructor.patch_shape)
        self._assembly = Assembly(reconstructor, source, sink, self.start, self.pace, self._clock)
        self.progress.state = "live"
        return self._assembly

    def _without_a_frame(self, pairing: RunPairing, end: _End) -> str:
        """Say why a run that is over has nothing to begin with."""
        wanted = pairing.keys.stream
        other = pairing.streams and wanted not in pairing.streams
        streams = f": no stream {wanted!r}, only {', '.join(sorted(pairing.streams))}" if other else ""
        unusable = f"; documents that could not be used: {dict(self._unusable)}" if self._unusable else ""
        return f"run ended ({end.exit_status}) before its first frame{streams}{unusable}"

    def _sink(self, metadata: Mapping[str, Any], patch_shape: tuple[int, int] | None) -> Sink:
        sink = self._factory.sink(self.start, metadata, patch_shape, self.progress.expected)
        self.progress.key = sink.key
        return sink

    def _frames_are_over(self, assembly: Assembly) -> bool:
        """Whether frames that are not in the catalog have been waited for."""
        if self._end is None:
            return False
        if assembly.frames.under_way:
            self._raw_run.ask()
        return self._raw_run.over(self._end.at)

    def _conclude(self, assembly: Assembly, pairing: RunPairing, end: _End) -> None:
        """Finish a run whose documents are over, or say what it waits for."""
        if assembly.frames.under_way:
            if not self._raw_run.complete:
                self._due_at = max(self._due_at, self._raw_run.ask_at)
                if not self.progress.problem:
                    self._note(self._raw_run.problem)
                if self._waited_enough(end.at):
                    self._give_up(outage=True)
        elif assembly.sink.behind:
            if assembly.sink.problem:
                raise ConnectionError(assembly.sink.problem)
        elif assembly.conclude(pairing, self.progress):
            assembly.report(pairing, self.progress)
            learned = assembly.reconstructor.describe()  # what it did not know at the beginning, such as the flux
            reason = {"exit_reason": end.reason} if end.reason else {}
            assembly.sink.update(**learned, **reason, progress=assembly.progress_metadata(self.progress))
            counts = self._counts()
            state = str(assembly.sink.finish(end.exit_status, counts))
            if state == "failed":
                self._note(Problem(_why_failed(counts, self.progress.problem), ProblemKind.FAILED))
            self._finish(state)

    def _counts(self) -> dict[str, Any]:
        replaced = 0 if self._pairing is None else self._pairing.replaced
        return {
            "expected": self.progress.expected,
            "seen": self.progress.seen,
            "reconstructed": 0 if self._assembly is None else self._assembly.frames.committed,
            "rejected": self.progress.rejected,
            **({"measured_again": replaced} if replaced else {}),
            **({"unusable_documents": dict(self._unusable)} if self._unusable else {}),
        }

    def _write_failure(self, error: RunError) -> None:
        """Mark the run failed: in the catalog too, where it says that it is ptychography."""
        self._note(Problem(str(error), ProblemKind.RUN))
        log.warning("run %s: %s", self.progress.uid, str(error))
        if self._assembly is None and not isinstance(self.start.get("ptychography"), Mapping):
            self._finish("ignored")
            return
        geometry = None if self._geometry is None else self._geometry.model_dump(mode="json")
        sink = self._sink({"geometry": geometry}, None) if self._assembly is None else self._assembly.sink
        sink.update(problem=str(error))
        # How a run ends, and with how many frames, is not known while it goes on.
        ended = None if self._end is None else self._end.exit_status
        seen = self.progress.seen if ended else 0
        sink.finish(ended, {**self._counts(), "seen": seen or None}, str(error))
        self._finish("failed")

    def _note(self, problem: Problem) -> Problem:
        self.progress.problem, self.progress.problem_kind = problem
        return problem

    def _finish(self, state: str) -> None:
        self.progress.state = state
        self._error = None  # its traceback holds this run
        if self._assembly is not None:
            self._assembly.source.close()


def _why_failed(counts: Mapping[str, Any], problem: str) -> str:
    """Say why there is no image though nothing is wrong with the run itself; with the problem, where that is why."""
    if counts["reconstructed"]:
        return "the catalog does not hold what was written; the result's problems say what"
    rejected = in_words(counts["rejected"])
    cure = f": {problem}" if NoFrame.WITHHELD in counts["rejected"] and problem else ""
    return f"no frame was reconstructed: {rejected}{cure}" if rejected else "the run has no frame"
