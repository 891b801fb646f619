"""Documents of one run → which frame stands at which position, by index and never by arrival.

Pure bookkeeping: no Tiled, no files, no torch. Frames are keyed by their sequence number within one stream. A paused
and resumed plan emits sequence numbers again; the last one wins.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, cast

from event_model import DatumPage, EventPage, unpack_datum_page, unpack_event_page

from bluesky_ptychonn.catalog.runs.data_keys import DataKeys, DocumentError, RunError, RunLayout, with_objects
from bluesky_ptychonn.catalog.runs.frame_rows import NamedRows


class NoFrame(StrEnum):
    """Why there is no usable frame at a point of a run, as it stands in a result's counts and flags."""

    UNREADABLE = "frame cannot be decoded"
    WITHHELD = "catalog's server gives no frame of the run"
    NOT_THERE = "frame not in the catalog"
    NOT_TAKEN = "detector gave no frame"
    NO_EVENT = "frame without an event"
    BAD_POSITION = "position missing or not finite"
    BEAM_LOST = "beam lost"


#: Largest sequence number. A document of a hundred bytes may claim any range, and each frame takes room here.
MOST_FRAMES = 1 << 20


@dataclass(frozen=True, slots=True)
class FrameRef:
    """One frame and where it was taken."""

    seq_num: int  # in its stream, from 1
    row: int  # of the frame in its array in Tiled
    y_m: float  # position in object coordinates, m: signed readbacks
    x_m: float
    time_raw: float  # when the frame was taken, seconds since the epoch, by the clock of whatever took it
    #: When its event was heard of, by the clock of the session's machine: the others may be an hour off.
    heard: float = field(default=math.nan, repr=False)


@dataclass(slots=True)
class _Point:
    """What is known of one sequence number so far."""

    event: bool = False
    uid: str | None = None  # of the last event
    position: tuple[float, float] | None = None  # y, x
    time_raw: float = 0.0
    heard: float = math.nan
    datum_id: str | None = None
    row: int | None = None
    fresh: bool = False  # the row came after the last event
    ref: FrameRef | None = None


class RunPairing:
    """Takes a run's documents in the order they come and tells which frames can be fetched.

    RunError when the start document's keys are not usable.

    Examples
    --------
    >>> pairing = RunPairing({"uid": "run", "time": 0.0}, DataKeys(frame="camera", x="sx", y="sy"))
    >>> axis = {"dtype": "number", "shape": [], "units": "mm", "source": ""}
    >>> image = {"dtype": "array", "shape": [64, 64], "source": ""}
    >>> data_keys = {"camera": image, "sx": axis, "sy": axis}
    >>> pairing.feed("descriptor", {"uid": "d", "name": "primary", "data_keys": data_keys})
    >>> event = {"descriptor": "d", "seq_num": 1, "time": 5.0, "data": {"sx": 1.0, "sy": 2.0}, "arrays": ["camera"]}
    >>> pairing.feed("event", event)
    >>> pairing.take()
    [FrameRef(seq_num=1, row=0, y_m=0.002, x_m=0.001, time_raw=5.0)]
    """

    def __init__(self, start: Mapping[str, Any], keys: DataKeys) -> None:
        self.start = start
        self.keys = keys.filled_from(start)
        self.layout: RunLayout | None = None
        self.stop: Mapping[str, Any] | None = None
        self.streams: set[str] = set()  # by name, whatever is in them
        self._descriptors: set[str] = set()
        self._points: dict[int, _Point] = {}
        self._ready: dict[int, FrameRef] = {}
        self._replaced: set[int] = set()
        self._rows = NamedRows()
        self._in_event = 0
        self._heard = math.nan
        self._datums: dict[str, tuple[str, Mapping[str, Any]]] = {}  # until their event comes
        self._waiting: dict[str, int] = {}  # datum_id -> seq_num of an event that came before its datum
        self._stream_keys: dict[str, str] = {}  # stream resource -> data key

    # -- documents in

    def feed(self, name: str, doc: Mapping[str, Any], heard: float = math.nan) -> None:
        """Take one document, heard of at the time `heard`, s since the epoch.

        Raises
        ------
        RunError
            When the run cannot be reconstructed: no frames, no motors, a position without a unit. In words.
        DocumentError
            When this document cannot be used: a field missing, or not what belongs there.
        """
        handler = getattr(self, f"_on_{name}", None)
        if handler is None:
            return
        self._heard = heard
        try:
            handler(doc)
        except RunError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise DocumentError(f"{name} document: {type(error).__name__}: {error}") from error

    def _on_descriptor(self, doc: Mapping[str, Any]) -> None:
        self.streams.add(str(doc.get("name")))
        if doc.get("name") == self.keys.stream:
            self._descriptors.add(doc["uid"])
            if self.layout is None:
                self.layout = self._layout(doc)

    def _layout(self, doc: Mapping[str, Any]) -> RunLayout:
        found = RunLayout.find(self.start, with_objects(doc), self.keys, doc.get("configuration"))
        if outside := [axis.key for axis in (found.y, found.x) if axis.external]:
            raise RunError(
                f"positions {', '.join(outside)} lie outside the events, in an array that a fly scan writes; they are "
                "not read while the run goes on. Reconstruct it when it is over, with reconstruct(uid, …) or 'ptychonn "
                "backfill', or have positions read with the events"
            )
        return found

    def _on_event(self, doc: Mapping[str, Any]) -> None:
        data = doc["data"]
        layout = self.layout
        if layout is not None and doc["descriptor"] in self._descriptors:
            seq_num = _seq_num(doc["seq_num"])
            point = self._points.setdefault(seq_num, _Point())
            if layout.external and point.event and doc.get("uid") == point.uid is not None:
                return  # the same document once more, not a point measured again
            point.uid = doc.get("uid")
            y_m, x_m = layout.y.metres(data), layout.x.metres(data)
            again, point.event = point.event, True
            point.position = None if y_m is None or x_m is None else (y_m, x_m)
            point.time_raw = float((doc.get("timestamps") or {}).get(layout.frame_key) or doc["time"])
            point.heard = self._heard
            if again and not point.fresh:
                point.row = None  # measured again: the frame it had belongs to the first time
            point.fresh = False
            self._locate(layout, doc, seq_num, point)
            self._update(seq_num, point)
        elif doc["descriptor"] in self._descriptors:  # of a run that cannot be reconstructed: only counted
            self._points.setdefault(_seq_num(doc["seq_num"]), _Point())
        for value in data.values():  # datums of other detectors and streams
            if isinstance(value, str):
                self._datums.pop(value, None)

    def _locate(self, layout: RunLayout, doc: Mapping[str, Any], seq_num: int, point: _Point) -> None:
        value = doc["data"].get(layout.frame_key)
        if not layout.external:
            # Tiled appends in-event arrays in order of arrival, those of a rewound event too.
            if value is not None or layout.frame_key in doc.get("arrays", ()):
                point.row = self._in_event
                self._in_event += 1
        elif isinstance(value, str):
            point.datum_id, point.row = value, None
            if value in self._datums:
                resource, kwargs = self._datums.pop(value)
                point.row = self._rows.row_of_datum(resource, kwargs, seq_num)
            else:
                self._waiting[value] = seq_num

    def _on_event_page(self, doc: Mapping[str, Any]) -> None:
        arrays = doc.get("arrays", ())
        page = {"filled": {}, "timestamps": {}, **{key: value for key, value in doc.items() if key != "arrays"}}
        for event in unpack_event_page(cast(EventPage, page)):
            self._on_event({**event, "arrays": arrays})

    def _on_datum(self, doc: Mapping[str, Any]) -> None:
        datum_id, resource, kwargs = doc["datum_id"], doc["resource"], doc.get("datum_kwargs") or {}
        seq_num = self._waiting.pop(datum_id, None)
        if seq_num is None:
            self._datums[datum_id] = (resource, kwargs)
            return
        row = self._rows.row_of_datum(resource, kwargs, seq_num)
        point = self._points[seq_num]
        if point.datum_id == datum_id:  # else the point was measured again before this datum came
            point.row = row
            self._update(seq_num, point)

    def _on_datum_page(self, doc: Mapping[str, Any]) -> None:
        for datum in unpack_datum_page(cast(DatumPage, doc)):
            self._on_datum(datum)

    def _on_stream_resource(self, doc: Mapping[str, Any]) -> None:
        self._stream_keys[doc["uid"]] = doc.get("data_key", "")

    def _on_stream_datum(self, doc: Mapping[str, Any]) -> None:
        resource = doc["stream_resource"]
        if self.layout is None or doc["descriptor"] not in self._descriptors:
            return
        if self._stream_keys.get(resource) != self.layout.frame_key:
            return
        first = int(doc["indices"]["start"])
        numbers = range(_seq_num(doc["seq_nums"]["start"]), _seq_num(int(doc["seq_nums"]["stop"]) - 1) + 1)
        for offset, seq_num in enumerate(numbers):
            point, row = self._points.setdefault(seq_num, _Point()), self._rows.row(resource, first + offset)
            if row == point.row:
                continue  # the same document once more
            point.row, point.fresh = row, True
            self._update(seq_num, point)

    def _on_stop(self, doc: Mapping[str, Any]) -> None:
        self.stop = doc

    def _update(self, seq_num: int, point: _Point) -> None:
        if point.ref is not None:
            self._replaced.add(seq_num)
        point.ref = None
        self._ready.pop(seq_num, None)
        if point.event and point.position is not None and point.row is not None:
            y_m, x_m = point.position
            point.ref = self._ready[seq_num] = FrameRef(seq_num, point.row, y_m, x_m, point.time_raw, point.heard)

    # -- frames out

    @property
    def seen(self) -> int:
        """Frames the documents have named so far, each once."""
        return len(self._points)

    @property
    def replaced(self) -> int:
        """Frames that were measured more than once; the last measurement counts."""
        return len(self._replaced)

    @property
    def expected(self) -> int | None:
        """Frames the plan announced in its start document."""
        number = self.start.get("num_points")
        return int(number) if isinstance(number, (int, float)) and 0 < number <= MOST_FRAMES else None

    @property
    def ready(self) -> int:
        """Frames that can be taken."""
        return len(self._ready)

    def take(self, limit: int | None = None) -> list[FrameRef]:
        """Frames whose position and row are known, each once, in the order in which they became known.

        A frame that was measured again comes again.
        """
        return [self._ready.pop(seq_num) for seq_num in list(itertools.islice(self._ready, limit))]

    def put_back(self, refs: Iterable[FrameRef]) -> None:
        """Let frames be taken once more."""
        self._ready.update({ref.seq_num: ref for ref in refs if self.is_current(ref)})

    def is_current(self, ref: FrameRef) -> bool:
        """Whether no later measurement of the same point has replaced this one."""
        return self._points[ref.seq_num].ref is ref

    def unpaired(self) -> dict[int, NoFrame]:
        """Frames without a complete pair, each with its reason; final once the stop document came."""
        return {seq_num: _reason(point) for seq_num, point in sorted(self._points.items()) if point.ref is None}


def _seq_num(value: Any) -> int:
    number = int(value)
    if not 1 <= number <= MOST_FRAMES:
        raise ValueError(f"sequence number {number}; allowed: 1 to {MOST_FRAMES}")
    return number


def _reason(point: _Point) -> NoFrame:
    if not point.event:
        return NoFrame.NO_EVENT
    return NoFrame.BAD_POSITION if point.position is None else NoFrame.NOT_TAKEN


def count_reasons(reasons: Iterable[str]) -> dict[str, int]:
    """How often each reason occurs, the commonest first, by plain strings: keys of JSON.

    >>> count_reasons(["b", NoFrame.NOT_THERE, "b"])
    {'b': 2, 'frame not in the catalog': 1}
    """
    return dict(Counter(map(str, reasons)).most_common())
