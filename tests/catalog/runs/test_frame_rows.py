"""A run that lies in the catalog is paired as it was while it went on, or it is said that nothing tells how."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bluesky_ptychonn.catalog.runs import stored_documents
from bluesky_ptychonn.catalog.runs.data_keys import DataKeys, RunError
from bluesky_ptychonn.catalog.runs.frame_rows import find_rows
from bluesky_ptychonn.catalog.runs.pairing import RunPairing
from bluesky_ptychonn.live.pipeline.testing import Document, RunMaker

COUNTER = "img_hdf1_num_captured"


class LaidOut:
    """A stream as TiledWriter lays it out: a table of events in the order they came, and so many frames."""

    def __init__(self, documents: list[Document]) -> None:
        self.metadata = next(doc for name, doc in documents if name == "descriptor")
        events = [doc for name, doc in documents if name == "event"]
        known = {doc["datum_id"] for name, doc in documents if name == "datum"}
        self.frames = sum(name == "stream_datum" for name, _ in documents)
        self.frames += sum(doc["data"].get("img") in known for doc in events)
        rows = [{"seq_num": doc["seq_num"], "time": doc["time"], **doc["data"]} for doc in events]
        self.table = pd.DataFrame(rows).drop(columns="img", errors="ignore")

    def __iter__(self) -> Iterator[str]:
        return iter(["img", *(["internal"] if len(self.table) else [])])

    def __getitem__(self, part: str) -> Any:
        return SimpleNamespace(columns=list(self.table), read=lambda columns: self.table[columns])


def feed(documents: Any) -> RunPairing:
    documents = iter(documents)
    pairing = RunPairing(next(documents)[1], DataKeys())
    for document in documents:
        pairing.feed(*document)
    return pairing


def stored(documents: list[Document], repeat: int = 0) -> RunPairing:
    stream = LaidOut(documents)
    again = stream.table.tail(repeat)  # TiledWriter had no answer, and sent them once more
    stream.table = pd.concat([stream.table, again])
    metadata = {name: doc for name, doc in documents if name in ("start", "stop")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_documents, "_length", lambda stream, key: stream.frames)
        patch.setattr(stored_documents, "_samples", lambda stream, key: None)
        run = SimpleNamespace(metadata=metadata, base={"primary": stream})
        return feed(list(stored_documents.documents_of(run, DataKeys())))


def outcome(pairing: RunPairing) -> dict[int, Any]:
    current = [ref for ref in pairing.take() if pairing.is_current(ref)]
    return {ref.seq_num: (ref.row, ref.y_m, ref.x_m) for ref in current} | pairing.unpaired()


class Detector:
    """A scan with a detector that drops frames, is paused while it exposes, and whose counter may be late."""

    def __init__(self, kind: Any, counter: str) -> None:
        self.run, self.counter, self.captured, self.number = RunMaker(kind), counter, 0, 0
        self.documents = list(self.run.open())
        if counter != "none":
            self.documents[1][1]["data_keys"][COUNTER] = {"dtype": "integer", "shape": [], "source": "hdf"}

    def expose(self, seq_num: int, fate: str, late: bool) -> None:
        self.number += 1
        if fate == "paused":  # a frame without an event
            next(self.run.rows)
            self.captured += 1
        before = self.captured
        self.captured += fate != "dropped"
        for name, doc in self.run.point(seq_num, 0.0, float(self.number), frame=fate != "dropped"):
            if name == "event":
                doc["time"] = float(self.number)
                if self.counter != "none":
                    doc["data"][COUNTER] = before if self.counter == "late" or late else self.captured
                    doc["timestamps"][COUNTER] = float(self.number)
            self.documents.append((name, doc))

    def end(self, how: str) -> None:
        if how == "stopped":
            self.documents += self.run.close()
        else:  # the last event or the last frame was never written
            last = max(i for i, (name, _) in enumerate(self.documents) if name == how)
            del self.documents[last]


@st.composite
def scans(draw: st.DrawFn) -> tuple[Detector, set[str]]:
    counter = draw(st.sampled_from(["none", "true", "late", "now and then late"]))
    kind = draw(st.sampled_from(["stream", "datum"]))
    fates = {"good", *(["paused"] if counter == "true" else [])}
    fates |= {"dropped"} if kind == "stream" and counter != "now and then late" else set()
    detector, seq_num, seen = Detector(kind, counter), 1, set()
    for _ in range(draw(st.integers(1, 12))):
        if seq_num > 1 and draw(st.integers(0, 5)) == 0:
            seq_num = draw(st.integers(max(1, seq_num - 3), seq_num - 1))
            seen.add("rewound")
        fate = draw(st.sampled_from(sorted(fates))) if draw(st.integers(0, 3)) == 0 else "good"
        seen.add(fate)
        detector.expose(seq_num, fate, late=counter == "now and then late" and draw(st.booleans()))
        seq_num += 1
    if counter == "late":  # else it has caught up with the last event, as if the first frame had been dropped
        detector.expose(seq_num, "good", late=True)
    cut = kind == "stream" and counter in ("none", "true")  # a late one and a frame that is not there: see below
    if seen <= {"good", "rewound"}:
        ways = ["stopped", *(["event"] if "rewound" not in seen else []), *(["stream_datum"] * cut)]
        detector.end(draw(st.sampled_from(ways)))
    else:
        detector.end("stopped")
    return detector, seen


@settings(max_examples=300)
@given(scans(), st.integers(0, 3))
def test_live_and_stored_agree_or_it_is_said_that_nothing_tells(scan: tuple[Detector, set[str]], repeat: int) -> None:
    """A counter that is always late while frames are dropped is known by its end: such a run is refused.

    One that is late by chance while frames are dropped, or without a counter a pause during an exposure, cannot be told
    from what Tiled keeps, and is left out here.
    """
    detector, seen = scan
    live = outcome(feed(detector.documents))
    try:
        found = outcome(stored(detector.documents, repeat))
    except RunError as error:
        refused = str(error)
    else:
        assert found == live
        return
    assert "nothing tells which belong together" in refused
    assert "dropped" in seen
    assert detector.counter != "true" or "paused" in seen


@pytest.mark.parametrize(
    ("captured", "frames", "rows"),
    [
        ([0, 1, 2, 3], 4, [0, 1, 2, 3]),  # always late
        ([1, 1, 3, 3], 4, [0, 1, 2, 3]),  # now and then
        ([0, 0, 0, 0], 4, [0, 1, 2, 3]),
        ([101, 102, 103, 104], 4, [100, 101, 102, 103]),  # of a file that other runs are in as well
        ([9, 1, 2, 3], 4, [0, 1, 2, 3]),  # it was not set back
        ([1, 1, 2, 3], 3, [0, -1, 1, 2]),
        ([1, 2, 4, 5], 4, [0, 1, 3, 4]),  # paused during an exposure
        ([1, 2, 4, 5], 5, [0, 1, 3, 4]),  # and the array made from the file
        (None, 4, [0, 1, 2, 3]),
    ],
)
def test_rows_by_counter_and_number_of_frames(captured: list[int] | None, frames: int, rows: list[int]) -> None:
    given = None if captured is None else np.array(captured)
    assert find_rows(np.arange(1, 5), given, frames, ended=True).tolist() == rows


@pytest.mark.parametrize("captured", [None, [0, 1, 1, 2], [1, 1, 3, 3]])
def test_frames_that_nobody_can_tell_apart_are_not_given_out(captured: list[int] | None) -> None:
    given = None if captured is None else np.array(captured)
    with pytest.raises(RunError, match="has 4 events and 3 frames, and nothing tells which belong together: "):
        find_rows(np.arange(1, 5), given, 3, ended=True)
