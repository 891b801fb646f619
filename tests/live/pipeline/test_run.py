from __future__ import annotations

import gc
import itertools
import math
import time
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bluesky_ptychonn.catalog.results.field_of_view import FieldOfView
from bluesky_ptychonn.catalog.runs.data_keys import DataKeys
from bluesky_ptychonn.catalog.runs.pairing import FrameRef, NoFrame
from bluesky_ptychonn.live.pipeline.problems import ProblemKind
from bluesky_ptychonn.live.pipeline.progress import Timing
from bluesky_ptychonn.live.pipeline.refining import MosaicRefiner
from bluesky_ptychonn.live.pipeline.run import RunReconstruction
from bluesky_ptychonn.live.pipeline.testing import (
    GEOMETRY,
    FakeComponentFactory,
    FakeReconstructor,
    FakeSink,
    FakeSource,
    RunMaker,
    frame_of,
)
from bluesky_ptychonn.live.pipeline.waiting import RAW_BEHIND
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.recon.inference.patch_batch import BEAM_LOST, OUT_OF_RANGE, PatchBatch
from bluesky_ptychonn.recon.mosaic.refine_config import Refinement
from bluesky_ptychonn.recon.mosaic.stitch import Mosaic, MosaicImage


class Clock:
    """Time that passes only when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A run before fakes, on a clock of its own."""

    def __init__(self, run: RunMaker, points: int | None = None, *, pace: Timing | None = None, **options: Any) -> None:
        self.run, self.clock, self.factory = run, Clock(), FakeComponentFactory()
        self.source = self.factory.sources[run.uid] = FakeSource()
        self.sink = self.factory.sinks[run.uid] = FakeSink()
        documents = run.open(points)
        self.job = RunReconstruction(next(documents)[1], self.factory, pace=pace, clock=self.clock, **options)
        self.feed(documents)

    def feed(self, documents: Any) -> None:
        for document in documents:
            self.job.feed(*document)

    def point(self, seq_num: int, *, frame: bool = True, there: bool = True, x: float | None = None) -> None:
        before = self.rows
        self.feed(self.run.point(seq_num, 0.0, float(seq_num) / 100 if x is None else x, frame=frame))
        if frame and there:
            self.source.frames[before] = frame_of(seq_num)

    @property
    def rows(self) -> int:
        self.run.rows, rows = itertools.tee(self.run.rows)
        return next(rows)

    def work(self, seconds: float = 0.0) -> None:
        """Let the job do what is due, until nothing is for `seconds`."""
        end = self.clock.now + seconds
        for _ in range(1000):
            if self.job.due <= self.clock.now:
                self.job.step()
            elif self.job.due <= end:
                self.clock.now = self.job.due
            else:
                self.clock.now = max(self.clock.now, end)
                return
        raise AssertionError("the job never rests")

    def close(self, status: str = "success", reason: str = "") -> None:
        self.feed(self.run.close(status, reason))
        self.work(60.0)


@pytest.mark.parametrize("kind", ["event", "datum", "stream"])
@pytest.mark.parametrize("points", [1, 3, 64, 65, 200])
def test_whole_run_is_complete(kind: Any, points: int) -> None:
    bench = Bench(RunMaker(kind), points)
    for seq_num in range(1, points + 1):
        bench.point(seq_num)
        if seq_num % 7 == 0:
            bench.work(0.1)
    bench.close()
    assert bench.job.progress.state == "complete"
    assert sorted(bench.sink.table) == list(range(1, points + 1))
    assert all(row["value"] == seq_num for seq_num, row in bench.sink.table.items())
    assert all(row["x_m"] == pytest.approx(seq_num * 1e-8) for seq_num, row in bench.sink.table.items())
    assert sum(map(len, bench.sink.blocks)) == points
    assert bench.sink.counts == {"expected": points, "seen": points, "reconstructed": points, "rejected": {}}
    assert bench.source.closed
    assert bench.job.progress.key == bench.sink.key
    assert bench.sink.mosaics[-1].coverage.max() > 0


@pytest.mark.parametrize("state", ["complete", "failed"])
def test_a_finished_run_leaves_memory_at_once(state: str) -> None:
    """Not when Python looks for cycles, which it seldom does where much lives long: some 10 KiB a frame stayed."""

    class Particular(FakeReconstructor):
        def reconstruct(self, frames: NDArray[Any]) -> PatchBatch:
            if state == "failed" and frames.max() > 1:
                raise ValueError("cannot be used")
            return super().reconstruct(frames)

    bench = Bench(RunMaker(), 2)
    bench.factory.fake.__class__ = Particular
    gc.disable()
    try:
        for seq_num in (1, 2):
            bench.point(seq_num)
            bench.work(1.0)
        bench.close()
        assert bench.job.progress.state == state
        run = weakref.ref(bench.job)
        del bench.job
        assert run() is None
    finally:
        gc.enable()


def test_first_frame_at_once_then_in_blocks() -> None:
    bench = Bench(RunMaker(), pace=Timing(block=10, flush_s=0.3))
    bench.point(1)
    bench.work()
    assert bench.sink.blocks == [[1]]
    bench.point(2)
    bench.work(0.29)
    assert bench.sink.blocks == [[1]]
    bench.point(3)
    bench.work(0.02)
    assert bench.sink.blocks == [[1], [2, 3]]
    for seq_num in range(4, 14):
        bench.point(seq_num)
    bench.work()
    assert bench.sink.blocks[2] == list(range(4, 14))


@pytest.mark.parametrize(("took", "pause"), [(0.01, 0.1), (0.1, 0.4), (1.0, 1.0), (60.0, 1.0)])
def test_busy_catalog_is_asked_less_often(took: float, pause: float) -> None:
    bench = Bench(RunMaker(), pace=Timing(flush_s=0.1, mosaic_s=1e9, share=0.2))
    write = bench.sink.write_block

    def slow(block: Any) -> None:
        bench.clock.now += took
        bench.sink.asked_s += took
        write(block)

    bench.sink.write_block = slow  # type: ignore[method-assign]
    bench.point(1)
    bench.job.step()  # the first block, which also makes the result's nodes: no rule for the others
    bench.job.step()  # the mosaic
    bench.point(2)
    bench.clock.now = began = bench.job.due
    bench.job.step()
    bench.point(3)
    assert bench.job.due - began == pytest.approx(took + pause)


def test_mosaics_are_written_now_and_then_and_at_the_end() -> None:
    bench = Bench(RunMaker(), 100, pace=Timing(flush_s=0.1, mosaic_s=1.0))
    for seq_num in range(1, 101):
        bench.point(seq_num)
        bench.work(0.05)
    assert 4 <= len(bench.sink.mosaics) <= 6
    bench.close()
    assert bench.job.progress.state == "complete"
    assert bench.sink.mosaics[-1].coverage.sum() > bench.sink.mosaics[-2].coverage.sum()


def test_frames_that_come_late_to_the_catalog_are_waited_for() -> None:
    bench = Bench(RunMaker(), 2)
    bench.point(1, there=False)
    bench.point(2, there=False)
    bench.work(3.0)
    assert bench.sink.table == {}
    bench.feed(bench.run.close())
    bench.work(3.0)
    assert bench.job.progress.state == "live"
    assert bench.job.progress.waiting == 2
    bench.source.frames = {0: frame_of(1), 1: frame_of(2)}
    bench.work(1.0)
    assert bench.job.progress.state == "complete"


def test_frames_that_never_come_are_named_after_bounded_patience() -> None:
    bench = Bench(RunMaker(), 3, pace=Timing(patience_s=5.0))
    bench.point(1)
    bench.point(2, there=False)
    bench.point(3)
    bench.close()
    assert bench.job.progress.state == "partial"
    assert bench.job.progress.rejected == {NoFrame.NOT_THERE: 1}
    assert bench.sink.table[2]["flag"] == NoFrame.NOT_THERE
    assert not bench.sink.table[2]["valid"]
    assert sorted(bench.sink.table) == [1, 2, 3]


def test_frames_that_the_server_gives_none_of_are_no_broken_ones() -> None:
    bench = Bench(RunMaker(), 2)
    bench.source.broken, bench.source.withheld = {0, 1}, True
    bench.point(1)
    bench.point(2)
    bench.close()
    assert bench.sink.counts["rejected"] == {"catalog's server gives no frame of the run": 2}


def test_frame_that_cannot_be_decoded_is_named_and_holds_up_nobody() -> None:
    bench = Bench(RunMaker(), 3)
    bench.source.broken = {1}
    for seq_num in (1, 2, 3):
        bench.point(seq_num)
    bench.work(2.0)
    assert bench.job.progress.rejected == {NoFrame.UNREADABLE: 1}
    bench.close()
    assert bench.job.progress.state == "partial"
    assert bench.sink.table[2]["flag"] == NoFrame.UNREADABLE
    assert bench.sink.counts["rejected"] == {NoFrame.UNREADABLE: 1}


def test_missed_frames_and_bad_positions_are_named() -> None:
    bench = Bench(RunMaker(), 4)
    bench.point(1)
    bench.point(2, frame=False)
    bench.point(3, x=math.nan)
    bench.point(4)
    bench.close()
    assert bench.sink.counts["rejected"] == {NoFrame.NOT_TAKEN: 1, NoFrame.BAD_POSITION: 1}
    assert {seq_num: row["flag"] for seq_num, row in bench.sink.table.items()} == {
        1: "",
        2: NoFrame.NOT_TAKEN,
        3: NoFrame.BAD_POSITION,
        4: "",
    }
    assert bench.sink.table[4]["x_m"] == pytest.approx(4e-8)


def test_flagged_frame_is_kept_out_of_the_mosaic() -> None:
    bench = Bench(RunMaker(dtype_numpy="<f8"), 2)
    bench.point(1)
    bench.point(2, x=50.0)
    bench.source.frames[1] = np.full(GEOMETRY.frame_shape, np.nan)
    bench.close()
    assert bench.sink.table[2]["flag"] == "not finite or negative"
    assert bench.sink.counts["rejected"] == {"not finite or negative": 1}
    assert bench.sink.mosaics[-1].coverage.shape == (8, 8)


def test_blank_frame_is_looked_at_again_while_the_file_grows() -> None:
    bench = Bench(RunMaker(), 2)
    bench.point(1)
    bench.point(2)
    bench.source.frames[1] = np.zeros(GEOMETRY.frame_shape, np.uint16)
    bench.work()
    assert sorted(bench.sink.table) == [1]
    bench.source.frames[1] = frame_of(2)
    bench.work(0.5)
    assert bench.sink.table[2]["value"] == 2


def test_frame_that_stays_blank_is_taken_as_it_is() -> None:
    bench = Bench(RunMaker(), 1)
    bench.point(1)
    bench.source.frames[0] = np.zeros(GEOMETRY.frame_shape, np.uint16)
    bench.work(3.0)
    assert sorted(bench.sink.table) == [1]


def test_point_measured_again_replaces_the_first_in_table_and_mosaic() -> None:
    bench = Bench(RunMaker(), 2)
    bench.point(1)
    bench.point(2, x=50.0)
    bench.work(1.0)
    bench.point(2, x=0.0)
    bench.source.frames[2] = frame_of(9)
    bench.close()
    assert bench.job.progress.state == "complete"
    assert bench.sink.table[2]["value"] == 9
    assert bench.sink.counts["measured_again"] == 1
    assert bench.sink.counts["reconstructed"] == 2
    assert bench.sink.mosaics[-1].coverage.shape == (8, 8 + 1)  # not where the first measurement was
    assert bench.sink.mosaics[-1].coverage.max() <= 2.0


def test_aborted_run_is_partial_with_its_reason() -> None:
    bench = Bench(RunMaker(), 10)
    bench.point(1)
    bench.close("abort", "beam lost")
    assert bench.job.progress.state == "partial"
    assert bench.sink.metadata["exit_reason"] == "beam lost"
    assert bench.sink.counts["expected"] == 10


def test_run_without_a_frame_is_failed_in_the_catalog() -> None:
    run = RunMaker()
    bench = Bench(run, 10)
    bench.close("abort")
    assert bench.sink.status == "failed"
    assert bench.job.progress.state == "failed"


@pytest.mark.parametrize(
    ("md", "units", "words"),
    [
        ({"ptychography": {"frame_key": "img", "x_key": "sx", "y_key": "sy"}}, "um", "no geometry. Needed: energy_ev"),
        ({}, None, "names no unit"),
        ({}, "deg", "unit 'deg' is not a length"),
    ],
)
def test_what_is_wrong_with_a_run_stands_in_its_result(md: dict[str, Any], units: str | None, words: str) -> None:
    bench = Bench(RunMaker(md=md, units=units), 3)
    bench.point(1)
    bench.close()
    assert bench.job.progress.state == "failed"
    assert words in bench.job.progress.problem
    assert words in bench.sink.metadata["problem"]
    assert words in bench.sink.refused
    assert bench.sink.status == "failed"


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("md", [{"ptychography": {"frame_key": "img", "x_key": "sx", "y_key": "sy"}}, {}])
def test_a_refused_run_is_said_to_be_what_it_was(md: dict[str, Any], ended: bool) -> None:
    """The run succeeded, with nine frames; while it goes on nobody knows how it ends, and with how many."""
    bench = Bench(RunMaker(md=md, units="um" if md else None), 9)
    for seq_num in range(1, 10):
        bench.point(seq_num)
    if ended:
        bench.feed(bench.run.close())
    bench.work(60.0)
    assert bench.job.progress.state == "failed"
    assert bench.job.progress.seen == 9
    assert (bench.sink.exit_status, bench.sink.counts["seen"]) == (("success", 9) if ended else (None, None))
    assert bench.sink.counts["reconstructed"] == 0


def test_a_run_without_a_usable_frame_says_why_with_numbers() -> None:
    bench = Bench(RunMaker(), 3)
    for seq_num in (1, 2, 3):
        bench.point(seq_num, there=seq_num > 1)
    for row in (1, 2):
        bench.source.frames[row] = np.full(GEOMETRY.frame_shape, -1, np.int16)
    bench.close()
    assert bench.job.progress.state == "failed"
    expected = "no frame was reconstructed: 2 (not finite or negative), 1 (frame not in the catalog)"
    assert bench.job.progress.problem == expected
    assert bench.job.progress.problem_kind == ProblemKind.FAILED
    nothing = Bench(RunMaker(), 3)
    nothing.close()
    assert nothing.job.progress.problem == "the run has no frame"


def test_documents_that_cannot_be_used_are_counted_and_the_rest_is_done() -> None:
    bench = Bench(RunMaker(), 2)
    bench.point(1)
    bench.feed([("event", {"descriptor": bench.run.descriptor, "seq_num": 2, "time": 1.0}), ("datum", {})])
    bench.point(2)
    bench.close()
    assert bench.sink.counts["unusable_documents"] == {"event": 1, "datum": 1}
    assert bench.sink.counts["reconstructed"] == 2
    assert bench.job.progress.state == "partial"


def test_a_descriptor_that_cannot_be_used_is_named_as_the_cause() -> None:
    run = RunMaker()
    bench = Bench(run, 1)
    spoilt = Bench(RunMaker(), 1)
    spoilt.job = RunReconstruction(run.start(1)[1], spoilt.factory, clock=spoilt.clock)
    spoilt.feed([("descriptor", {"uid": "d", "name": "primary", "data_keys": {"img": 5, "sx": 5, "sy": 5}})])
    spoilt.feed(bench.run.close())
    spoilt.work(60.0)
    assert "before its first frame; documents that could not be used: {'descriptor': 1}" in spoilt.job.progress.problem


def test_a_stream_that_is_not_there_is_named_beside_those_that_are() -> None:
    bench = Bench(RunMaker(), 1, keys=DataKeys(stream="fly"))
    bench.point(1)
    bench.close()
    assert bench.sink.metadata["problem"] == (
        "run ended (success) before its first frame: no stream 'fly', only primary"
    )


def test_wrong_model_for_the_detector_is_said() -> None:
    other = Geometry(**{**GEOMETRY.model_dump(), "frame_shape": (32, 32)})
    bench = Bench(RunMaker(), 1, geometry=other)
    bench.point(1)
    bench.close()
    assert bench.job.progress.state == "failed"
    assert "model 'fake' takes (16, 16) px" in bench.sink.metadata["problem"]


def test_positions_in_the_wrong_unit_fail_the_run_not_the_worker() -> None:
    bench = Bench(RunMaker(), 2)
    bench.point(1)
    bench.point(2, x=1e9)
    bench.close()
    assert bench.job.progress.state == "failed"
    assert "check the unit of the positions" in bench.sink.metadata["problem"]


@pytest.mark.parametrize("md", [{"ptychography": None}, {"ptychography": "no"}])
def test_other_scans_are_passed_over(md: dict[str, Any]) -> None:
    bench = Bench(RunMaker(md=md), 3)
    bench.point(1)
    bench.close()
    assert bench.job.progress.state == "ignored"
    assert bench.sink.table == {}
    assert bench.sink.metadata == {}


def test_scan_without_metadata_is_done_where_geometry_and_keys_are_given() -> None:
    bench = Bench(RunMaker(md={"ptychography": None}), 1, geometry=GEOMETRY, keys=DataKeys("img", "sx", "sy"))
    bench.point(1)
    bench.close()
    assert bench.job.progress.state == "complete"


def test_catalog_that_is_away_loses_nothing() -> None:
    bench = Bench(RunMaker(), 3)
    bench.point(1)
    bench.source.outage = True
    bench.work(120.0)
    assert bench.job.progress.state == "live"
    assert "no answer" in bench.job.progress.problem
    bench.source.outage = False
    bench.sink.errors = iter([ConnectionError("no answer")] * 4)
    bench.point(2)
    bench.point(3)
    bench.feed(bench.run.close())
    bench.work(120.0)
    assert bench.job.progress.state == "complete"
    assert sorted(bench.sink.table) == [1, 2, 3]
    assert bench.job.progress.problem == ""


def test_catalog_that_stays_away_is_given_up_when_the_session_closes() -> None:
    bench = Bench(RunMaker(), 1, pace=Timing(outage_s=20.0))
    bench.point(1)
    bench.source.outage = True
    bench.feed(bench.run.close())
    bench.work(200.0)
    assert not bench.job.progress.finished
    bench.job.hurry()
    bench.work(60.0)
    assert bench.job.progress.state == "failed"
    assert bench.job.given_up


@pytest.mark.parametrize("kind", ["event", "datum", "stream"])
@pytest.mark.parametrize("skew_s", [-86400.0, 86400.0])
def test_clocks_that_are_a_day_off_change_nothing(kind: Any, skew_s: float) -> None:
    """Of the IOC, of the RunEngine's machine, or of this one, put right in the midst of a run."""
    bench, due = Bench(RunMaker(kind), 6), time.time() + skew_s
    for seq_num in range(1, 7):
        for name, doc in bench.run.point(seq_num, 0.0, seq_num / 100):
            if name == "event":
                at = due + seq_num
                doc = {**doc, "time": at, "timestamps": dict.fromkeys(doc["data"], at)}
            bench.job.feed(name, doc, age_s=-3600.0 if seq_num > 3 else 0.0)
        bench.source.frames[seq_num - 1] = frame_of(seq_num)
        bench.work(1.0)
        assert bench.job.progress.lag_s is not None
        assert 0 <= bench.job.progress.lag_s < 5
    bench.close()
    assert (bench.job.progress.state, sorted(bench.sink.table)) == ("complete", [1, 2, 3, 4, 5, 6])
    assert bench.sink.table[6]["time_raw"] == due + 6  # as the detector said it


def test_frames_on_disk_are_not_called_done_and_the_run_waits_for_them() -> None:
    bench = Bench(RunMaker(), 3)
    bench.point(1)
    bench.work(1.0)
    bench.sink.spooled, bench.sink.spool_bytes, bench.sink.problem = {2, 3}, 2**21, "catalog c does not answer"
    bench.sink.waits_since = 0.0
    bench.point(2)
    bench.point(3)
    bench.feed(bench.run.close())
    bench.work(60.0)
    progress = bench.job.progress
    assert (progress.state, progress.seen, progress.done, progress.spooled, progress.waiting) == ("live", 3, 1, 2, 0)
    assert progress.problem == "catalog c does not answer"
    assert progress.lag_s is not None
    assert progress.lag_s > 1e9
    assert "1/3 frames reconstructed, 2 on disk until the catalog takes them (2.0 MiB)" in str(progress)
    bench.sink.spooled, bench.sink.spool_bytes, bench.sink.problem, bench.sink.waits_since = set(), 0, "", None
    bench.work(10.0)
    assert (progress.state, progress.done, progress.spooled, progress.problem) == ("complete", 3, 0, "")
    told = bench.sink.metadata["progress"]
    assert (told["seen"], told["done"], told["waiting"], told["spooled"], told["rejected"]) == (3, 3, 0, 0, {})


def test_results_on_disk_are_left_to_the_next_session_when_this_one_closes() -> None:
    bench = Bench(RunMaker(), 1, pace=Timing(outage_s=20.0))
    bench.sink.spooled, bench.sink.problem = {1}, "catalog c does not answer"
    bench.point(1)
    bench.feed(bench.run.close())
    bench.job.hurry()
    bench.work(10.0)
    assert not bench.job.progress.finished
    bench.work(30.0)
    assert bench.job.given_up


def test_a_full_spool_stops_reading_not_the_run() -> None:
    bench = Bench(RunMaker(), 2)
    bench.sink.full = ConnectionError("the spool is full")
    bench.point(1)
    bench.point(2)
    bench.work(30.0)
    assert bench.source.reads == []
    assert bench.job.progress.problem == "the spool is full"
    bench.sink.full = None
    bench.close()
    assert bench.job.progress.state == "complete"


def test_frames_are_not_missing_while_the_raw_run_is_not_whole_in_the_catalog() -> None:
    bench = Bench(RunMaker(), 2, pace=Timing(patience_s=5.0))
    bench.factory.behind.add(bench.run.uid)
    bench.point(1)
    bench.point(2, there=False)
    bench.close()
    bench.work(600.0)
    assert (bench.job.progress.state, bench.job.progress.waiting) == ("live", 1)
    assert bench.job.progress.problem == RAW_BEHIND
    bench.factory.behind.clear()
    bench.work(4.0)
    assert bench.job.progress.state == "live"
    bench.source.frames[1] = frame_of(2)
    bench.work(2.0)
    assert bench.job.progress.state == "complete"


@pytest.mark.parametrize("age_s", [0.0, 400.0])
def test_a_raw_run_that_never_comes_is_waited_for_so_long_and_no_longer(age_s: float) -> None:
    bench = Bench(RunMaker(), 2, pace=Timing(patience_s=5.0, raw_s=600.0))
    bench.factory.behind.add(bench.run.uid)
    bench.point(1)
    bench.point(2, there=False)
    for name, doc in bench.run.close():
        bench.job.feed(name, doc, age_s)
    bench.work(590.0 - age_s)
    assert bench.job.progress.state == "live"
    bench.work(20.0)
    assert bench.job.progress.state == "partial"
    assert bench.sink.table[2]["flag"] == NoFrame.NOT_THERE


def test_a_session_that_closes_leaves_a_late_raw_run_to_the_next() -> None:
    bench = Bench(RunMaker(), 1, pace=Timing(patience_s=5.0, outage_s=20.0))
    bench.factory.behind.add(bench.run.uid)
    bench.point(1, there=False)
    bench.feed(bench.run.close())
    bench.work(100.0)
    bench.job.hurry()
    bench.work(15.0)
    assert not bench.job.progress.finished
    bench.work(10.0)
    assert bench.job.given_up
    assert bench.sink.status == "live"  # not partial: nobody knows yet


def test_a_second_workers_mosaic_does_not_shrink() -> None:
    bench = Bench(RunMaker(), 30, pace=Timing(flush_s=0.1, mosaic_s=0.1))
    bench.sink.written = frozenset(range(1, 21))
    for seq_num in range(1, 31):
        bench.point(seq_num)
        bench.work(0.2)
    assert bench.sink.mosaics[0].coverage.sum() >= 20 * 64 - 1
    bench.close()
    assert bench.job.progress.state == "complete"


def test_mistake_of_ours_is_tried_three_times_and_shown() -> None:
    bench = Bench(RunMaker(), 1)
    bench.point(1)
    bench.sink.errors = iter([TypeError("a mistake")] * 9)
    bench.close()
    assert bench.job.progress.state == "failed"
    assert bench.job.progress.problem == "TypeError: a mistake"
    assert not bench.job.given_up  # a new worker would only make it again
    assert (bench.sink.status, bench.sink.metadata["problem"]) == ("failed", "TypeError: a mistake")


@settings(max_examples=60)
@given(st.data())
def test_each_frame_is_in_the_table_exactly_once(data: st.DataObject) -> None:
    """Missed, broken, late, blank, rewound, bad positions, a catalog away: all add up, and no row is another's."""
    bench = Bench(RunMaker("stream"), pace=Timing(block=data.draw(st.integers(1, 6)), patience_s=3.0))
    late: dict[int, int] = {}
    last: dict[int, str] = {}
    seq_num = 1
    for _ in range(data.draw(st.integers(0, 20), label="points")):
        if seq_num > 1 and data.draw(st.integers(0, 6)) == 0:
            seq_num -= data.draw(st.integers(1, min(2, seq_num - 1)), label="back")
        fate = data.draw(st.sampled_from(["good", "good", "missed", "broken", "late", "never", "nan"]), label="fate")
        row = bench.rows
        if fate == "broken":
            bench.source.broken.add(row)
        if fate == "late":
            late[row] = seq_num
        x = math.nan if fate == "nan" else None
        bench.point(seq_num, frame=fate != "missed", there=fate not in ("late", "never"), x=x)
        last[seq_num] = fate
        seq_num += 1
        bench.source.outage = data.draw(st.integers(0, 8)) == 0
        bench.work(data.draw(st.sampled_from([0.0, 0.1, 1.0])))
    bench.source.outage = False
    bench.source.frames.update({row: frame_of(number) for row, number in late.items()})
    bench.close()

    reasons = {"missed": NoFrame.NOT_TAKEN, "broken": NoFrame.UNREADABLE}
    reasons |= {"never": NoFrame.NOT_THERE, "nan": NoFrame.BAD_POSITION}
    assert {number: row["flag"] for number, row in bench.sink.table.items()} == {
        number: reasons.get(fate, "") for number, fate in last.items()
    }
    good = [number for number, fate in last.items() if fate not in reasons]
    assert all(bench.sink.table[number]["value"] == number for number in good)
    if last:
        counts = bench.sink.counts
        assert counts["seen"] == len(last) == counts["reconstructed"] + sum(counts["rejected"].values())
        assert counts["reconstructed"] == len(good)
    if good:
        assert bench.sink.mosaics[-1].coverage.max() <= len(good) + 1e-3


def test_long_run_is_worked_off_in_blocks() -> None:
    points, block = 5_000, 256

    class Rows(dict[int, Any]):
        def __contains__(self, row: object) -> bool:
            return True

        def __missing__(self, row: int) -> Any:
            return frame_of(row % 60_000)

    run = RunMaker("stream")
    bench = Bench(run, points, pace=Timing(block=block, mosaic_s=1e9))
    bench.source.frames = Rows()
    for seq_num in range(1, points + 1):
        bench.feed(run.point(seq_num, 0.0, 0.0))
    bench.close()
    assert bench.job.progress.state == "complete"
    assert bench.job.progress.done == points
    assert max(map(len, bench.source.reads)) == block
    assert len(bench.source.reads) <= points / block + 2


def test_picture_has_the_announced_size_from_the_first_frame_on() -> None:
    run = RunMaker()
    extent = {"y": [0.0, 0.0], "x": [0.0, 5e-7]}
    run.md["ptychography"] = {**run.start()[1]["ptychography"], "extent_m": extent, "step_m": 1e-7}
    bench = Bench(run, 51, pace=Timing(flush_s=0.05, mosaic_s=0.1))
    for seq_num in range(1, 52):
        bench.point(seq_num, x=(seq_num - 1) / 100)
        bench.work(0.1)
    bench.close()
    pictures = bench.sink.mosaics
    assert len(pictures) > 5
    assert {picture.phase.shape for picture in pictures} == {pictures[0].phase.shape}
    assert len({picture.origin_m for picture in pictures}) == 1
    covered = np.isfinite(pictures[-1].phase)
    assert covered.any(axis=0).sum() == 58
    assert (pictures[-1].coverage[~covered] == 0).all()
    assert pictures[0].coverage.sum() < pictures[-1].coverage.sum()


@pytest.mark.parametrize(
    "said", [None, {}, {"extent_m": None}, {"extent_m": {"x": [0, 1]}}, {"extent_m": {"x": "ab", "y": [1, None]}}]
)
def test_field_that_was_not_announced(said: Any) -> None:
    assert FieldOfView.announced({"ptychography": said}, (1e-7, 1e-7)) is None


def test_field_beyond_reason_is_left_alone() -> None:
    field = FieldOfView.announced({"ptychography": {"extent_m": {"y": [0, 1.0], "x": [0, 1.0]}}}, (1e-7, 1e-7))
    assert field is not None
    mosaic = Mosaic(1e-8, np.ones((8, 8), np.float32))
    mosaic.add(np.ones((1, 8, 8), np.complex64), np.zeros(1), np.zeros(1), np.ones(1))
    assert field.fill(mosaic.snapshot()).phase.shape == (8, 8)


def test_the_last_mosaic_is_synchronised() -> None:
    """A ramp of phase of which the ends come first: what lies between them agrees with both only afterwards."""
    places = [0, 16, 4, 12, 8]  # px

    class Ramp(FakeReconstructor):
        def reconstruct(self, frames: NDArray[Any]) -> PatchBatch:
            made = super().reconstruct(frames)
            at = np.array([places[int(frame[0, 0]) - 1] for frame in frames])
            return replace(
                made, patches=np.exp(0.3j * (at[:, None, None] + np.arange(8) + np.zeros((8, 1)))).astype("c8")
            )

    bench = Bench(RunMaker(), 5, pace=Timing(flush_s=0.1, mosaic_s=0.1))
    bench.factory.fake.__class__, bench.factory.fake.anchor = Ramp, 0.0
    for seq_num, place in enumerate(places, 1):
        bench.point(seq_num, x=place / 100)
        bench.work(1.0)
    bench.close()
    apart = [np.ptp(np.diff(np.unwrap(image.phase[4]))) for image in bench.sink.mosaics]
    assert apart[-2] > 0.1
    assert apart[-1] < 0.005


def test_the_last_mosaic_is_the_same_to_the_bit_when_frames_come_late() -> None:
    class Turned(FakeReconstructor):
        def reconstruct(self, frames: NDArray[Any]) -> PatchBatch:
            made = super().reconstruct(frames)
            turns = [np.random.default_rng(int(frame[0, 0])).normal(0, 1, (8, 8)) for frame in frames]
            return replace(made, patches=np.exp(1j * np.array(turns)).astype("c8"))

    images = []
    for late in (set[int](), {1, 2, 5}):
        bench = Bench(RunMaker(), 7)
        bench.factory.fake.__class__ = Turned
        for seq_num in range(1, 8):
            bench.point(seq_num, there=seq_num not in late, x=seq_num / 40)
        bench.work(0.5)
        for seq_num in late:
            bench.source.frames[seq_num - 1] = frame_of(seq_num)
        bench.close()
        assert bench.sink.blocks[0] == [seq_num for seq_num in range(1, 8) if seq_num not in late]
        images.append(bench.sink.mosaics[-1])
    for name in ("amplitude", "phase", "coverage", "trust"):
        np.testing.assert_array_equal(*(getattr(image, name) for image in images))


@pytest.mark.parametrize("blocks", [[9], [1, 2, 6], [1] * 9])
def test_what_was_made_before_the_flux_was_known_is_made_again(blocks: list[int]) -> None:
    """The fake's factor is that of the brightest frame so far, and its patches have it."""

    class Following(FakeReconstructor):
        def reconstruct(self, frames: NDArray[Any]) -> PatchBatch:
            if -1 not in self.calls:
                self.probe_factor = max(self.probe_factor, float(frames.max()))
            made = super().reconstruct(frames)
            return replace(made, patches=made.patches / np.float32(self.probe_factor))

    bench = Bench(RunMaker(), 9)
    fake = bench.factory.fake
    fake.__class__ = Following
    numbers = iter(range(1, 10))
    for block in blocks:
        for seq_num in itertools.islice(numbers, block):
            bench.point(seq_num)
        bench.work(1.0)
    bench.close()
    assert (bench.job.progress.state, bench.job.progress.done) == ("complete", 9)
    assert {number: row["value"] for number, row in bench.sink.table.items()} == {
        number: pytest.approx(number / 9) for number in range(1, 10)
    }
    assert np.nanmax(bench.sink.mosaics[-1].amplitude) == pytest.approx(1)
    assert sum(map(len, bench.sink.blocks)) == 18 - blocks[-1]  # those that had the right one are left


@pytest.mark.parametrize("blocks", [[9], [2, 3, 4], [1] * 9])
def test_a_beam_that_was_lost_at_first_is_found_to_be_however_frames_came(blocks: list[int]) -> None:
    """The first two frames are dim, which only those that follow tell from a dim run."""

    class Judging(FakeReconstructor):
        seen = 0.0

        def reconstruct(self, frames: NDArray[Any]) -> PatchBatch:
            self.seen = max(self.seen, float(frames.max()))
            made = super().reconstruct(frames)
            for i, value in enumerate(frames[:, 0, 0]):
                if value < 3:
                    made.valid[i] = self.seen < 3
                    made.flag[i] = OUT_OF_RANGE if made.valid[i] else BEAM_LOST
                    made.patches[i] = made.patches[i] if made.valid[i] else np.nan
            return made

    bench = Bench(RunMaker(), 9)
    bench.factory.fake.__class__ = Judging
    numbers = iter(range(1, 10))
    for block in blocks:
        for seq_num in itertools.islice(numbers, block):
            bench.point(seq_num, x=seq_num / 50)
        bench.work(1.0)
    bench.close()
    assert (bench.job.progress.done, bench.job.progress.rejected) == (7, {BEAM_LOST: 2})
    assert [bool(bench.sink.table[number]["valid"]) for number in range(1, 10)] == [False] * 2 + [True] * 7
    covered = np.isfinite(bench.sink.mosaics[-1].phase).any(axis=0)
    assert covered.sum() == 8 + 6 * 2


def refining(points: int, **pace: Any) -> Bench:
    bench = Bench(RunMaker(), points, pace=Timing(flush_s=0.1, mosaic_s=0.1, **pace))
    bench.factory.fake.refinement = Refinement()
    return bench


def test_refined_mosaics_are_marked_and_the_last_is_refined_whole() -> None:
    bench = refining(6)
    for seq_num in range(1, 7):
        bench.point(seq_num)
        bench.work(0.5)
    assert np.nanmax(bench.sink.mosaics[0].amplitude) == pytest.approx(2.0)  # the fake doubles what it refines
    assert "refinement" not in bench.sink.metadata
    bench.close()
    assert bench.job.progress.state == "complete"
    assert bench.sink.metadata["refinement"]["frames"] == 6


def test_unasked_nothing_is_refined() -> None:
    bench = Bench(RunMaker(), 2)
    bench.point(1)
    bench.point(2)
    bench.close()
    assert "refinement" not in bench.sink.metadata


def test_what_cannot_be_refined_is_said_and_the_run_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = refining(2)

    def refuse(*arguments: Any) -> Any:
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(bench.factory.fake, "refine", refuse, raising=False)
    bench.point(1)
    bench.point(2)
    bench.close()
    assert bench.job.progress.state == "complete"
    assert bench.sink.metadata["refinement"] == {"skipped": "not enough memory"}


@pytest.mark.parametrize("limit_bytes", [2**20, 3 * 64 * 4, 0])
def test_a_run_is_refined_with_the_last_frame_of_each_point_in_their_order_however_large(limit_bytes: int) -> None:
    seen: list[tuple[Any, Any]] = []

    class Noting(FakeReconstructor):
        def refine(self, image: MosaicImage, frames: NDArray[Any], *at: Any) -> tuple[MosaicImage, dict[str, Any]]:
            seen.append((frames[:, 0, 0].tolist(), at[1].tolist()))
            return super().refine(image, frames)

    kept, valid = MosaicRefiner(Noting(refinement=Refinement()), limit_bytes), np.ones(1, bool)
    image = Mosaic(1e-8, np.ones((8, 8), np.float32)).snapshot()
    for value, seq_num in enumerate((2, 1, 4, 2, 3)):
        kept.keep([FrameRef(seq_num, 0, 0.0, float(value), 0.0)], np.full((1, 8, 8), value, np.float32), valid)
    assert kept.refine_final(image)[1] == {"frames": 4, "seconds": 0.0}
    kept.keep([FrameRef(0, 0, 0.0, 5.0, 0.0)], np.full((1, 8, 8), 5, np.float32), valid)
    kept.refine_final(image)
    assert seen == [([1, 3, 4, 2], [1, 3, 4, 2]), ([5, 1, 3, 4, 2], [5, 1, 3, 4, 2])]


def test_frames_that_no_disk_takes_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    kept = MosaicRefiner(FakeReconstructor(refinement=Refinement()), limit_bytes=0)
    kept.keep([FrameRef(1, 0, 0.0, 0.0, 0.0)], np.ones((1, 8, 8), np.float32), np.ones(1, bool))
    problem = "the run's frames cannot be kept: [Errno 28] No space left on device"
    assert kept.refine_final(Mosaic(1e-8, np.ones((8, 8), np.float32)).snapshot())[1] == {"skipped": problem}
