"""What one run's reconstruction consists of while it grows: frames under way, the mosaic, the result."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.catalog.results.field_of_view import FieldOfView
from bluesky_ptychonn.catalog.runs.data_keys import RunError
from bluesky_ptychonn.catalog.runs.frame_source import FrameReader
from bluesky_ptychonn.catalog.runs.pairing import NOT_THERE, UNREADABLE, FrameRef, RunPairing, count_reasons
from bluesky_ptychonn.live.pipeline.problems import ProblemKind
from bluesky_ptychonn.live.pipeline.progress import Progress, Timing
from bluesky_ptychonn.live.pipeline.protocols import Patches, Reconstructs, Sink
from bluesky_ptychonn.live.pipeline.refining import Refining
from bluesky_ptychonn.recon.mosaic.stitch import Mosaic, MosaicImage

log = logging.getLogger(__name__)

# Reasons a frame has no reconstruction, beside those of `pairing` and the reconstructor's own flags.
_LOOKS = 3  # at a frame that cannot be decoded, or is all zeros: it may be half written
LONGEST_REST = 10  # times flush_s, mosaic_s


@dataclass
class _Tried:
    ref: FrameRef
    looks: int = 0


class Assembly:
    """A run under way: its frames, its mosaic, its result."""

    def __init__(
        self,
        reconstructor: Reconstructs,
        source: FrameReader,
        sink: Sink,
        start: Mapping[str, Any],
        pace: Timing,
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
        self._refining = Refining(reconstructor)
        h, w = reconstructor.patch_shape
        self._field = FieldOfView.announced(start, (h * reconstructor.pixel_m, w * reconstructor.pixel_m))
        self._shown = len(sink.written)  # frames of the mosaic that an earlier worker wrote
        self._committed: dict[int, FrameRef] = {}
        self._rejected: dict[int, str] = {}
        self._untold: dict[int, str] = {}  # rejected without a line in the result's table yet
        self._stale = False  # the mosaic holds a frame that was measured again
        self._problem = ""
        self._verdict: tuple[str, list[str]] | None = None
        self._lag_s: float | None = None
        self._whole: tuple[MosaicImage, dict[str, Any] | None] | None = None  # the last mosaic, once it was made
        self._told: set[str] = set()  # reasons under the metadata's ``progress``

    def _new_mosaic(self) -> Mosaic:
        made = self.reconstructor
        return Mosaic(made.pixel_m, made.weight, anchor=made.anchor)

    def work(self, pairing: RunPairing, *, running: bool, over: bool) -> float:
        """Take a block of frames from documents to the catalog; returns the seconds the catalog was asked.

        Parameters
        ----------
        pairing : RunPairing
            Says which frames there are.
        running : bool
            Whether more may come.
        over : bool
            Whether a frame that is not there now never will be.

        Raises
        ------
        ConnectionError
            When frames cannot be read or there is no room for what becomes of them. They are kept for the next call.
        RunError
            When the run cannot be reconstructed.
        """
        if self.tried or pairing.ready:
            self.sink.make_room()
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
        before = self.sink.asked_s
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
        # The first block makes the result's nodes: much at once, and never again.
        took = self.sink.asked_s - before if self._committed else 0.0
        self._lag_s = max(0.0, time.time() - float(np.median([ref.heard for ref in refs])))
        for ref, is_valid, flag in zip(refs, valid.tolist(), made.flag, strict=True):
            self._forget(ref.seq_num)
            if is_valid:
                self._committed[ref.seq_num] = ref
            else:
                self._rejected[ref.seq_num] = flag or "not valid"
        self._stitch(made, y_m, x_m, valid)
        self._refining.keep([ref.seq_num for ref in refs], frames, y_m, x_m, valid)
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
        self.reconstructor.placed(made.patches[valid], y_m[valid], x_m[valid])
        # Begun anew by a second worker, a run's mosaic does not shrink before people's eyes.
        self.mosaic_changed, self._whole = self.made >= self._shown, None

    def _forget(self, seq_num: int) -> None:
        """Let a later measurement of a point take the place of the earlier one, whatever became of it."""
        self._stale |= self._committed.pop(seq_num, None) is not None
        self._rejected.pop(seq_num, None)
        self._untold.pop(seq_num, None)
        self._refining.forget(seq_num)

    def _reject(self, ref: FrameRef, reason: str, problem: str) -> None:
        log.warning("frame %d (row %d): %s: %s", ref.seq_num, ref.row, reason, problem)
        self._problem = problem
        self._forget(ref.seq_num)
        self._rejected[ref.seq_num] = self._untold[ref.seq_num] = reason

    def deliver(self) -> float:
        """Send what waits for the catalog, for a short while; returns the seconds the catalog was asked."""
        before = self.sink.asked_s
        if self.sink.behind:
            self.sink.deliver()
        return self.sink.asked_s - before

    @property
    def made(self) -> int:
        """Frames with a reconstruction, in the catalog or on their way there."""
        return len(self._committed)

    def write_mosaic(self, progress: Progress) -> None:
        """Write the whole mosaic, and with it where things stand."""
        self._write_mosaic(self._refining.live(self._mosaic.snapshot()), progress)

    def _write_mosaic(self, image: MosaicImage, progress: Progress, **more: Any) -> None:
        if self._field is not None:
            image = self._field.fill(image)
        before = self.sink.asked_s
        self.sink.write_mosaic(image, progress=self.told(progress), **self._verdict_due(), **more)
        took = self.sink.asked_s - before
        self.mosaic_changed = False
        # Mosaics grow with the scan while frames do not: they may take half of our share.
        rest = min(2 * took / self._pace.share, LONGEST_REST * self._pace.mosaic_s)
        self.mosaic_due = self._clock() + max(self._pace.mosaic_s, rest)

    def told(self, progress: Progress) -> dict[str, Any]:
        """Make what the metadata say under ``progress``; a reason that no longer holds is taken out of them."""
        told = progress.told
        gone = self._told - set(progress.rejected)
        self._told = set(progress.rejected)
        return {**told, "rejected": {**dict.fromkeys(gone), **told["rejected"]}}

    def _verdict_due(self) -> dict[str, Any]:
        """Tell the catalog when the run turns good or bad: somebody may be watching who can still mend it."""
        verdict = self.reconstructor.describe().get("verdict")
        if verdict is None:
            return {}
        kinds = (verdict["level"], [reason.partition(":")[0] for reason in verdict["reasons"]])
        if kinds == self._verdict:
            return {}
        self._verdict = kinds
        return {"verdict": verdict}

    def settle(self, pairing: RunPairing, progress: Progress) -> bool:
        """After the last frame: name what is missing, let all patches agree, write the last mosaic.

        What takes long is done once, however often this is called.

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
            self._stale, self._whole = False, None
            self._mosaic = self._new_mosaic()
            pairing.put_back(self._committed.values())
            self._committed.clear()
            return False
        self._tell_rejected(self._untold)
        self._untold.clear()
        if self._mosaic.count:
            if self._whole is None:
                self._mosaic.synchronise()
                self._whole = self._refining.whole(self._mosaic.snapshot())
            image, record = self._whole
            self._write_mosaic(image, progress, **({} if record is None else {"refinement": record}))
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
        on_disk = sum(number in self._committed for number in self.sink.spooled)
        progress.seen, progress.done = pairing.seen, self.made - on_disk
        progress.spooled, progress.spool_bytes = len(self.sink.spooled), self.sink.spool_bytes
        progress.rejected = count_reasons(self._rejected.values())
        progress.waiting = pairing.ready + len(self.tried)
        since = self.sink.waits_since
        progress.lag_s = self._lag_s if since is None else max(0.0, time.time() - since)
        progress.problem = self.sink.problem or self._problem
        progress.problem_kind = (
            ProblemKind.CATALOG if self.sink.problem else ProblemKind.FRAMES if self._problem else ""
        )
