"""Whatever a run looks like, an attempt to reconstruct it leaves a result that says how it ended: no second is due."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bluesky_ptychonn.catalog.results.verification import ReadBack, decide_status
from bluesky_ptychonn.live.batch.backfill import why_unfinished
from bluesky_ptychonn.live.pipeline.testing import RunMaker
from tests.live.pipeline.test_document_machine import SPOILT
from tests.live.pipeline.test_run import Bench

METADATA: list[dict[str, Any]] = [
    {},
    {"ptychography": {}},
    {"ptychography": {"geometry": 5}},
    {"ptychography": {"frame_key": "camera"}},
    {"ptychography": {"x_sign": 3}},
    {"num_points": "many"},
    {"num_points": -1},
]
FATES = ["good", "good", "good", "no frame", "not in the catalog", "lost position", "spoilt"]


def attempt(data: st.DataObject) -> tuple[Bench, str]:
    run = RunMaker(
        data.draw(st.sampled_from(["event", "datum", "stream"])),
        md=data.draw(st.sampled_from(METADATA)),
        units=data.draw(st.sampled_from(["um", "um", "deg", None])),
    )
    bench = Bench(run, data.draw(st.none() | st.integers(1, 12)))
    seq_num = 0
    for fate in data.draw(st.lists(st.sampled_from(FATES), max_size=10)):
        seq_num = max(1, seq_num + data.draw(st.sampled_from([1, 1, 1, 0, -1])))
        if fate == "spoilt":
            name, doc = data.draw(st.sampled_from(SPOILT))
            bench.feed([(name, {"descriptor": run.descriptor, "stream_resource": run.file, **doc})])
            continue
        frame = run.kind == "event" or fate != "no frame"
        there = fate != "not in the catalog"
        bench.point(seq_num, frame=frame, there=there, x=math.nan if fate == "lost position" else None)
    exit_status = data.draw(st.sampled_from(["success", "abort", "fail"]))
    bench.close(exit_status)
    return bench, exit_status


@given(st.data())
def test_after_one_attempt_none_is_due(data: st.DataObject) -> None:
    bench, exit_status = attempt(data)
    assert bench.job.progress.finished
    ours = {**bench.sink.metadata, "status": bench.sink.status, "attempt": "this"}
    live = {"status": "partial"}
    assert why_unfinished([], exit_status, "this") == "has no reconstruction"
    assert why_unfinished([ours], exit_status, "this") == why_unfinished([live, ours], exit_status, "this") == ""


@pytest.mark.parametrize(
    ("results", "exit_status", "reason"),
    [
        ([], "abort", "has no reconstruction"),
        ([("live", "this")], "abort", "its reconstruction was interrupted"),
        ([("live", ""), ("partial", "this")], "success", ""),
        ([("partial", "")], "abort", ""),
        ([("partial", "")], "success", "its reconstruction is partial"),
        ([("failed", "another")], "success", "its reconstruction is failed"),
        ([("failed", "another"), ("complete", "")], "success", ""),
    ],
)
def test_what_is_due(results: list[tuple[str, str]], exit_status: str, reason: str) -> None:
    metadata = [{"status": status, **({"attempt": attempt} if attempt else {})} for status, attempt in results]
    assert why_unfinished(metadata, exit_status, "this") == reason


def test_more_frames_than_the_plan_announced_are_no_hole() -> None:
    counts = {"expected": 16, "seen": 32, "reconstructed": 32, "rejected": {}}
    assert decide_status("success", counts, ReadBack(32, 0, ())) == ("complete", [])
    assert decide_status("success", {**counts, "expected": 33}, ReadBack(32, 0, ())) == (
        "partial",
        ["the plan announced 33 frames, 32 were seen"],
    )
