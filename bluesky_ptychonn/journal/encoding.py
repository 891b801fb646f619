"""One document as one line of a run's file: ``{"name": …, "doc": …, "t": seconds}``, JSON.

What is written is what is read: NaN and infinity stay what they are (Python's JSON), and larger arrays are
``{"__ndarray__": base64, "dtype": …, "shape": …}``.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

_ARRAY = "__ndarray__"
_SMALL_ARRAY = 64  # elements; smaller ones stay readable lists
_PACKED = "biufc"  # kinds of dtype whose bytes mean the same everywhere
_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS
_NULLS = (b":null", b"[null", b",null")  # and not the letters inside of an array's base64
# What a descriptor says of the data; its configuration (hundreds of areaDetector settings) is in Tiled already.
_DESCRIPTOR_KEYS = ("uid", "run_start", "name", "time", "data_keys", "hints")
_EVENT_KEYS = ("uid", "descriptor", "seq_num", "time", "filled")
_WHOLE = ("start", "stop", "resource", "datum", "datum_page", "stream_resource", "stream_datum")
_PLAIN = (int, float, str, bool, list)
_SCALARS = (int, float, str, bool, type(None))


@dataclass(frozen=True, slots=True)
class Entry:
    """One journaled document."""

    name: str  # kind of document: start, event, …
    doc: dict[str, Any]
    time: float  # when it was journaled, seconds since the epoch; NaN where the line does not say


def encode(name: str, doc: Mapping[str, Any], when: float) -> bytes:
    """One line of a run's file: the whole document, whatever a device put in it.

    What JSON has no word for becomes its `str`. The line is the copy: what happens to `doc` afterwards is not seen.
    """
    entry = {"name": name, "doc": doc, "t": when}
    try:
        line = orjson.dumps(entry, default=_plain, option=_OPTIONS)
    except TypeError:  # an integer beyond 64 bit, half a surrogate pair, a key that is no string
        return _encode_slowly(entry)
    if b"null" in line and any(null in line for null in _NULLS):
        return _encode_slowly(entry)  # orjson says null for NaN and infinity too
    return line


def _encode_slowly(entry: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(entry, default=_plain, separators=(",", ":"))
    except TypeError:  # a key that is no string
        text = json.dumps(_with_string_keys(entry), default=_plain, separators=(",", ":"))
    return text.encode() + b"\n"


def _plain(value: Any) -> Any:
    packed = isinstance(value, np.ndarray) and value.ndim and value.dtype.kind in _PACKED
    if packed and (value.size > _SMALL_ARRAY or value.dtype.kind == "c"):
        data = base64.b64encode(value.tobytes()).decode("ascii")
        return {_ARRAY: data, "dtype": value.dtype.str, "shape": value.shape}
    if hasattr(value, "tolist"):
        plain = value.tolist()
        return plain if isinstance(plain, _PLAIN) else str(plain)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, float):
        return float(value)
    return list(value) if isinstance(value, tuple | set | frozenset) else str(value)


def _with_string_keys(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _with_string_keys(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        value = list(value)
    return [_with_string_keys(item) for item in value] if isinstance(value, list | tuple) else value


def decode(line: bytes) -> Entry | None:
    """Read a line back, also of version 0.1.0's journals and backups; None where it is none of ours."""
    try:
        entry = json.loads(line, object_hook=_unpacked if _ARRAY.encode() in line else None)
        name, doc, when = entry["name"], entry["doc"], float(entry.get("t", math.nan))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return Entry(name, doc, when) if isinstance(name, str) and isinstance(doc, dict) else None


def _unpacked(value: dict[str, Any]) -> Any:
    if value.keys() != {_ARRAY, "dtype", "shape"}:
        return value
    data = np.frombuffer(base64.b64decode(value[_ARRAY]), np.dtype(value["dtype"]))
    return data.reshape(value["shape"])


def with_lists(value: Any) -> Any:
    """Return a document whose arrays are lists."""
    if isinstance(value, dict):
        return {key: with_lists(item) for key, item in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


def slim(name: str, doc: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Keep of a document what pairing frames with positions needs.

    In-event arrays are replaced by their names under ``arrays``: Tiled has the data. A document that is slim already
    comes back as it is, and None for a kind that has no part in a reconstruction.

    Examples
    --------
    >>> event = {"descriptor": "d", "seq_num": 1, "time": 0.0, "data": {"x": 1.5, "image": [[1, 2]]}, "timestamps": {}}
    >>> slim("event", event)["data"], slim("event", event)["arrays"]
    ({'x': 1.5}, ['image'])
    """
    if name == "event":
        return _slim_event(doc, {key: value for key, value in doc["data"].items() if _is_scalar(value)})
    if name == "event_page":
        columns = doc["data"].items()
        return _slim_event(doc, {key: column for key, column in columns if len(column) == 0 or _is_scalar(column[0])})
    if name == "descriptor":
        return {key: doc[key] for key in _DESCRIPTOR_KEYS if key in doc}
    return doc if name in _WHOLE else None


def _slim_event(doc: Mapping[str, Any], scalars: Mapping[str, Any]) -> dict[str, Any]:
    slimmed = {key: doc[key] for key in _EVENT_KEYS if key in doc}
    slimmed |= {"data": scalars, "timestamps": doc.get("timestamps", {})}
    arrays = doc.get("arrays", [])
    if len(scalars) < len(doc["data"]):
        arrays = [*arrays, *(key for key in doc["data"] if key not in scalars)]
    return slimmed | {"arrays": arrays} if arrays else slimmed


def _is_scalar(value: Any) -> bool:
    return isinstance(value, _SCALARS) or getattr(value, "ndim", 1) == 0
