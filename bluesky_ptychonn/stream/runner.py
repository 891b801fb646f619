"""One run from documents to a finished reconstruction: pair, fetch, reconstruct, stitch, write; one step at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.recon.stitch import Mosaic
from bluesky_ptychonn.stream.keys import Keys, Layout, RunError, geometry_of
from bluesky_ptychonn.stream.outage import is_outage
from bluesky_ptychonn.stream.pairing import FrameRef, RunPairing, count_reasons
from bluesky_ptychonn.stream.parts import Patches, Reconstructs, Sink, Workshop
from bluesky_ptychonn.stream.progress import Pace, Progress
from bluesky_ptychonn.stream.source import FrameSource

log = logging.getLogger(__name__)

# Reasons a frame has no reconstruction, beside those of `pairing` and the reconstructor's own flags.
UNREADABLE = "frame cannot be decoded"
NOT_THERE = "frame not in the catalog"
_LOOKS = 3  # at a frame that cannot be decoded, or is all zeros: it may be half written
_LONGEST_REST = 10  # times flush_s, mosaic_s
_MISTAKES = 3  # failures of other kinds than a catalog that does not answer


@dataclass
class _Tried:
    ref: FrameRef
    looks: int = 0


class RunReconstruction:
    """Reconstructs one run while its documents come in.

    Feed it documents and call `step` when it is `due`, until ``progress.finished``. What is wrong with the run is never
    raised: it ends in `progress` and, where the run says that it is ptychography, in a result marked ``failed``.

    Parameters
    ----------
    start : mapping
        The start document.
    workshop : Workshop
        Makes reconstructor, source and sink.
    geometry : Geometry, optional
        Overrides the start document's.
    keys : Keys, optional
        Which data are frames and positions.
    pace : Pace, optional
        How often.
    clock : callable
        Monotonic seconds.
    """

    def __init__(
        self,
        start: Mapping[str, Any],
        workshop: Workshop,
        *,
        geometry: Geometry | None = None,
        keys: Keys | None = None,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.start = start
        self.pace = pace or Pace()
        self.progress = Progress(uid=start["uid"], scan_id=start.get("scan_id"))
        self.given_up = False  # the catalog was away for too long; not the run's fault
        self._workshop = workshop
        self._clock = clock
        self._geometry: Geometry | None = None
        self._pairing: RunPairing | None = None
        self._parts: _Parts | None = None
        self._error: RunError | None = None
        self._exit_status: str | None = None
        self._exit_reason = ""
        self._ended = 0.0
        self._due = 0.0
        self._failing: tuple[float, int] | None = None  # since when, how often
        self._hurried: float | None = None
        try:
            self._geometry = geometry_of(start, geometry)
            self._pairing = RunPairing(start, keys or Keys())
            self.progress.expected = self._pairing.expected
        except RunError as error:
            self._error = error

    # -- documents in

    def feed(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take a document of this run."""
        if self._pairing is not None and self._error is None:
            try:
                self._pairing.feed(name, doc)
            except RunError as error:
                self._error = error
            self.progress.seen = self._pairing.seen
        if name == "stop":
            self.end(str(doc.get("exit_status", "unknown")), str(doc.get("reason") or ""))

    def end(self, exit_status: str, reason: str = "") -> None:
        """Expect no more documents: the stop document came, or never will."""
        if self._exit_status is None:
            self._exit_status, self._exit_reason, self._ended = exit_status, reason, self._clock()

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
        tried = 0 if self._parts is None else len(self._parts.tried)
        if self._exit_status is not None:
            return self._due if tried and not ready else 0.0
        if ready >= self.pace.block:
            return 0.0
        if ready or tried:
            return self._due
        return self._parts.mosaic_due if self._parts is not None and self._parts.mosaic_changed else float("inf")

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
        self._due = now + min(0.5 * 2**times, 10.0)
        self.progress.problem = f"{type(error).__name__}: {error}"
        outage = is_outage(error)
        if times == 0 or not outage:
            traceback = None if outage else error
            log.warning("run %s: %s; trying again", self.progress.uid, self.progress.problem, exc_info=traceback)
        late = self._hurried is not None and now - max(since, self._hurried) > self.pace.outage_s
        if late or (times + 1 >= _MISTAKES and not outage):
            log.error("run %s: given up", self.progress.uid)
            self.given_up = outage
            self.progress.state = "failed"
            self._close_source()

    def _step(self) -> None:
        pairing, geometry, running = self._pairing, self._geometry, self._exit_status is None
        if pairing is None or geometry is None or pairing.layout is None:
            if not running:
                raise RunError(f"run ended ({self._exit_status}) before its first frame")
            return
        if self._parts is None:
            self._parts = self._open(geometry, pairing.layout, pairing.keys.stream)
            self.progress.state = "live"
        parts = self._parts
        over = not running and self._clock() - self._ended >= self.pace.patience_s
        took = parts.work(pairing, running=running, over=over)
        if running and parts.mosaic_changed and self._clock() >= parts.mosaic_due:
            took += parts.write_mosaic()
        # The busier the catalog, the longer between our requests: the scan comes first. But one slow answer is no rule.
        rest = min(took * (1 / self.pace.share - 1), _LONGEST_REST * self.pace.flush_s) if running else 0.0
        self._due = self._clock() + max(self.pace.flush_s, rest)
        parts.report(pairing, self.progress)
        if not running and not pairing.ready and not parts.tried and parts.settle(pairing):
            parts.report(pairing, self.progress)
            self._finish(parts)

    def _open(self, geometry: Geometry, layout: Layout, stream: str) -> _Parts:
        try:
            reconstructor = self._workshop.reconstructor(geometry)
        except ValueError as error:
            raise RunError(str(error)) from None
        source = self._workshop.source(self.start, stream, layout)
        metadata = {**reconstructor.describe(), "geometry": geometry.model_dump(mode="json")}
        sink = self._workshop.sink(self.start, metadata, reconstructor.patch_shape, self.progress.expected)
        self.progress.key = sink.key
        return _Parts(reconstructor, source, sink, self.pace, self._clock)

    def _finish(self, parts: _Parts) -> None:
        learned = parts.reconstructor.describe()  # what it knows now and did not at the beginning, such as the flux
        if self._exit_reason:
            learned["exit_reason"] = self._exit_reason
        parts.sink.update(**learned)
        self.progress.state = str(parts.sink.finish(self._exit_status or "unknown", self._counts()))
        self._close_source()

    def _counts(self) -> dict[str, Any]:
        progress = self.progress
        counts: dict[str, Any] = {
            "expected": progress.expected,
            "seen": progress.seen,
            "reconstructed": progress.done,
            "rejected": progress.rejected,
        }
        if self._pairing is not None and self._pairing.replaced:
            counts["measured_again"] = self._pairing.replaced
        return counts

    def _fail(self, error: RunError) -> None:
        """Mark the run failed: in the catalog too, where it says that it is ptychography."""
        self.progress.problem = str(error)
        log.warning("run %s: %s", self.progress.uid, error)
        if self._parts is None and not isinstance(self.start.get("ptychography"), Mapping):
            self.progress.state = "ignored"
            return
        if self._parts is not None:
            sink = self._parts.sink
        else:
            geometry = None if self._geometry is None else self._geometry.model_dump(mode="json")
            sink = self._workshop.sink(self.start, {"geometry": geometry}, None, self.progress.expected)
            self.progress.key = sink.key
        sink.update(problem=str(error))
        sink.finish("fail", self._counts())
        self.progress.state = "failed"
        self._close_source()

    def _close_source(self) -> None:
        if self._parts is not None:
            self._parts.source.close()


class _Parts:
    """A run under way: its frames, its mosaic, its result."""

    def __init__(
        self,
        reconstructor: Reconstructs,
        source: FrameSource,
        sink: Sink,
        pace: Pace,
        clock: Callable[[], float],
    ) -> None:
        self.source = source
        self.sink = sink
        self.tried: list[_Tried] = []
        self.mosaic_changed = False
        self.mosaic_due = 0.0
        self.reconstructor = reconstructor
        self._pace = pace
        self._clock = clock
        self._mosaic = self._new_mosaic()
        self._committed: dict[int, FrameRef] = {}
        self._rejected: dict[int, str] = {}
        self._untold: dict[int, str] = {}  # rejected without a line in the result's table yet
        self._stale = False  # the mosaic holds a frame that was measured again
        self._problem = ""
        self._lag_s: float | None = None

    def _new_mosaic(self) -> Mosaic:
        return Mosaic(self.reconstructor.pixel_m, self.reconstructor.weight)

    def work(self, pairing: RunPairing, *, running: bool, over: bool) -> float:
        """Take a block of frames from documents to the catalog; returns the seconds the catalog was asked."""
        taken = [_Tried(ref) for ref in pairing.take(self._pace.block)]
        batch = [tried for tried in self.tried + taken if pairing.is_current(tried.ref)]
        self.tried = []
        if not batch:
            return 0.0
        try:
            return self._work(batch, running=running, over=over)
        except BaseException:
            self.tried = batch  # nothing is lost by a catalog that does not answer
            raise

    def _work(self, batch: list[_Tried], *, running: bool, over: bool) -> float:
        batch = sorted(batch, key=lambda tried: tried.ref.row)
        began = self._clock()
        fetched = self.source.read([tried.ref.row for tried in batch])
        took = self._clock() - began
        if fetched.unreachable:
            raise ConnectionError(fetched.problem or "catalog does not answer")
        got = [tried for tried, found in zip(batch, fetched.found, strict=True) if found]
        keep = np.ones(len(got), bool)
        again: list[_Tried] = []
        if running and len(got):
            # Zeros in a file still being written may be a frame that is not all there yet.
            blank = ~fetched.frames.reshape(len(got), -1).any(axis=1)
            for i in np.flatnonzero(blank):
                got[i].looks += 1
                keep[i] = got[i].looks >= _LOOKS
            again += [tried for tried, kept in zip(got, keep, strict=True) if not kept]
        if keep.any():
            refs = [tried.ref for tried, kept in zip(got, keep, strict=True) if kept]
            took += self._write(refs, fetched.frames[keep])
        for tried, found, broken in zip(batch, fetched.found, fetched.broken, strict=True):
            if found:
                continue
            tried.looks += bool(broken)
            if over or tried.looks >= _LOOKS:
                self._reject(tried.ref, UNREADABLE if broken else NOT_THERE, fetched.problem)
            else:
                again.append(tried)
        self.tried = again
        return took

    def _write(self, refs: list[FrameRef], frames: NDArray[Any]) -> float:
        try:
            made = self.reconstructor.reconstruct(frames)
        except ValueError as error:
            raise RunError(str(error)) from None
        y_m, x_m = np.array([ref.y_m for ref in refs]), np.array([ref.x_m for ref in refs])
        time_raw, valid = np.array([ref.time_raw for ref in refs]), np.asarray(made.valid, bool)
        began = self._clock()
        self.sink.write_block(
            [ref.seq_num for ref in refs],
            made.patches,
            y_m,
            x_m,
            made.trust,
            valid,
            list(made.flag),
            time_raw,
            np.full(len(refs), time.time()),
        )
        took = self._clock() - began
        self._lag_s = float(np.median(time.time() - time_raw))
        for ref, is_valid, flag in zip(refs, valid.tolist(), made.flag, strict=True):
            self._forget(ref.seq_num)
            if is_valid:
                self._committed[ref.seq_num] = ref
            else:
                self._rejected[ref.seq_num] = flag or "not valid"
        self._stitch(made, y_m, x_m, valid)
        return took

    def _stitch(
        self, made: Patches, y_m: NDArray[np.float64], x_m: NDArray[np.float64], valid: NDArray[np.bool_]
    ) -> None:
        if not valid.any():
            return
        try:
            self._mosaic.add(made.patches[valid], y_m[valid], x_m[valid], np.asarray(made.trust)[valid])
        except ValueError as error:
            raise RunError(str(error)) from None
        self.mosaic_changed = True

    def _forget(self, seq_num: int) -> None:
        """Let a later measurement of a point take the place of the earlier one, whatever became of it."""
        self._stale |= self._committed.pop(seq_num, None) is not None
        self._rejected.pop(seq_num, None)
        self._untold.pop(seq_num, None)

    def _reject(self, ref: FrameRef, reason: str, problem: str) -> None:
        log.warning("frame %d (row %d): %s: %s", ref.seq_num, ref.row, reason, problem)
        self._problem = problem
        self._forget(ref.seq_num)
        self._rejected[ref.seq_num] = self._untold[ref.seq_num] = reason

    def write_mosaic(self) -> float:
        """Write the whole mosaic; returns the seconds the catalog was asked."""
        image = self._mosaic.snapshot()
        began = self._clock()
        self.sink.write_mosaic(image)
        took = self._clock() - began
        self.mosaic_changed = False
        # Mosaics grow with the scan while frames do not: they may take half of our share.
        rest = min(2 * took / self._pace.share, _LONGEST_REST * self._pace.mosaic_s)
        self.mosaic_due = self._clock() + max(self._pace.mosaic_s, rest)
        return took

    def settle(self, pairing: RunPairing) -> bool:
        """After the last frame: name what is missing, let all patches agree, write the last mosaic.

        Returns
        -------
        bool
            False when there is more to do: a point measured again is in the mosaic twice, and all is stitched anew.
        """
        for seq_num, reason in pairing.unpaired().items():
            if self._rejected.get(seq_num) != reason:
                self._forget(seq_num)
                self._rejected[seq_num] = self._untold[seq_num] = reason
        if self._stale:
            # Rare, so simply begin the run again.
            self._stale = False
            self._mosaic = self._new_mosaic()
            pairing.put_back(self._committed.values())
            self._committed.clear()
            return False
        self._tell_rejected(self._untold)
        self._untold.clear()
        if self._mosaic.count:
            self._mosaic.synchronise()
            self.write_mosaic()
        return True

    def _tell_rejected(self, reasons: Mapping[int, str]) -> None:
        """Give frames without a reconstruction their line in the table too."""
        block = self._pace.block
        seq_nums = sorted(reasons)
        for some in (seq_nums[i : i + block] for i in range(0, len(seq_nums), block)):
            n, nothing = len(some), np.full(len(some), np.nan)
            patches = np.full((n, *self.reconstructor.patch_shape), np.nan, np.complex64)
            done, trust, valid = np.full(n, time.time()), np.zeros(n, np.float32), np.zeros(n, bool)
            flags = [reasons[seq_num] for seq_num in some]
            self.sink.write_block(some, patches, nothing, nothing, trust, valid, flags, nothing, done)

    def report(self, pairing: RunPairing, progress: Progress) -> None:
        """Bring `progress` up to date."""
        progress.seen, progress.done = pairing.seen, len(self._committed)
        progress.rejected = count_reasons(self._rejected.values())
        progress.waiting = pairing.ready + len(self.tried)
        progress.lag_s, progress.problem = self._lag_s, self._problem
