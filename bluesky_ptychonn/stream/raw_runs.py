"""Raw runs into the catalog so that the scan never waits: TiledWriter in a thread, with a backup; and back from there.

A catalog that dies in the middle of a scan costs the plan nothing. TiledWriter then leaves the run, whole, as
JSON Lines in the backup folder, and `recover` writes it to the catalog once that is back.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

SUFFIX = ".jsonl"
_RECOVERED = ".recovered"


def raw_writer(catalog: Any, backup: str | Path, *, raw: str = "raw") -> Any:
    """Make a callback that writes raw runs into a catalog from a thread of its own.

    Parameters
    ----------
    catalog : CatalogServer, Tiled client, address or profile name
        Where to.
    backup : path
        Folder that keeps runs which the catalog would not take. Made when it is needed.
    raw : str
        Container of the runs; empty where runs lie at the root.

    Returns
    -------
    bluesky.callbacks.buffer.BufferingWrapper
        For ``RE.subscribe``. At the end of the session it writes what it still has.

    Examples
    --------
    >>> RE.subscribe(raw_writer(catalog, "~/backup"))  # doctest: +SKIP
    """
    from bluesky.callbacks.buffer import BufferingWrapper
    from bluesky_tiled_plugins import TiledWriter

    from bluesky_ptychonn.stream.connecting import connect

    client = connect(catalog)
    folder = Path(backup).expanduser().resolve()
    writer = TiledWriter(client[raw] if raw else client, batch_size=1, backup_directory=str(folder))
    return BufferingWrapper(_Plain(writer))


class _Plain:
    """Hands documents on as plain JSON values: what the backup can write, and what nobody changes meanwhile."""

    def __init__(self, callback: Any) -> None:
        self._callback = callback

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        from event_model import sanitize_doc

        self._callback(name, sanitize_doc(dict(doc)))


@dataclass(frozen=True)
class Recovered:
    """What became of one file of a backup.

    Attributes
    ----------
    file : Path
        The file, under its new name where it is done with.
    uid : str
        Of the run; empty where the file does not say.
    outcome : str
        ``recovered``, ``already there``, or what is wrong with it.
    """

    file: Path
    uid: str
    outcome: str


def recover(catalog: Any, backup: str | Path, *, raw: str = "raw") -> list[Recovered]:
    """Write the runs of a backup folder into the catalog.

    A run of which the catalog holds a part is written anew; a whole one is left alone. A file is renamed to
    ``*.jsonl.recovered`` once the catalog gives the run back with all its events.

    Parameters
    ----------
    catalog, backup, raw
        See `raw_writer`.

    Returns
    -------
    list of Recovered
        One for each file, in the order of their names.
    """
    from bluesky_ptychonn.stream.connecting import connect

    client = connect(catalog)
    runs = client[raw] if raw else client
    return [_recover(runs, path) for path in sorted(Path(backup).expanduser().glob(f"*{SUFFIX}"))]


def _recover(runs: Any, path: Path) -> Recovered:
    from bluesky_tiled_plugins import TiledWriter

    try:
        documents = [(entry["name"], entry["doc"]) for entry in map(json.loads, path.read_text("utf-8").splitlines())]
        uid = str(documents[0][1]["uid"]) if documents[0][0] == "start" else ""
    except (OSError, ValueError, LookupError, TypeError) as error:
        return Recovered(path, "", f"not a backup of a run: {type(error).__name__}: {error}")
    if not uid:
        return Recovered(path, "", "not a backup of a run: it does not begin with a start document")
    if documents[-1][0] != "stop":
        return Recovered(path, uid, "the run has no stop document; is it still being written?")
    expected = sum(_count(name, doc) for name, doc in documents)
    if uid in runs:
        if _events(runs[uid]) == expected and runs[uid].metadata.get("stop"):
            return Recovered(_done(path), uid, "already there")
        log.warning("run %s: a part of it is in the catalog and is written anew", uid)
        runs.delete_contents([uid], recursive=True, external_only=False)
    writer = TiledWriter(runs, batch_size=1000)
    for name, doc in documents:
        writer(name, doc)
    found = _events(runs[uid])
    if found != expected:
        return Recovered(path, uid, f"{expected} events were written and {found} are read back")
    return Recovered(_done(path), uid, "recovered")


def _count(name: str, doc: Mapping[str, Any]) -> int:
    return len(doc["seq_num"]) if name == "event_page" else int(name == "event")


def _events(run: Any) -> int:
    """Count the events of all streams."""
    base = getattr(run, "base", run)
    total = 0
    for stream in base:
        node = base[stream]
        node = getattr(node, "base", node)
        for part in node:
            if part.startswith("internal"):
                total += len(node[part].read(["seq_num"]))
                break
    return total


def _done(path: Path) -> Path:
    return path.rename(path.with_name(path.name + _RECOVERED))
