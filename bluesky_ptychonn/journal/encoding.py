"""One document as one line of a run's file: ``{"name": …, "doc": …, "t": seconds}``, JSON.

What is written is what is read: NaN and infinity stay what they are (Python's JSON), and larger arrays are
``{"__ndarray__": base64, "dtype": …, "shape": …}``.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

_ARRAY = "__ndarray__"
_SMALL_ARRAY = 64  # elements; smaller ones stay readable lists
_PACKED = "biufc"  # kinds of dtype whose bytes mean the same everywhere
_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS
_NULLS = (b":null", b"[null", b",null")  # and not the letters inside of an array's base64
# What a descriptor says of the data; of its configuration, hundreds of settings that Tiled has, only the units.
_DESCRIPTOR_KEYS = ("uid", "run_start", "name", "time", "data_keys", "object_keys", "hints")
_MOST_SAMPLES = 4096  # of a position in an event, of which the mean is kept
_EVENT_KEYS = ("uid", "descriptor", "seq_num", "time", "filled")
_NOTHING = object()  # what is kept of an array that is no row of numbers
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

    In-event arrays are replaced by their names under ``arrays``: Tiled has the data. Of a row of numbers the mean
    stays, for it may be samples of a position. A document that is slim already comes back as it is, and None for a kind
    that has no part in a reconstruction.

    Examples
    --------
    >>> event = {"descriptor": "d", "seq_num": 1, "time": 0.0, "data": {"x": 1.5, "image": [[1, 2]]}, "timestamps": {}}
    >>> slim("event", event)["data"], slim("event", event)["arrays"]
    ({'x': 1.5}, ['image'])
    """
    if name == "event":
        return _slim_event(doc, doc["data"], _scalar)
    if name == "event_page":
        return _slim_event(doc, doc["data"], _scalars)
    if name == "descriptor":
        slimmed = {key: doc[key] for key in _DESCRIPTOR_KEYS if key in doc}
        units = _units(doc.get("configuration") or {})
        return slimmed | {"configuration": units} if units else slimmed
    return doc if name in _WHOLE else None


def _slim_event(doc: Mapping[str, Any], data: Mapping[str, Any], scalar: Callable[[Any], Any]) -> dict[str, Any]:
    slimmed = {key: doc[key] for key in _EVENT_KEYS if key in doc}
    kept = {key: scalar(value) for key, value in data.items()}
    arrays = [*doc.get("arrays", []), *(key for key, value in data.items() if kept[key] is not value)]
    slimmed |= {"data": {key: value for key, value in kept.items() if value is not _NOTHING}}
    slimmed |= {"timestamps": doc.get("timestamps", {})}
    return slimmed | {"arrays": arrays} if arrays else slimmed


def _units(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Engineering units of the devices, as the configuration has them."""
    units = {
        name: {key: value for key, value in (device.get("data") or {}).items() if key.lower().endswith("egu")}
        for name, device in configuration.items()
    }
    return {name: {"data": found} for name, found in units.items() if found}


def _scalar(value: Any) -> Any:
    """Return a number as it is, the mean of a row of them, `_NOTHING` for another array."""
    if _is_scalar(value):
        return value
    row = isinstance(value, np.ndarray | list | tuple) and 0 < len(value) <= _MOST_SAMPLES
    if not row or np.ndim(value[0]) or not isinstance(value[0], int | float | np.number):
        return _NOTHING
    try:
        return float(np.mean(np.asarray(value, float)))
    except (TypeError, ValueError):  # ragged, or with something among it that is no number
        return _NOTHING


def _scalars(column: Any) -> Any:
    """Return the same of a column of an event page."""
    if len(column) == 0 or _is_scalar(column[0]):
        return column
    scalars = [_scalar(value) for value in column]
    return _NOTHING if any(value is _NOTHING for value in scalars) else scalars


def _is_scalar(value: Any) -> bool:
    return isinstance(value, _SCALARS) or getattr(value, "ndim", 1) == 0
