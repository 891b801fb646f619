"""Any sequence of documents: each frame is in the result exactly once, with its own values, or named with a reason."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from bluesky_ptychonn.catalog.runs.pairing import NoFrame
from bluesky_ptychonn.live.pipeline.progress import Timing
from bluesky_ptychonn.live.pipeline.testing import Document, RunMaker, frame_of
from tests.live.pipeline.test_run import Bench

SPOILT: list[Document] = [
    ("event", {}),
    ("event", {"descriptor": "x", "data": None}),
    ("event_page", {"descriptor": "x", "seq_num": 3}),
    ("datum", {"resource": []}),
    ("stream_datum", {"stream_resource": []}),
    ("stream_resource", {}),
]


class Told:
    """A run as it was told, and what must come of it."""

    def __init__(self, kind: Any, block: int) -> None:
        self.bench = Bench(RunMaker(kind), pace=Timing(block=block, patience_s=1.0))
        self.kind = kind
        self.seq_num = 0
        self.said: dict[int, list[Document]] = {}  # documents of each point's last measurement
        self.held: list[tuple[int, Document]] = []  # not delivered yet: the detector's file came late
        self.due: dict[int, tuple[int, float] | str] = {}  # (frame, x) or the reason there is none
        self.spoilt = 0
        self.stopped = ""

    def point(self, number: int, fate: str) -> None:
        bench, self.seq_num = self.bench, self.seq_num + 1
        x = math.nan if fate == "lost position" else number / 1000
        row = bench.rows
        frame = fate != "no frame"
        documents = [*bench.run.point(self.seq_num, 0.0, x, frame=frame, image=frame_of(number))]
        if frame:
            bench.source.frames[row] = frame_of(number)
        self.said[self.seq_num] = documents
        late = [document for document in documents if document[0] in ("datum", "stream_datum") and fate == "late frame"]
        self.held += [(self.seq_num, document) for document in late]
        bench.feed(document for document in documents if document not in late)
        paired = (number, x) if frame else NoFrame.NOT_TAKEN
        self.due[self.seq_num] = NoFrame.BAD_POSITION if fate == "lost position" else paired

    def release(self) -> None:
        self.bench.feed(document for _, document in reversed(self.held))
        self.held.clear()

    def repeat(self, document: Document) -> None:
        if self.kind == "event" and document[0] == "event":  # Tiled appends the frame in it once more too
            self.bench.source.frames[self.bench.rows] = document[1]["data"]["img"]
            next(self.bench.run.rows)
        self.bench.feed([document])

    def finish(self, how: str) -> None:
        self.stopped = how
        for seq_num, _ in self.held:
            if self.due[seq_num] != NoFrame.BAD_POSITION:
                self.due[seq_num] = NoFrame.NOT_TAKEN
        if how == "no stop":
            self.bench.job.end("unknown", "no stop document")
            self.bench.work(30.0)
        else:
            self.bench.close(how)

    def check(self) -> None:
        table, counts = self.bench.sink.table, self.bench.sink.counts
        assert self.bench.job.progress.finished
        good = {seq_num: due for seq_num, due in self.due.items() if not isinstance(due, str)}
        if not self.due:
            assert table == {}
            return
        assert sorted(table) == sorted(self.due)
        for seq_num, due in self.due.items():
            if isinstance(due, str):
                assert (table[seq_num]["flag"], bool(table[seq_num]["valid"])) == (due, False)
            else:
                assert (table[seq_num]["flag"], table[seq_num]["value"]) == ("", due[0])
                assert table[seq_num]["x_m"] == pytest.approx(due[1] * 1e-6)
        assert counts["seen"] == len(self.due) == counts["reconstructed"] + sum(counts["rejected"].values())
        assert counts["reconstructed"] == len(good)
        assert sum(counts.get("unusable_documents", {}).values()) == self.spoilt
        whole = self.stopped == "success" and len(good) == len(self.due) and not self.spoilt
        assert (self.bench.job.progress.state == "complete") == whole


class DocumentSequences(RuleBasedStateMachine):
    """Up to three runs at once, paused, rewound, doubled, late, spoilt and cut short."""

    @initialize(kind=st.sampled_from(["event", "datum", "stream"]), block=st.integers(1, 5))
    def first(self, kind: str, block: int) -> None:
        self.number = 0
        self.runs = [Told(kind, block)]

    def some(self, data: st.DataObject) -> Told:
        return data.draw(st.sampled_from([run for run in self.runs if not run.stopped]), label="run")

    def going(self) -> bool:
        return any(not run.stopped for run in getattr(self, "runs", ()))

    @precondition(lambda self: sum(not run.stopped for run in getattr(self, "runs", ())) < 3)
    @rule(kind=st.sampled_from(["event", "datum", "stream"]), block=st.integers(1, 5))
    def begin(self, kind: str, block: int) -> None:
        self.runs.append(Told(kind, block))

    @precondition(going)
    @rule(data=st.data(), fate=st.sampled_from(["good", "good", "good", "no frame", "lost position", "late frame"]))
    def point(self, data: st.DataObject, fate: str) -> None:
        run, self.number = self.some(data), self.number + 1
        run.point(self.number, "good" if run.kind == "event" and fate == "no frame" else fate)

    @precondition(going)
    @rule(data=st.data())
    def late_frames_arrive(self, data: st.DataObject) -> None:
        self.some(data).release()

    @precondition(going)
    @rule(data=st.data(), back=st.integers(1, 3))
    def pause_and_rewind(self, data: st.DataObject, back: int) -> None:
        run = self.some(data)
        run.release()  # a detector is done before a plan is rewound
        run.seq_num = max(0, run.seq_num - back)

    @precondition(going)
    @rule(data=st.data())
    def document_comes_twice(self, data: st.DataObject) -> None:
        run = self.some(data)
        held = [id(document) for _, document in run.held]
        said = [document for documents in run.said.values() for document in documents if id(document) not in held]
        if said:
            run.repeat(data.draw(st.sampled_from(said), label="document"))

    @precondition(going)
    @rule(data=st.data(), document=st.sampled_from(SPOILT))
    def document_is_spoilt(self, data: st.DataObject, document: Document) -> None:
        run = self.some(data)
        ours = {"descriptor": run.bench.run.descriptor, "stream_resource": run.bench.run.file}
        run.bench.feed([(document[0], {**ours, **document[1]})])
        run.spoilt += 1

    @precondition(going)
    @rule(data=st.data(), seconds=st.sampled_from([0.0, 0.2, 2.0]))
    def work(self, data: st.DataObject, seconds: float) -> None:
        self.some(data).bench.work(seconds)

    @precondition(going)
    @rule(data=st.data(), how=st.sampled_from(["success", "abort", "no stop"]))
    def finish(self, data: st.DataObject, how: str) -> None:
        self.some(data).finish(how)

    def teardown(self) -> None:
        for run in getattr(self, "runs", ()):
            if not run.stopped:
                run.finish("success")
            run.check()


TestDocumentSequences = DocumentSequences.TestCase
TestDocumentSequences.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
