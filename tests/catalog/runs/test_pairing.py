from __future__ import annotations

import itertools
import math
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bluesky_ptychonn.catalog.runs.data_keys import DataKeys, DocumentError, RunError, RunLayout, geometry_of
from bluesky_ptychonn.catalog.runs.pairing import NoFrame, RunPairing
from bluesky_ptychonn.journal.encoding import slim
from bluesky_ptychonn.live.pipeline.testing import GEOMETRY, RunMaker

Kind = Literal["event", "datum", "stream"]
KINDS: list[Kind] = ["event", "datum", "stream"]


def pair(documents: Any, keys: DataKeys | None = None) -> RunPairing:
    pairing = None
    for name, doc in documents:
        if name == "start":
            pairing = RunPairing(doc, keys or DataKeys())
        assert pairing is not None
        pairing.feed(name, doc)
    assert pairing is not None
    return pairing


@pytest.mark.parametrize("kind", KINDS)
def test_frames_come_with_their_own_position_in_metres(kind: Kind) -> None:
    run = RunMaker(kind)
    pairing = pair([*run.open(2), *run.point(1, 1.0, 2.0), *run.point(2, 3.0, -4.0), *run.close()])
    first, second = pairing.take()
    assert (first.seq_num, first.row, first.y_m, first.x_m) == (1, 0, pytest.approx(1e-6), pytest.approx(2e-6))
    assert (second.seq_num, second.row, second.y_m, second.x_m) == (2, 1, pytest.approx(3e-6), pytest.approx(-4e-6))
    assert second.time_raw == 2.0
    assert pairing.take() == []
    assert pairing.unpaired() == {}
    assert (pairing.seen, pairing.expected) == (2, 2)


def test_sign_follows_the_contract() -> None:
    run = RunMaker("event", md={"ptychography": {"frame_key": "img", "x_key": "sx", "y_key": "sy", "x_sign": -1}})
    (ref,) = pair([*run.open(), *run.point(1, 1.0, 1.0)]).take()
    assert (ref.y_m, ref.x_m) == (pytest.approx(1e-6), pytest.approx(-1e-6))
    run = RunMaker("event", md={"ptychography": {"frame_key": "img", "x_key": "sx", "y_key": "sy", "x_sign": -1}})
    (ref,) = pair([*run.open(), *run.point(1, 1.0, 1.0)], DataKeys(x_sign=1, y_sign=-1)).take()
    assert (ref.y_m, ref.x_m) == (pytest.approx(-1e-6), pytest.approx(1e-6))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_position_that_is_no_number_is_named(kind: Kind, value: float | None) -> None:
    run = RunMaker(kind)
    pairing = pair([*run.open(), *run.point(1, 0.0, value), *run.point(2, 0.0, 1.0), *run.close()])
    assert [ref.seq_num for ref in pairing.take()] == [2]
    assert pairing.unpaired() == {1: NoFrame.BAD_POSITION}


@pytest.mark.parametrize("kind", ["datum", "stream"])
def test_missed_frame_is_named_and_shifts_no_other(kind: Kind) -> None:
    run = RunMaker(kind)
    points = [*run.point(1, 0, 1.0), *run.point(2, 0, 2.0, frame=False), *run.point(3, 0, 3.0)]
    pairing = pair([*run.open(3), *points, *run.close()])
    assert [(ref.seq_num, ref.row, ref.x_m) for ref in pairing.take()] == [(1, 0, 1e-6), (3, 1, pytest.approx(3e-6))]
    assert pairing.unpaired() == {2: NoFrame.NOT_TAKEN}


@pytest.mark.parametrize("kind", KINDS)
def test_rewound_point_wins_over_its_first_measurement(kind: Kind) -> None:
    run = RunMaker(kind)
    pairing = pair([*run.open(), *run.point(1, 0, 1.0), *run.point(2, 0, 2.0)])
    early = pairing.take()
    for document in [*run.point(2, 0, 2.5), *run.point(3, 0, 3.0), *run.close()]:
        pairing.feed(*document)
    late = pairing.take()
    assert [(ref.seq_num, ref.row) for ref in early + late] == [(1, 0), (2, 1), (2, 2), (3, 3)]
    assert [pairing.is_current(ref) for ref in early + late] == [True, False, True, True]
    assert pairing.replaced == 1
    assert pairing.seen == 3


def test_datum_after_its_event() -> None:
    run = RunMaker("datum")
    documents = list(run.point(1, 0, 1.0))
    pairing = pair([*run.open(), documents[0], documents[2]])
    assert pairing.take() == []
    assert pairing.unpaired() == {1: NoFrame.NOT_TAKEN}
    pairing.feed(*documents[1])
    assert [ref.seq_num for ref in pairing.take()] == [1]


@pytest.mark.parametrize("restart", [True, False])
def test_second_file_of_a_run_lies_behind_the_first(restart: bool) -> None:
    run = RunMaker("stream")
    documents = [*run.open(), *run.point(1, 0, 1.0), *run.point(2, 0, 2.0)]
    run.file, run._announced = "another", False
    if restart:
        run.rows = itertools.count()
    documents += [*run.point(3, 0, 3.0), *run.point(4, 0, 4.0)]
    assert [ref.row for ref in pair(documents).take()] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("kwargs", "rows"),
    [
        ([{}, {}, {}], [0, 1, 2]),
        ([{"point_number": 4}, {"point_number": 5}, {"point_number": 6}], [4, 5, 6]),
        ([{"frame": 0}, {"frame": 1}, {"frame": 2}], [0, 1, 2]),
        ([{"indices": {"start": 7, "stop": 8}}, {"indices": {"start": 8, "stop": 9}}, {"point_number": 9}], [7, 8, 9]),
    ],
)
def test_rows_of_classic_datums(kwargs: list[dict[str, Any]], rows: list[int]) -> None:
    run = RunMaker("datum")
    pairing = pair(run.open())
    for seq_num, kw in enumerate(kwargs, start=1):
        for name, doc in run.point(seq_num, 0, 0):
            pairing.feed(name, {**doc, "datum_kwargs": kw} if name == "datum" else doc)
    assert [ref.row for ref in pairing.take()] == rows


def test_other_detectors_and_streams_do_not_disturb() -> None:
    run, other = RunMaker("stream"), RunMaker("stream")
    dark = RunMaker("stream", uid=run.uid)
    documents = [*run.open()]
    for name, doc in dark.open():
        if name == "descriptor":
            documents.append((name, {**doc, "name": "dark"}))
    second = [(n, {**d, "data_key": "other"} if n == "stream_resource" else d) for n, d in other.point(1, 9, 9)]
    second = [(n, {**d, "descriptor": run.descriptor} if n == "stream_datum" else d) for n, d in second[:-1]]
    documents += [*dark.point(1, 5, 5), *second, *run.point(1, 0, 1.0)]
    assert [(ref.seq_num, ref.row, ref.x_m) for ref in pair(documents).take()] == [(1, 0, 1e-6)]


def test_event_pages_count_like_events() -> None:
    run = RunMaker("event")
    page = {
        "uid": ["a", "b"],
        "descriptor": run.descriptor,
        "seq_num": [1, 2],
        "time": [1.0, 2.0],
        "data": {"sx": [1.0, 2.0], "sy": [0.0, None]},
        "timestamps": {"sx": [1.0, 2.0], "sy": [1.0, 2.0]},
        "arrays": ["img"],
    }
    pairing = pair([*run.open(), ("event_page", page)])
    assert [(ref.seq_num, ref.row) for ref in pairing.take()] == [(1, 0)]
    assert pairing.unpaired() == {2: NoFrame.BAD_POSITION}


def test_datum_pages_count_like_datums() -> None:
    run = RunMaker("datum")
    documents = [document for document in run.point(1, 0, 0) if document[0] != "datum"]
    page = {"datum_id": [f"{run.file}/0"], "resource": run.file, "datum_kwargs": {"point_number": [3]}}
    pairing = pair([*run.open(), documents[0], ("datum_page", page), documents[1]])
    assert [ref.row for ref in pairing.take()] == [3]


def test_keys_are_found_without_metadata() -> None:
    hints = {"dimensions": [[["sy"], "primary"], [["sx"], "primary"]]}
    run = RunMaker("stream", md={"ptychography": None, "hints": hints})
    (ref,) = pair([*run.open(), *run.point(1, 1.0, 2.0)]).take()
    assert (ref.y_m, ref.x_m) == (pytest.approx(1e-6), pytest.approx(2e-6))


NAMELESS = RunMaker(md={"ptychography": {}})


@pytest.mark.parametrize("in_metadata", [True, False])
@pytest.mark.parametrize(
    ("given", "hinted", "y_x"),
    [
        ({"x_key": "enc_x"}, ["sy", "sx"], ("sy", "enc_x")),
        ({"y_key": "enc_y"}, ["sy", "sx"], ("enc_y", "sx")),
        ({"x_key": "sy"}, ["sy", "sx"], ("sx", "sy")),  # the axes are crossed, and there is but one other
        ({"x_key": "sx"}, ["sx", "theta"], ("theta", "sx")),
        ({"y_key": "sy"}, ["sz", "sy", "sx"], ("sy", "sx")),
        ({"x_key": "enc_x"}, ["sx"], None),  # of a line scan: the other motor is x once more
        ({"x_key": "enc_x"}, ["s1y", "s2y", "sx"], None),
    ],
)
def test_one_key_given_joins_the_hinted_other(
    given: dict[str, str], hinted: list[str], y_x: tuple[str, str] | None, in_metadata: bool
) -> None:
    hints = {"dimensions": [[[key], "primary"] for key in hinted]}
    start = {"hints": hints, "ptychography": given if in_metadata else {}}
    keys = DataKeys() if in_metadata else DataKeys(x=given.get("x_key"), y=given.get("y_key"))
    axis, image = {"dtype": "number", "shape": [], "units": "um"}, {"dtype": "array", "shape": [8, 8]}
    data_keys = {"img": image, **dict.fromkeys([*hinted, "enc_x", "enc_y"], axis)}
    if y_x is None:
        with pytest.raises(RunError, match=r"positions: x_key='enc_x', and the hints name s.*; there are img, s"):
            RunLayout.find(start, data_keys, keys.filled_from(start))
    else:
        layout = RunLayout.find(start, data_keys, keys.filled_from(start))
        assert (layout.y.key, layout.x.key) == y_x


@pytest.mark.parametrize(
    ("run", "keys", "words"),
    [
        (
            RunMaker(units=None),
            DataKeys(),
            "sy: its data key names no unit, nor .* configuration; allowed: m, mm",
        ),
        (RunMaker(units="degrees"), DataKeys(), "sy: unit 'degrees' is not a length"),
        (RunMaker(), DataKeys(frame="camera"), "has no frame_key 'camera'; it has img, sx, sy"),
        (RunMaker(), DataKeys(frame="sx"), "'sx' of shape .* is not one image per event"),
        (RunMaker(), DataKeys(x="img"), r"position 'img' is array of shape \[16, 16\] per event; a number"),
        (RunMaker(), DataKeys(x="sz"), "stream 'primary' has no x_key 'sz'; it has img, sx, sy"),
        (NAMELESS, DataKeys(x="sz"), "stream 'primary' has no x_key 'sz'; it has img, sx, sy"),
        (NAMELESS, DataKeys(y="sy"), "y_key='sy', and the hints name no motor, not one .*; there are img, sx, sy"),
        (RunMaker(md={"ptychography": {"y_key": "sz"}}), DataKeys(), "has no y_key 'sz'"),
        (RunMaker(), DataKeys(x="sy"), "x_key and y_key are both 'sy'; two axes are needed"),
        (RunMaker(md={"ptychography": {}}), DataKeys(), "positions: the hints name no motor"),
        (RunMaker(md={"ptychography": {"x_sign": 2}}), DataKeys(), "x_sign=2: a sign is 1 or -1"),
        (RunMaker(md={"ptychography": {"frame_key": ["img"]}}), DataKeys(), "frame=.'img'.: a name in words is needed"),
    ],
)
def test_a_run_that_cannot_be_paired_says_why(run: RunMaker, keys: DataKeys, words: str) -> None:
    with pytest.raises(RunError, match=words):
        pair(run.open(), keys)


@pytest.mark.parametrize(
    "said",
    [
        {"object_keys": {"sx": ["sx"], "sy": ["sy"]}, "configuration": {"sx": "mm", "sy": "um"}},
        {"object_keys": {"stage": ["sx", "sy"]}, "configuration": {"stage": "mm um"}},
        {"configuration": {"sx": "mm", "sy": "um"}},
        {"object_keys": {"sx": ["sx"], "sy": ["sy"]}, "configuration": {"sx": "mm"}},
    ],
)
def test_units_are_found_where_devices_say_them(said: dict[str, Any]) -> None:
    """ophyd-async says them in `describe`, an EPICS motor there and as ``motor_egu`` in its configuration."""
    run = RunMaker(units=None)
    documents = [*run.open(), *run.point(1, 1.0, 1.0)]
    units = {
        name: dict(zip(("sx", "sy") if name == "stage" else (name,), text.split(), strict=True))
        for name, text in said["configuration"].items()
    }
    configuration = {
        name: {"data": {f"{key}_motor_egu": unit for key, unit in found.items()} | {f"{name}_velocity": 1.0}}
        for name, found in units.items()
    }
    documents[1] = ("descriptor", {**documents[1][1], **said, "configuration": configuration})
    if "sy" not in said["configuration"] and "stage" not in said["configuration"]:
        documents[1][1]["data_keys"]["sy"] = {"dtype": "number", "shape": [], "source": "", "units": "um"}
    slimmed = [(name, slim(name, doc) or {}) for name, doc in documents]
    for told in (documents, slimmed):
        (ref,) = pair(told).take()
        assert (ref.x_m, ref.y_m) == (pytest.approx(1e-3), pytest.approx(1e-6))


def test_of_several_samples_of_a_position_the_mean_is_taken() -> None:
    run = RunMaker("stream")
    documents = [*run.open(), *run.point(1, 1.0, 0.0), *run.point(2, 1.0, 0.0), *run.close()]
    documents[1][1]["data_keys"]["sx"] |= {"dtype": "array", "shape": [3]}
    events = [doc for name, doc in documents if name == "event"]
    for event, samples in zip(events, ([1.0, 2.0, 6.0], [1.0, math.nan, 6.0]), strict=True):
        event["data"]["sx"] = np.array(samples)
    for told in (documents, [(name, slim(name, doc) or {}) for name, doc in documents]):
        pairing = pair(told)
        assert [(ref.seq_num, ref.x_m) for ref in pairing.take()] == [(1, pytest.approx(3e-6))]
        assert pairing.unpaired() == {2: NoFrame.BAD_POSITION}


def test_positions_outside_the_events_are_refused_while_the_run_goes_on() -> None:
    run = RunMaker("stream")
    documents = [*run.open()]
    documents[1][1]["data_keys"]["sx"]["external"] = "STREAM:"
    with pytest.raises(RunError, match="positions sx lie outside the events, .* Reconstruct it when it is over"):
        pair(documents)


def test_unit_given_by_hand() -> None:
    run = RunMaker(units=None)
    (ref,) = pair([*run.open(), *run.point(1, 0, 1.0)], DataKeys(position_unit="nm")).take()
    assert ref.x_m == pytest.approx(1e-9)
    with pytest.raises(ValueError, match="position_unit: unit 'parsec'"):
        DataKeys(position_unit="parsec")


def test_geometry_of_a_run() -> None:
    run = RunMaker()
    assert geometry_of(run.start()[1]).energy_ev == GEOMETRY.energy_ev
    assert geometry_of({"uid": "a"}, GEOMETRY) is GEOMETRY
    with pytest.raises(RunError, match="no geometry. Needed: energy_ev"):
        geometry_of({"uid": "a"})
    with pytest.raises(RunError, match="sources: got 5, Input should be a valid dictionary"):
        geometry_of({"uid": "a", "ptychography": {"geometry": {**GEOMETRY.model_dump(mode="json"), "sources": 5}}})
    with pytest.raises(RunError, match="geometry lacks distance_m"):
        geometry_of({"uid": "a", "ptychography": {"geometry": {"energy_ev": 1, "pixel_pitch_m": 1, "frame_shape": 1}}})


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (
            "event",
            {"seq_num": 10**12},
            "event document: ValueError: sequence number .*; allowed: 1 to 1048576",
        ),
        ("event", {"seq_num": 0}, "sequence number 0"),
        ("event", {"data": None}, "event document: AttributeError"),
        ("stream_datum", {"seq_nums": {"start": 1, "stop": 10**12}}, "sequence number 999999999999"),
        ("stream_datum", {"indices": {"start": -1, "stop": 0}}, "index -1 of a frame in its file"),
        ("stream_datum", {"descriptor": []}, "stream_datum document: TypeError: unhashable"),
        ("stream_resource", {"uid": {}}, "stream_resource document: TypeError: unhashable"),
    ],
)
def test_a_document_that_cannot_be_used_is_named(name: str, change: dict[str, Any], words: str) -> None:
    run = RunMaker("stream")
    pairing = pair(run.open())
    for kind, doc in run.point(1, 0, 0):
        if kind == name:
            with pytest.raises(DocumentError, match=words):
                pairing.feed(kind, {**doc, **change})
        else:
            pairing.feed(kind, doc)
    for document in run.point(2, 0, 0):
        pairing.feed(*document)
    assert [ref.seq_num for ref in pairing.take()][-1:] == ([] if name == "stream_resource" else [2])


@pytest.mark.parametrize("kind", ["datum", "stream"])
def test_a_document_that_comes_twice_changes_nothing(kind: Kind) -> None:
    run = RunMaker(kind)
    documents = [document for document in [*run.open(), *run.point(1, 0, 1.0)] for _ in range(2)]
    pairing = pair(documents[1:])
    assert [(ref.seq_num, ref.row) for ref in pairing.take()] == [(1, 0)]
    assert pairing.replaced == 0


@st.composite
def scans(draw: st.DrawFn) -> tuple[Kind, list[tuple[int, bool, bool]]]:
    """A scan: points as (seq_num, frame there, position good), with rewinds to an earlier point now and then."""
    kind = draw(st.sampled_from(KINDS))
    points, seq_num = [], 1
    for _ in range(draw(st.integers(0, 25))):
        if seq_num > 1 and draw(st.integers(0, 5)) == 0:
            seq_num = draw(st.integers(max(1, seq_num - 3), seq_num - 1))
        points.append((seq_num, kind == "event" or draw(st.booleans()), draw(st.booleans())))
        seq_num += 1
    return kind, points


@given(scans(), st.lists(st.integers(0, 40), max_size=5), st.randoms(use_true_random=False))
def test_each_frame_exactly_once_or_named(scan: Any, looks: list[int], random: Any) -> None:
    """Whatever is missed, rewound, or read early: every seq_num ends as one current frame, or with one reason."""
    kind, points = scan
    run = RunMaker(kind)
    documents, expected, row = [*run.open()], {}, 0
    for number, (seq_num, frame, good) in enumerate(points):
        x = float(number) if good else math.nan
        documents += run.point(seq_num, 0.0, x, frame=frame)
        if frame:
            expected[seq_num] = (row, x) if good else NoFrame.BAD_POSITION
            row += 1
        else:
            expected[seq_num] = NoFrame.NOT_TAKEN if good else NoFrame.BAD_POSITION
    documents += run.close()

    pairing, taken = None, []
    for position, (name, doc) in enumerate(documents):
        if name == "start":
            pairing = RunPairing(doc, DataKeys())
        assert pairing is not None
        pairing.feed(name, doc)
        if position in looks:
            taken += pairing.take(random.randint(1, 4))
    assert pairing is not None
    taken += pairing.take()
    current = {ref.seq_num: (ref.row, ref.x_m * 1e6) for ref in taken if pairing.is_current(ref)}
    assert len(current) == sum(pairing.is_current(ref) for ref in taken)
    named = pairing.unpaired()
    assert set(current).isdisjoint(named)
    assert set(current) | set(named) == set(expected) == {seq_num for seq_num, _, _ in points}
    for seq_num, outcome in expected.items():
        if isinstance(outcome, str):
            assert named[seq_num] == outcome
        else:
            assert current[seq_num] == (outcome[0], pytest.approx(outcome[1]))


@given(st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=60))
def test_interleaved_runs_do_not_mix(turns: list[int]) -> None:
    runs = [RunMaker(kind) for kind in KINDS]
    pairings = [pair(run.open()) for run in runs]
    counts = [0, 0, 0]
    for turn in turns:
        counts[turn] += 1
        for name, doc in runs[turn].point(counts[turn], float(turn), float(counts[turn])):
            for pairing in pairings:  # as when a resource could not be told to belong to one run
                if pairing is pairings[turn] or name in ("datum", "resource"):
                    pairing.feed(name, doc)
    for turn, pairing in enumerate(pairings):
        refs = pairing.take()
        assert [ref.seq_num for ref in refs] == list(range(1, counts[turn] + 1))
        assert all(ref.x_m == pytest.approx(ref.seq_num * 1e-6) for ref in refs)
