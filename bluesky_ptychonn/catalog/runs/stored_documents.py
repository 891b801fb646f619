"""A run that lies in the catalog → the documents the journal would have held of it.

So a live and a stored run take the same road. Not `run.documents()`: that numbers rows anew, and rewound points and
missed frames would be paired with their neighbours' positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.catalog.connection.http import TiledNode
from bluesky_ptychonn.catalog.connection.layout import runs_path, uri_of
from bluesky_ptychonn.catalog.runs.data_keys import DataKeys, RunError, RunLayout

Document = tuple[str, dict[str, Any]]


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
    """Client of a run: itself, or looked up by its uid, the beginning of it, or its scan_id; ValueError if none."""
    if hasattr(run, "metadata"):
        return run
    runs = find_runs(root, raw)
    try:
        return runs[run]
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(f"no run {run!r} in {runs.uri}: {error}") from None


def container_of(root: Any, run: Any) -> str:
    """Path of the container that a run (BlueskyRun client) is in, below the catalog's; ValueError for another's run."""
    above, keys = ([key for key in node.path_parts if key] for node in (root, run))
    if keys[: len(above)] != above:
        raise ValueError(f"run {keys[-1][:8]} lies in {'/'.join(keys[:-1])}, not below the catalog {uri_of(root)}")
    return "/".join(keys[len(above) : -1])


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
    descriptor = {"uid": metadata["uid"], "name": keys.stream, "data_keys": dict(metadata["data_keys"])}
    yield "descriptor", descriptor
    layout = RunLayout.find(start, descriptor["data_keys"], keys)
    stream = getattr(stream, "base", stream)
    table = _table(stream, layout)
    if layout.external:
        yield "stream_resource", {"uid": "frames", "run_start": start["uid"], "data_key": layout.frame_key}
    rows = _rows(stream, layout, table) if layout.external else None
    yield from _events(table, layout, descriptor["uid"], rows)
    if stop is not None:
        yield "stop", dict(stop)


def _table(stream: Any, layout: RunLayout) -> Mapping[str, NDArray[Any]]:
    """Columns of the events, in the order in which they were written."""
    columns: dict[str, NDArray[Any]] = {}
    wanted = {"seq_num", "time", layout.y.key, layout.x.key, f"ts_{layout.frame_key}"}
    for part in stream:
        if not part.startswith("internal"):
            continue
        node = stream[part]
        here = [c for c in node.columns if c in wanted or c.endswith("num_captured")]
        frame = node.read([c for c in here if c not in columns])
        columns.update({c: frame[c].to_numpy() for c in frame.columns})
    if "seq_num" not in columns:
        return {"seq_num": np.zeros(0, int), "time": np.zeros(0)}
    return columns


def _rows(stream: Any, layout: RunLayout, table: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
    """Row of each event's frame in the array, -1 where the detector gave none."""
    seq_nums = table["seq_num"]
    frames = TiledNode(stream).attributes(layout.frame_key)
    length = 0 if frames is None else int(frames["structure"]["shape"][0])
    # Which sequence number a streamed frame belongs to is not kept in Tiled. The file plugin's own counter tells,
    # where it was read with the events; else every event has its frame, in order.
    device = layout.frame_key.split("_")[0]
    counters = [name for name in table if name.endswith("num_captured") and name.startswith(device)]
    if len(counters) == 1:
        captured = table[counters[0]].astype(np.int64)
        before = np.concatenate([[0], captured[:-1]])
        rows = np.where(captured != before, captured - 1, -1)
    else:
        unique = len(np.unique(seq_nums)) == len(seq_nums)
        rows = seq_nums.astype(np.int64) - 1 if unique else np.arange(len(seq_nums))
    return np.where(rows < length, rows, -1)


def _events(
    table: Mapping[str, NDArray[Any]], layout: RunLayout, descriptor: str, rows: NDArray[np.int64] | None
) -> Iterator[Document]:
    times = table.get(f"ts_{layout.frame_key}", table["time"])
    for i, seq_num in enumerate(table["seq_num"].tolist()):
        data = {key: float(table[key][i]) for key in (layout.y.key, layout.x.key) if key in table}
        event = {
            "descriptor": descriptor,
            "seq_num": seq_num,
            "time": float(table["time"][i]),
            "timestamps": {layout.frame_key: float(times[i])},
            "data": data,
        }
        if rows is None:
            event["arrays"] = [layout.frame_key]
        elif rows[i] >= 0:
            index, seq = int(rows[i]), int(seq_num)
            spans = {"indices": {"start": index, "stop": index + 1}, "seq_nums": {"start": seq, "stop": seq + 1}}
            yield "stream_datum", {"stream_resource": "frames", "descriptor": descriptor, **spans}
        yield "event", event
