"""A document as a line: what is written is what is read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bluesky_ptychonn.journal.encoding import decode, encode

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


ARRAYS = hnp.arrays(
    st.sampled_from(["<u2", ">i4", "<f4", "<f8", "|b1", "<c8"]), hnp.array_shapes(max_dims=3, max_side=12), unique=False
)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


@settings(max_examples=60, deadline=None)
@given(doc=st.dictionaries(st.text(), VALUES), image=ARRAYS)
def test_a_document_comes_back_as_it_was(doc: dict[str, Any], image: np.ndarray) -> None:
    line = encode("event", {**doc, "image": image}, 1.5)
    assert line.count(b"\n") == 1
    entry = decode(line)
    assert entry is not None
    assert (entry.name, entry.time) == ("event", 1.5)
    back = np.asarray(entry.doc.pop("image"))
    np.testing.assert_array_equal(back, image)
    if image.size > 64:
        assert back.dtype == image.dtype
    assert same(entry.doc, {key: value for key, value in doc.items() if key != "image"})


class Odd:
    def __repr__(self) -> str:
        return "odd"


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (b"\x00\xff", "b'\\x00\\xff'"),
        (Path("frames"), "frames"),
        (Odd(), "odd"),
        (1 + 2j, "(1+2j)"),
        (np.float32(0.5), 0.5),
        (np.datetime64("2026-01-01"), "2026-01-01"),
        (np.array([b"a", b"b"]), ["b'a'", "b'b'"]),
        (np.array(7), 7),
        ((1, 2), [1, 2]),
        ({3}, [3]),
        ({(1, 2): {4: 5}}, {"(1, 2)": {"4": 5}}),
        ({"__ndarray__": "no base64", "more": 1}, {"__ndarray__": "no base64", "more": 1}),
        ("\ud800 \u2028\r", "\ud800 \u2028\r"),
        (2**200, 2**200),
    ],
)
def test_what_json_cannot_say_is_kept_as_words(value: Any, kept: Any) -> None:
    entry = decode(encode("event", {"value": value}, 0.0))
    assert entry is not None
    assert entry.doc == {"value": kept}


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b"1", b'{"name":1,"doc":{}}', b'{"name":"a","doc":[]}', b"\xff"])
def test_a_line_that_is_none_of_ours_is_none(line: bytes) -> None:
    assert decode(line) is None


def test_odd_values_are_written_all_the_same() -> None:
    doc = {"nan": float("nan"), "np": np.float32(1.5), "path": Path("/a"), "big": 2**70, 3: "key", "set": {1}}
    entry = decode(encode("start", doc, 0.0))
    assert entry is not None
    assert np.isnan(entry.doc.pop("nan"))
    assert entry.doc == {"np": 1.5, "path": "/a", "big": 2**70, "3": "key", "set": [1]}
    assert encode("start", {"x": float("inf")}, 0.0) == b'{"name":"start","doc":{"x":Infinity},"t":0.0}\n'
