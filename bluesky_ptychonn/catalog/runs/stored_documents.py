"""A run that lies in the catalog → the documents the journal would have held of it.

So a live and a stored run take the same road. Not `run.documents()`: that numbers rows anew, and rewound points and
missed frames would be paired with their neighbours' positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.catalog.connection.errors import CatalogRefusedError, CatalogUnavailableError
from bluesky_ptychonn.catalog.connection.http import TiledNode
from bluesky_ptychonn.catalog.connection.layout import runs_path, uri_of
from bluesky_ptychonn.catalog.runs.data_keys import DataKeys, RunError, RunLayout
from bluesky_ptychonn.catalog.runs.frame_readers import why_not_given
from bluesky_ptychonn.catalog.runs.frame_rows import find_rows

Document = tuple[str, dict[str, Any]]
_MOST_SAMPLES = 1 << 24
_LARGEST_SCAN_ID = (1 << 63) - 1  # that a database can be asked for


def find_runs(root: Any, raw: str | None = None) -> Any:
    """Client of the runs of a catalog, see `runs_path`, that finds them as databroker does, and nothing else."""
    from bluesky_tiled_plugins.clients.catalog_of_bluesky_runs import CatalogOfBlueskyRuns
    from tiled.queries import SpecsQuery

    path = runs_path(root, raw)
    runs = root[tuple(path.split("/"))] if path else root
    if not isinstance(runs, CatalogOfBlueskyRuns):  # nobody said what the container is for: a server as it comes
        about = {**runs.item["attributes"], "specs": [{"name": "CatalogOfBlueskyRuns", "version": "3.0"}]}
        item = {**runs.item, "attributes": about}
        runs = CatalogOfBlueskyRuns(runs.context, item=item, structure_clients=runs.structure_clients)
    return runs if path else runs.search(SpecsQuery(include=["BlueskyRun"]))


def find_run(root: Any, run: Any, raw: str | None = None) -> Any:
    """Client of a run: itself, or looked up by its uid, the beginning of it, or its scan_id.

    Digits alone are a scan id where the catalog has that, else the beginning of a uid; of several runs of one scan id
    the newest is taken. ValueError where there is none, or where digits are both.
    """
    if hasattr(run, "metadata"):
        return run
    runs = find_runs(root, raw)
    try:
        return _by_digits(runs, run) if isinstance(run, str) and run.isdecimal() else runs[run]
    except IndexError:  # a number counted from the newest
        raise ValueError(f"no run {run}: {runs.uri} has {len(runs)} runs") from None
    except (KeyError, ValueError) as error:
        raise ValueError(f"no run {run!r} in {runs.uri}: {error}") from None


def container_of(root: Any, run: Any) -> str:
    """Path of the container that a run (BlueskyRun client) is in, below the catalog's; ValueError for another's run."""
    above, keys = ([key for key in node.path_parts if key] for node in (root, run))
    if keys[: len(above)] != above:
        raise ValueError(f"run {keys[-1][:8]} lies in {'/'.join(keys[:-1])}, not below the catalog {uri_of(root)}")
    return "/".join(keys[len(above) : -1])


def _by_digits(runs: Any, digits: str) -> Any:
    from tiled.queries import Key

    number = int(digits)
    scans = runs.search(Key("start.scan_id") == number).values() if number <= _LARGEST_SCAN_ID else None
    scan = scans.last() if scans is not None and len(scans) else None
    try:
        other = runs[digits]
    except (KeyError, ValueError):  # no uid begins so; or several do, or it is too short to be looked up
        if scan is None:
            raise
        return scan
    if scan is None or scan.metadata["start"]["uid"] == other.metadata["start"]["uid"]:
        return other
    uids = [run.metadata["start"]["uid"] for run in (scan, other)]
    raise ValueError(f"{digits!r} is the scan id of run {uids[0]} and the beginning of {uids[1]}; give more of the uid")


def documents_of(run: Any, keys: DataKeys) -> Iterator[Document]:
    """Start, descriptor, events with their frames, stop of a BlueskyRun client; each a few numbers long.

    RunError, in words, when it has no such stream, frames or positions as `keys` name.
    """
    start, stop = dict(run.metadata["start"]), run.metadata.get("stop")
    yield "start", start
    keys = keys.filled_from(start)
    base = getattr(run, "base", run)
    if keys.stream not in set(base):
        raise RunError(f"run {start['uid'][:8]} has no stream {keys.stream!r}; it has {', '.join(base) or 'none'}")
    stream = base[keys.stream]
    metadata = stream.metadata
    descriptor: dict[str, Any] = {"uid": metadata["uid"], "name": keys.stream, "data_keys": dict(metadata["data_keys"])}
    descriptor["configuration"] = metadata.get("configuration") or {}
    layout = RunLayout.find(start, descriptor["data_keys"], keys, descriptor["configuration"])
    for axis in (layout.y, layout.x):  # wherever they lie, they are read now
        key = descriptor["data_keys"][axis.key]
        descriptor["data_keys"][axis.key] = {name: value for name, value in key.items() if name != "external"}
    yield "descriptor", descriptor
    stream = getattr(stream, "base", stream)
    frames = _length(stream, layout.frame_key)
    counter = _counter(descriptor["data_keys"], layout.frame_key)
    table = _with_positions(
        stream, layout, _each_event_once(_table(stream, layout, counter)), metadata.get("time", 0.0)
    )
    captured = table.get(counter)
    if captured is not None:
        captured = captured.astype(np.int64) if np.isfinite(captured.astype(float)).all() else None
    rows = find_rows(table["seq_num"], captured, frames, ended=stop is not None)
    if layout.external:
        yield "stream_resource", {"uid": "frames", "run_start": start["uid"], "data_key": layout.frame_key}
    yield from _events(table, layout, descriptor["uid"], rows)
    if layout.external and np.array_equal(rows, table["seq_num"] - 1):
        for row in np.setdiff1d(np.arange(frames), rows).tolist():  # their events are missing
            yield "stream_datum", _stream_datum(descriptor["uid"], row, row + 1)
    if stop is not None:
        yield "stop", dict(stop)


def _length(stream: Any, key: str) -> int:
    """Rows of an array in Tiled: one request."""
    found = TiledNode(stream).attributes(key)
    return 0 if found is None else int(found["structure"]["shape"][0])


def _table(stream: Any, layout: RunLayout, counter: str) -> dict[str, NDArray[Any]]:
    """Columns of the events, in the order in which they were written."""
    columns: dict[str, NDArray[Any]] = {"seq_num": np.zeros(0, np.int64), "time": np.zeros(0)}
    missing = {*columns, layout.y.key, layout.x.key, f"ts_{layout.frame_key}", counter}
    for part in stream:
        if not part.startswith("internal"):
            continue
        node = stream[part]
        if here := [column for column in node.columns if column in missing]:
            frame = node.read(here)
            columns |= {column: frame[column].to_numpy() for column in here}
            missing -= set(here)
    return columns


def _with_positions(
    stream: Any, layout: RunLayout, table: dict[str, NDArray[Any]], when: float
) -> dict[str, NDArray[Any]]:
    """Add positions that lie in arrays of their own; a fly scan may have no events, and `when` is all that is known."""
    apart = {axis.key: _samples(stream, axis.key) for axis in (layout.y, layout.x) if axis.key not in table}
    lengths = {len(samples) for samples in apart.values() if samples is not None}
    if not lengths:
        return table
    if not len(table["seq_num"]):
        number = max(lengths)
        table = {"seq_num": np.arange(1, number + 1), "time": np.full(number, float(when))}
    events = len(table["seq_num"])
    if lengths != {events}:
        found = ", ".join(f"{0 if values is None else len(values)} of {key}" for key, values in apart.items())
        raise RunError(f"the run has {events} events and positions {found}, and nothing tells which belong together")
    return table | {key: samples for key, samples in apart.items() if samples is not None}


def _samples(stream: Any, key: str) -> NDArray[np.float64] | None:
    """Read a position of each event, (n,), the mean where an event has several: two requests. None where there is none.

    RunError when the catalog's server cannot read them.
    """
    from tiled.structures.array import ArrayStructure
    from tiled.structures.data_source import DataSource

    node = TiledNode(stream)
    found = node.attributes(key, sources=True)
    if found is None or found.get("structure") is None:
        return None
    structure = ArrayStructure.from_json(found["structure"])
    kind, (rows, *rest) = structure.data_type.to_numpy_dtype(), structure.shape
    samples = math.prod(rest)
    if kind.kind not in "biuf" or not 0 < samples * rows <= _MOST_SAMPLES:
        raise RunError(f"position {key!r}: an array of {structure.shape} {kind} is not one of positions")
    try:
        content = node.read_slice(key, 0, rows, samples * kind.itemsize)
    except CatalogUnavailableError as error:
        if error.status in (None, 429, 502, 503, 504):
            raise
        sources = [DataSource.from_json(each) for each in found["data_sources"]]
        why = why_not_given(sources, f"{list(rest)} numbers of {kind} per point")
        raise RunError(f"position {key!r} cannot be read through the catalog (HTTP {error.status}): {why}") from None
    except CatalogRefusedError as error:
        raise RunError(f"position {key!r} cannot be read through the catalog: {error}") from None
    values: NDArray[np.float64] = np.frombuffer(content, kind).reshape(-1, samples).astype(np.float64)
    return np.asarray(values.mean(axis=1))


def _each_event_once(table: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Leave out rows that are there twice: TiledWriter appends once more what it got no answer to."""
    _, first = np.unique(np.stack([table["seq_num"], table["time"]]), axis=1, return_index=True)
    first.sort()
    return {name: column[first] for name, column in table.items()}


def _counter(data_keys: Mapping[str, Any], frame_key: str) -> str:
    """Return the data key of the file plugin's counter of frames, where the detector's own was read with the events."""
    device = data_keys[frame_key].get("object_name")
    found = [
        key
        for key, value in data_keys.items()
        if key.endswith("num_captured")
        and (value.get("object_name") == device if device else key.startswith(frame_key.split("_")[0]))
    ]
    return found[0] if len(found) == 1 else ""


def _events(
    table: Mapping[str, NDArray[Any]], layout: RunLayout, descriptor: str, rows: NDArray[np.int64]
) -> Iterator[Document]:
    times = table.get(f"ts_{layout.frame_key}", table["time"])
    for i, seq_num in enumerate(table["seq_num"].tolist()):
        data = {key: table[key][i] for key in (layout.y.key, layout.x.key) if key in table}
        event = {
            "descriptor": descriptor,
            "seq_num": seq_num,
            "time": float(table["time"][i]),
            "timestamps": {layout.frame_key: float(times[i])},
            "data": data,
        }
        if rows[i] >= 0 and not layout.external:
            event["arrays"] = [layout.frame_key]
        elif rows[i] >= 0:
            yield "stream_datum", _stream_datum(descriptor, int(rows[i]), seq_num)
        yield "event", event


def _stream_datum(descriptor: str, row: int, seq_num: int) -> dict[str, Any]:
    spans = {"indices": {"start": row, "stop": row + 1}, "seq_nums": {"start": seq_num, "stop": seq_num + 1}}
    return {"stream_resource": "frames", "descriptor": descriptor, **spans}
