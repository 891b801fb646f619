"""What one run's reconstruction consists of while it grows: frames under way, the mosaic, the result."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.catalog.results.block import Block
from bluesky_ptychonn.catalog.results.field_of_view import FieldOfView
from bluesky_ptychonn.catalog.runs.data_keys import RunError
from bluesky_ptychonn.catalog.runs.frame_source import FrameReader
from bluesky_ptychonn.catalog.runs.pairing import FrameRef, NoFrame, RunPairing
from bluesky_ptychonn.live.pipeline.frame_ledger import Attempt, FrameLedger, FrameState
from bluesky_ptychonn.live.pipeline.problems import ProblemKind
from bluesky_ptychonn.live.pipeline.progress import Progress, Timing
from bluesky_ptychonn.live.pipeline.protocols import FrameReconstructor, Sink
from bluesky_ptychonn.live.pipeline.refining import MosaicRefiner
from bluesky_ptychonn.recon.inference.patch_batch import BEAM_LOST, OUT_OF_RANGE, PatchBatch
from bluesky_ptychonn.recon.mosaic.stitch import Mosaic, MosaicImage

log = logging.getLogger(__name__)

_LOOKS = 3  # at a frame that cannot be decoded, or is all zeros: it may be half written
_FIRST = 256  # usable frames, by which a run's flux is known
LONGEST_REST = 10  # times flush_s, mosaic_s


class Assembly:
    """A run under way: its frames, its mosaic, its result."""

    def __init__(
        self,
        reconstructor: FrameReconstructor,
        source: FrameReader,
        sink: Sink,
        start: Mapping[str, Any],
        pace: Timing,
        clock: Callable[[], float],
    ) -> None:
        self.reconstructor, self.source, self.sink = reconstructor, source, sink
        self.frames = FrameLedger()
        self._pace, self._clock = pace, clock
        self._mosaic = self._new_mosaic()
        self._mosaic_changed, self._mosaic_rest_until = False, 0.0
        self._final_mosaic: tuple[MosaicImage, dict[str, Any] | None] | None = None  # with how it was refined
        self._refiner = MosaicRefiner(reconstructor)
        self._probe_factors: dict[int, tuple[FrameRef, float]] = {}  # that valid frames were made with
        h, w = reconstructor.patch_shape
        self._field = FieldOfView.announced(start, (h * reconstructor.pixel_m, w * reconstructor.pixel_m))
        self._shown = len(sink.written)  # frames of the mosaic that an earlier worker wrote
        self._problem = ""
        self._lag_s: float | None = None
        self._written_verdict: tuple[str, list[str]] | None = None
        self._verdict = ""
        self._written_reasons: set[str] = set()  # under the metadata's ``progress``

    def _new_mosaic(self) -> Mosaic:
        return Mosaic(self.reconstructor.pixel_m, self.reconstructor.weight, anchor=self.reconstructor.anchor)

    @property
    def waits(self) -> bool:
        """Whether frames wait for the raw run, or results for the catalog."""
        return bool(self.frames.under_way or self.sink.behind)

    @property
    def mosaic_due_at(self) -> float:
        """When to write the mosaic, on the clock."""
        return self._mosaic_rest_until if self._mosaic_changed else float("inf")

    def work(self, pairing: RunPairing, *, running: bool, over: bool) -> float:
        """Take a block of frames from documents to the catalog; returns the seconds the catalog was asked.

        More frames may come while `running`; one that is not there now never will be when that is `over`.
        ConnectionError when frames cannot be read, or there is no room for what becomes of them: they are kept for the
        next call. RunError when the run cannot be reconstructed.
        """
        if self.frames.under_way or pairing.ready:
            self.sink.make_room()
        self.frames.take(pairing.take(self._pace.block))
        attempts = self.frames.attempts(pairing.is_current)
        if not attempts:
            return 0.0
        began = self._clock()
        fetched = self.source.read([attempt.ref.row for attempt in attempts])
        took = self._clock() - began
        if fetched.unreachable:
            raise ConnectionError(fetched.problem or "catalog does not answer")
        found = [attempt for attempt, is_found in zip(attempts, fetched.found, strict=True) if is_found]
        usable = self._usable(found, fetched.frames, running=running)
        if usable.any():
            refs = [attempt.ref for attempt, is_usable in zip(found, usable, strict=True) if is_usable]
            took += self._reconstruct(refs, fetched.frames[usable])
        broken = NoFrame.WITHHELD if fetched.withheld else NoFrame.UNREADABLE
        for attempt, is_found, is_broken in zip(attempts, fetched.found, fetched.broken, strict=True):
            attempt.looks += bool(is_broken)
            if not is_found and (over or attempt.looks >= _LOOKS):
                self._reject(attempt.ref, broken if is_broken else NoFrame.NOT_THERE, fetched.problem)
        return took

    def _usable(self, attempts: list[Attempt], frames: NDArray[Any], *, running: bool) -> NDArray[np.bool_]:
        """Leave zeros in a file that is still being written for later: the frame may not be all there yet."""
        usable = np.ones(len(attempts), bool)
        if running and attempts:
            for i in np.flatnonzero(~frames.any(axis=(1, 2))):
                attempts[i].looks += 1
                usable[i] = attempts[i].looks >= _LOOKS
        return usable

    def _reconstruct(self, refs: list[FrameRef], frames: NDArray[Any]) -> float:
        batch, before = self._make(refs, frames), self.sink.asked_s
        self._write(refs, batch)
        # The first block makes the result's nodes: much at once, and never again.
        took = self.sink.asked_s - before if self.frames.committed else 0.0
        self._lag_s = max(0.0, time.time() - float(np.median([ref.heard for ref in refs])))
        for ref, is_valid, flag in zip(refs, batch.valid.tolist(), batch.flag, strict=True):
            if is_valid:
                self.frames.commit(ref)
                # Whether one with few counts had lost the beam shows by those that follow.
                unsure = OUT_OF_RANGE in flag and self.frames.committed <= _FIRST
                self._probe_factors[ref.seq_num] = ref, math.nan if unsure else self.reconstructor.probe_factor
            else:
                self.frames.reject(ref.seq_num, flag or "not valid", FrameState.REJECTED)
        self._stitch(batch, refs)
        self._refiner.keep(refs, frames, batch.valid)
        return took

    def _make(self, refs: list[FrameRef], frames: NDArray[Any]) -> PatchBatch:
        try:
            return self.reconstructor.reconstruct(frames)
        except ValueError as error:
            raise RunError(str(error)) from None

    def _write(self, refs: list[FrameRef], batch: PatchBatch, **columns: NDArray[Any]) -> None:
        y_m, x_m, time_raw = np.array([(ref.y_m, ref.x_m, ref.time_raw) for ref in refs]).T
        columns |= {"y_m": y_m, "x_m": x_m, "trust": batch.trust, "valid": batch.valid, "time_raw": time_raw}
        self.sink.write_block(
            Block.from_patches([ref.seq_num for ref in refs], batch.patches, **columns, flag=batch.flag)
        )

    def _stitch(self, batch: PatchBatch, refs: list[FrameRef]) -> None:
        valid = batch.valid
        if not valid.any():
            return
        y_m, x_m, seq_num = np.array([(ref.y_m, ref.x_m, ref.seq_num) for ref in refs])[valid].T
        try:
            self._mosaic.add(batch.patches[valid], y_m, x_m, batch.trust[valid], seq_num.astype(int).tolist())
        except ValueError as error:
            raise RunError(str(error)) from None
        self.reconstructor.placed(batch.patches[valid], y_m, x_m)
        # Begun anew by a second worker, a run's mosaic does not shrink before people's eyes.
        self._mosaic_changed, self._final_mosaic = self.frames.committed >= self._shown, None

    def _settle(self) -> None:
        """Make those frames again that were made before the run's flux was known: none depends on what came together.

        At most some hundred, and none where the probe's own flux holds and counts are usual. One whose data are gone
        stays as it is.
        """
        factor = self.reconstructor.probe_factor
        early = [
            ref
            for ref, made_with in self._probe_factors.values()
            if made_with != factor and self.frames.state(ref.seq_num) is FrameState.COMMITTED
        ]
        if early:
            self.reconstructor.settle()
        for some in (early[start : start + self._pace.block] for start in range(0, len(early), self._pace.block)):
            fetched = self.source.read([ref.row for ref in some])
            if fetched.unreachable:
                raise ConnectionError(fetched.problem or "catalog does not answer")
            refs = [ref for ref, is_found in zip(some, fetched.found, strict=True) if is_found]
            if refs:
                batch = self._make(refs, fetched.frames)
                lost = [BEAM_LOST in flag for flag in batch.flag]
                if (batch.valid | lost).all():
                    self._write(refs, batch, time_done=np.full(len(refs), np.nan))  # readable since they came
                    self._stitch(batch, refs)
                    for i in np.flatnonzero(lost):
                        self._withdraw(refs[i].seq_num, batch.flag[i])
            for ref in some:
                self._probe_factors[ref.seq_num] = ref, factor

    def _withdraw(self, seq_num: int, reason: str) -> None:
        self._mosaic.remove(seq_num)
        self._final_mosaic = None
        self._refiner.forget(seq_num)
        self.frames.withdraw(seq_num, reason)

    def _reject(self, ref: FrameRef, reason: str, problem: str) -> None:
        log.warning("frame %d (row %d): %s: %s", ref.seq_num, ref.row, reason, problem)
        self._problem = problem
        self._refiner.forget(ref.seq_num)
        self.frames.reject(ref.seq_num, reason)

    def deliver(self) -> float:
        """Send what waits for the catalog, for a short while; returns the seconds the catalog was asked."""
        before = self.sink.asked_s
        if self.sink.behind:
            self.sink.deliver()
        return self.sink.asked_s - before

    def write_mosaic(self, progress: Progress) -> None:
        """Write the whole mosaic, and with it where things stand."""
        self._write_mosaic(self._refiner.refine_live(self._mosaic.snapshot()), progress)

    def _write_mosaic(self, image: MosaicImage, progress: Progress, **metadata: Any) -> None:
        if self._field is not None:
            image = self._field.fill(image)
        before = self.sink.asked_s
        metadata = {"progress": self.progress_metadata(progress), **self._verdict_metadata(), **metadata}
        self.sink.write_mosaic(image, **metadata)
        took = self.sink.asked_s - before
        self._mosaic_changed = False
        # Mosaics grow with the scan while frames do not: they may take half of our share.
        rest = min(2 * took / self._pace.share, LONGEST_REST * self._pace.mosaic_s)
        self._mosaic_rest_until = self._clock() + max(self._pace.mosaic_s, rest)

    def progress_metadata(self, progress: Progress) -> dict[str, Any]:
        """Make what the metadata say under ``progress``; a reason that no longer holds is taken out of them."""
        metadata, gone = progress.as_metadata(), self._written_reasons - set(progress.rejected)
        self._written_reasons = set(progress.rejected)
        return {**metadata, "rejected": {**dict.fromkeys(gone), **metadata["rejected"]}}

    def _verdict_metadata(self) -> dict[str, Any]:
        """Tell the catalog when the run turns good or bad: somebody may be watching who can still mend it."""
        verdict = self.reconstructor.verdict()
        if verdict is None:
            return {}
        self._verdict = verdict.level + (f" ({verdict.reasons[0].kind})" if verdict.reasons else "")
        written, self._written_verdict = self._written_verdict, (verdict.level, [item.kind for item in verdict.reasons])
        return {} if self._written_verdict == written else {"verdict": verdict.document()}

    def conclude(self, pairing: RunPairing, progress: Progress) -> bool:
        """After the last frame: name what is missing, let all patches agree, write the last mosaic.

        What takes long is done once, however often this is called. False when there is more to do: a point measured
        again is in the mosaic twice, and all is stitched anew.
        """
        for seq_num, reason in pairing.unpaired().items():
            self._refiner.forget(seq_num)
            self.frames.reject(seq_num, reason)
        if self.frames.outdated:
            # Rare, so simply begin the run again.
            self._mosaic, self._final_mosaic = self._new_mosaic(), None
            pairing.put_back(self.frames.reopen())
            return False
        self._record_rejected()
        if self._mosaic.count:
            self._settle()
            if self._final_mosaic is None:
                self._mosaic.synchronise()
                self._final_mosaic = self._refiner.refine_final(self._mosaic.snapshot())
            image, refinement = self._final_mosaic
            more = {"refinement": refinement, "not_synchronised": self._mosaic.problem or None}
            self._write_mosaic(image, progress, **{name: value for name, value in more.items() if value})
        return True

    def _record_rejected(self) -> None:
        """Give frames without a reconstruction their line in the table too."""
        reasons, patch_shape = self.frames.unrecorded, self.reconstructor.patch_shape
        seq_nums = list(reasons)
        for some in (seq_nums[i : i + self._pace.block] for i in range(0, len(seq_nums), self._pace.block)):
            n, nothing = len(some), np.full(len(some), np.nan)
            columns = {"y_m": nothing, "x_m": nothing, "trust": np.zeros(n), "valid": np.zeros(n), "time_raw": nothing}
            patches, flag = np.full((n, *patch_shape), np.nan, np.complex64), [reasons[number] for number in some]
            self.sink.write_block(Block.from_patches(some, patches, **columns, flag=flag))
        self.frames.record(seq_nums)

    def report(self, pairing: RunPairing, progress: Progress) -> None:
        """Bring `progress` up to date."""
        on_disk = sum(self.frames.state(number) is FrameState.COMMITTED for number in self.sink.spooled)
        progress.seen, progress.done = pairing.seen, self.frames.committed - on_disk
        progress.spooled, progress.spool_bytes = len(self.sink.spooled), self.sink.spool_bytes
        progress.rejected = self.frames.rejected
        progress.waiting = pairing.ready + self.frames.under_way
        since = self.sink.waits_since
        progress.lag_s = self._lag_s if since is None else max(0.0, time.time() - since)
        progress.verdict = self._verdict
        progress.problem = self.sink.problem or self._problem
        progress.problem_kind = (
            ProblemKind.CATALOG if self.sink.problem else ProblemKind.FRAMES if self._problem else ""
        )
