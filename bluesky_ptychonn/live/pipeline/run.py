"""One run from documents to a finished reconstruction: pair, fetch, reconstruct, stitch, write; one step at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from bluesky_ptychonn.catalog.connection.errors import is_outage
from bluesky_ptychonn.catalog.runs.data_keys import DataKeys, DocumentError, RunError, RunLayout, geometry_of
from bluesky_ptychonn.catalog.runs.pairing import RunPairing
from bluesky_ptychonn.live.pipeline.assembly import LONGEST_REST, Assembly
from bluesky_ptychonn.live.pipeline.problems import Problem, ProblemKind
from bluesky_ptychonn.live.pipeline.progress import Progress, Timing
from bluesky_ptychonn.live.pipeline.protocols import ComponentFactory
from bluesky_ptychonn.optics.geometry import Geometry

log = logging.getLogger(__name__)

_MISTAKES = 3  # failures of other kinds than a catalog that does not answer
_LONGEST_S = (2.0, 10.0)  # between tries: while the catalog is away, and after failures of other kinds
_ASK_S = 1.5  # between questions whether the raw run is whole
RAW_BEHIND = "waiting for the raw run in the catalog"


class RunReconstruction:
    """Reconstructs one run while its documents come in.

    Feed it documents and call `step` when it is `due`, until ``progress.finished``. What is wrong with the run is never
    raised: it ends in `progress` and, where the run says that it is ptychography, in a result marked ``failed``.

    Parameters
    ----------
    start : mapping
        The start document.
    factory : ComponentFactory
        Makes reconstructor, source and sink.
    geometry : Geometry, optional
        Overrides the start document's.
    keys : DataKeys, optional
        Which data are frames and positions.
    pace : Timing, optional
        How often.
    clock : callable
        Monotonic seconds.
    made_by : str
        Model that an earlier worker began this run with, ``name/version``.
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
        self.given_up = False  # the catalog was away for too long; not the run's fault
        self._factory = factory
        self._clock = clock
        self._geometry: Geometry | None = None
        self._pairing: RunPairing | None = None
        self._parts: Assembly | None = None
        self._error: RunError | None = None
        self._exit_status: str | None = None
        self._exit_reason = ""
        self._passed_over: dict[str, int] = {}  # documents that could not be used, by kind
        self._ended = 0.0
        self._age_s = 0.0
        self._whole_at: float | None = None  # since when the raw run in the catalog is whole
        self._ask_at = 0.0
        self._due = 0.0
        self._failing: tuple[float, int] | None = None  # since when, how often
        self._hurried: float | None = None
        try:
            self._geometry = geometry_of(start, geometry)
            self._pairing = RunPairing(start, keys or DataKeys())
            self.progress.expected = self._pairing.expected
            self._factory = factory.for_run(made_by)  # once: no run changes its model
            self.progress.model = self._factory.model
        except RunError as error:
            self._error = error

    # -- documents in

    def feed(self, name: str, doc: Mapping[str, Any], age_s: float = 0.0) -> None:
        """Take a document of this run; one that cannot be used is passed over, and counted.

        Parameters
        ----------
        name : str
            Kind of document.
        doc : mapping
            The document.
        age_s : float
            How long ago it was made, s: a run that was left behind has been waited for already.
        """
        self._age_s = max(0.0, age_s)
        if self._pairing is not None and self._error is None:
            try:
                self._pairing.feed(name, doc, time.time() - self._age_s)
            except RunError as error:
                self._error = error
            except DocumentError as error:
                self.pass_over(name, str(error))
            self.progress.seen = self._pairing.seen
        if name == "stop":
            self.end(str(doc.get("exit_status", "unknown")), str(doc.get("reason") or ""))

    def pass_over(self, kind: str, words: str, number: int = 1) -> None:
        """Count documents that cannot be used: frames may be missing, so the result will not say ``complete``."""
        if kind not in self._passed_over:  # once: whoever sends one such document may send thousands
            log.warning("run %s: passed over, %s", self.progress.uid, words)
        self._passed_over[kind] = self._passed_over.get(kind, 0) + number

    def end(self, exit_status: str, reason: str = "") -> None:
        """Expect no more documents: the stop document came, or never will."""
        if self._exit_status is None:
            self._exit_status, self._exit_reason, self._ended = exit_status, reason, self._clock() - self._age_s

    def fail(self, error: RunError) -> None:
        """Say that the run cannot be reconstructed; its result will say so too."""
        self._error = self._error or error

    def hurry(self) -> None:
        """Wait for a catalog that does not answer for ``pace.outage_s`` only: the session is being closed."""
        if self._hurried is None:
            self._hurried = self._clock()

    # -- work

    @property
    def due(self) -> float:
        """When `step` has something to do, on the clock."""
        if self.progress.finished:
            return float("inf")
        if self._failing is not None:
            return self._due
        if self._error is not None:
            return 0.0
        ready = 0 if self._pairing is None else self._pairing.ready
        tried = self._parts is not None and bool(self._parts.tried or self._parts.sink.behind)
        if self._exit_status is not None:
            return self._due if tried and not ready else 0.0
        if ready >= self.pace.block:
            return 0.0
        due = self._due if ready or tried else float("inf")
        if self._parts is not None and self._parts.mosaic_changed:
            due = min(due, self._parts.mosaic_due)
        return due

    def step(self) -> None:
        """Do one block of work: read, reconstruct, write; a mosaic when it is time; finish when all is done."""
        if self.progress.finished:
            return
        try:
            if self._error is None:
                self._step()
            if self._error is not None:
                self._fail(self._error)
        except RunError as error:
            self._error = error  # told to the catalog by the next step, which may be repeated
        except Exception as error:  # noqa: BLE001  # shown in status and log; the run is tried again, not lost
            self._later(error)
        else:
            self._failing = None

    def _later(self, error: Exception) -> None:
        """Try again after a while what failed; give up when it keeps failing."""
        now = self._clock()
        since, times = self._failing or (now, 0)
        self._failing = (since, times + 1)
        outage = is_outage(error)
        self._due = now + min(0.5 * 2 ** min(times, 8), _LONGEST_S[not outage])
        words, _ = self.progress.problem, self.progress.problem_kind = Problem.from_error(error)
        if times == 0 or not outage:
            level = logging.INFO if outage else logging.WARNING  # an outage is told once a session, not for each run
            log.log(level, "run %s: %s; trying again", self.progress.uid, words, exc_info=None if outage else error)
        if self._late(since) or (times + 1 >= _MISTAKES and not outage):
            self._give_up(outage=outage)

    def _late(self, since: float) -> bool:
        """Whether the session is being closed and has waited long enough for what it has waited for `since` then."""
        return self._hurried is not None and self._clock() - max(since, self._hurried) > self.pace.outage_s

    def _give_up(self, *, outage: bool) -> None:
        log.error("run %s: given up: %s", self.progress.uid, self.progress.problem)
        self.given_up = outage
        self.progress.state = "failed"
        self._close_source()

    def _step(self) -> None:
        pairing, geometry, running = self._pairing, self._geometry, self._exit_status is None
        if pairing is None or geometry is None or pairing.layout is None:
            if not running:
                unusable = f"; documents that could not be used: {self._passed_over}" if self._passed_over else ""
                raise RunError(f"run ended ({self._exit_status}) before its first frame{unusable}")
            return
        if self._parts is None:
            self._parts = self._open(geometry, pairing.layout, pairing.keys.stream)
            self.progress.state = "live"
        parts = self._parts
        over = not running and self._over(parts)
        if running and parts.mosaic_changed and self._clock() >= parts.mosaic_due:
            parts.write_mosaic(self.progress)
        else:
            took = parts.work(pairing, running=running, over=over) + parts.deliver()
            # The busier the catalog, the longer between our requests: the scan comes first. One slow answer is no rule.
            rest = min(took * (1 / self.pace.share - 1), LONGEST_REST * self.pace.flush_s) if running else 0.0
            self._due = self._clock() + max(self.pace.flush_s, rest)
        parts.report(pairing, self.progress)
        if running or pairing.ready:
            return
        if parts.tried:
            if self._whole_at is None:
                self._due = max(self._due, self._ask_at)
                if not self.progress.problem:
                    self.progress.problem, self.progress.problem_kind = RAW_BEHIND, ProblemKind.RAW_RUN
                if self._late(self._ended):
                    self._give_up(outage=True)
        elif parts.sink.behind:
            if parts.sink.problem:
                raise ConnectionError(parts.sink.problem)
        elif parts.settle(pairing, self.progress):
            parts.report(pairing, self.progress)
            self._finish(parts)

    def _over(self, parts: Assembly) -> bool:
        """Whether frames that are not in the catalog have been waited for: its raw run is whole, and was for a while.

        Before that its writer may be behind, or it lies in a backup: a frame that is late is not missing.
        """
        now = self._clock()
        if self._whole_at is None and parts.tried and now >= self._ask_at:
            self._ask_at = now + _ASK_S
            try:
                if self._factory.whole(self.start):
                    self._whole_at = now
            except ConnectionError as error:
                self.progress.problem, self.progress.problem_kind = Problem.from_error(error)
        if self._whole_at is not None:
            return now - self._whole_at >= self.pace.patience_s
        return now - self._ended >= self.pace.raw_s

    def _open(self, geometry: Geometry, layout: RunLayout, stream: str) -> Assembly:
        try:
            reconstructor = self._factory.reconstructor(geometry)
        except ValueError as error:
            raise RunError(str(error)) from None
        source = self._factory.source(self.start, stream, layout)
        metadata = {**reconstructor.describe(), "geometry": geometry.model_dump(mode="json")}
        sink = self._factory.sink(self.start, metadata, reconstructor.patch_shape, self.progress.expected)
        self.progress.key = sink.key
        return Assembly(reconstructor, source, sink, self.start, self.pace, self._clock)

    def _finish(self, parts: Assembly) -> None:
        learned = parts.reconstructor.describe()  # what it knows now and did not at the beginning, such as the flux
        if self._exit_reason:
            learned["exit_reason"] = self._exit_reason
        parts.sink.update(**learned, progress=parts.told(self.progress))
        self.progress.state = str(parts.sink.finish(self._exit_status or "unknown", self._counts()))
        self._close_source()

    def _counts(self) -> dict[str, Any]:
        progress = self.progress
        counts: dict[str, Any] = {
            "expected": progress.expected,
            "seen": progress.seen,
            "reconstructed": 0 if self._parts is None else self._parts.made,
            "rejected": progress.rejected,
        }
        if self._pairing is not None and self._pairing.replaced:
            counts["measured_again"] = self._pairing.replaced
        if self._passed_over:
            counts["unusable_documents"] = dict(self._passed_over)
        return counts

    def _fail(self, error: RunError) -> None:
        """Mark the run failed: in the catalog too, where it says that it is ptychography."""
        self.progress.problem, self.progress.problem_kind = str(error), ProblemKind.RUN
        log.warning("run %s: %s", self.progress.uid, error)
        if self._parts is None and not isinstance(self.start.get("ptychography"), Mapping):
            self.progress.state = "ignored"
            return
        if self._parts is not None:
            sink = self._parts.sink
        else:
            geometry = None if self._geometry is None else self._geometry.model_dump(mode="json")
            sink = self._factory.sink(self.start, {"geometry": geometry}, None, self.progress.expected)
            self.progress.key = sink.key
        sink.update(problem=str(error))
        sink.finish("fail", self._counts())
        self.progress.state = "failed"
        self._close_source()

    def _close_source(self) -> None:
        if self._parts is not None:
            self._parts.source.close()
