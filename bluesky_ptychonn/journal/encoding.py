"""One document as one line of a run's file, whole: what is written is what is read.

JSON, ``{"name": …, "doc": …, "t": seconds}``, as in a journal, but with all the data: NaN and infinity stay what they
are (Python's JSON), and larger arrays are ``{"__ndarray__": base64, "dtype": …, "shape": …}``.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bluesky_ptychonn.journal.writer import Entry

_ARRAY = "__ndarray__"
_SMALL_ARRAY = 64  # elements; smaller ones stay readable lists
_PACKED = "biufc"  # kinds of dtype whose bytes mean the same everywhere


def encode(name: str, doc: Mapping[str, Any], when: float) -> bytes:
    """One line of a run's file: the whole document, whatever a device put in it.

    What JSON has no word for becomes its `str`. The line is the copy: what happens to `doc` afterwards is not seen.
    """
    entry = {"name": name, "doc": doc, "t": when}
    try:
        text = json.dumps(entry, default=_plain, separators=(",", ":"))
    except TypeError:  # a key that is no string: rare, and slower
        text = json.dumps(_with_string_keys(entry), default=_plain, separators=(",", ":"))
    return text.encode() + b"\n"


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if value.ndim and value.dtype.kind in _PACKED and (value.size > _SMALL_ARRAY or value.dtype.kind == "c"):
            data = base64.b64encode(value.tobytes()).decode("ascii")
            return {_ARRAY: data, "dtype": value.dtype.str, "shape": value.shape}
        return value.tolist()
    if hasattr(value, "tolist"):
        plain = value.tolist()
        return plain if isinstance(plain, int | float | str | bool | list) else str(plain)
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, set | frozenset) else str(value)


def _with_string_keys(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _with_string_keys(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        value = list(value)
    return [_with_string_keys(item) for item in value] if isinstance(value, list | tuple) else value


def decode(line: bytes) -> Entry | None:
    """Read a line back; None where it is none of ours."""
    try:
        entry = json.loads(line, object_hook=_unpacked if _ARRAY.encode() in line else None)
        name, doc, when = entry["name"], entry["doc"], float(entry.get("t", math.nan))
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    return Entry(name, doc, when) if isinstance(name, str) and isinstance(doc, dict) else None


def _unpacked(value: dict[str, Any]) -> Any:
    if value.keys() != {_ARRAY, "dtype", "shape"}:
        return value
    data = np.frombuffer(base64.b64decode(value[_ARRAY]), np.dtype(value["dtype"]))
    return data.reshape(value["shape"])
