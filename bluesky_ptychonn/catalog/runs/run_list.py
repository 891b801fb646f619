"""The runs of a catalog, newest first, a page a request, and those of them that have ended: what a watcher may ask."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bluesky_ptychonn.catalog.connection.address import RAW
from bluesky_ptychonn.catalog.connection.http import TiledNode
from bluesky_ptychonn.catalog.connection.layout import RUNS_ONLY

#: Runs a request, at most: their start documents may take kilobytes each.
PAGE = 50


@dataclass(frozen=True)
class Listed:
    """A run as the catalog lists it."""

    start: Mapping[str, Any]
    stop: Mapping[str, Any] | None  # None while the run is under way, and for ever where its RunEngine died

    @property
    def uid(self) -> str:
        """Of the run."""
        return str(self.start["uid"])

    @property
    def ptychography(self) -> bool:
        """Whether the run says that it is a ptychography scan."""
        return isinstance(self.start.get("ptychography"), Mapping)

    def under_way(self, now: float, longest_s: float) -> bool:
        """Whether the run may still be measuring at `now`, POSIX s; none takes more than `longest_s`."""
        return self.stop is None and now - float(self.start.get("time", 0.0)) < longest_s

    def __str__(self) -> str:
        """As people know it."""
        return f"scan {self.start.get('scan_id')}, run {self.uid[:8]}"


class RunList(TiledNode):
    """The container of the runs, `raw` below the catalog's, see `runs_path`."""

    def __init__(self, root: Any, raw: str = RAW, before_request: Callable[[], None] | None = None) -> None:
        super().__init__(root, [part for part in raw.split("/") if part], before_request)

    def page(self, first: int = 0, *, since: float | None = None, most: int = PAGE) -> list[Listed]:
        """List runs from the `first` newest on, newest first; with `since` only those that began later, POSIX s."""
        params = {"sort": "-start.time", "fields": "metadata", **RUNS_ONLY}
        if since is not None:
            condition = {"operator": "gt", "key": "start.time", "value": json.dumps(since)}
            params |= {f"filter[comparison][condition][{name}]": value for name, value in condition.items()}
        found = [node["attributes"].get("metadata") or {} for node in self.search(first, most, **params)]
        return [Listed(each["start"], each.get("stop")) for each in found if "uid" in each.get("start", {})]


class EndedRuns:
    """Ptychography runs that have ended and that nobody has dealt with yet.

    `done` are uids of runs that were dealt with before; runs that began before `since`, POSIX s, are left alone.
    """

    def __init__(self, runs: RunList, done: Iterable[str], since: float | None = None) -> None:
        self._runs, self._since = runs, since
        self._done = set(done)
        self._waiting: dict[str, Listed] = {}

    def refresh(self) -> list[Listed]:
        """Find what has ended since the last time; the newest runs of all kinds are returned. Usually one request."""
        newest: list[Listed] = []
        first = 0
        while True:
            page = self._runs.page(first, since=self._since)
            newest = newest or page
            new = [run for run in page if run.uid not in self._done and run.uid not in self._waiting]
            self._waiting |= {run.uid: run for run in new if run.stop is not None and run.ptychography}
            self._done |= {run.uid for run in new if run.stop is not None and not run.ptychography}
            first += len(page)
            if len(page) < PAGE or not new:
                return newest

    @property
    def waiting(self) -> Sequence[Listed]:
        """Runs to deal with, oldest first."""
        return sorted(self._waiting.values(), key=lambda run: float(run.start.get("time", 0.0)))

    def done(self, uid: str) -> None:
        """Note that a run was dealt with."""
        self._done.add(uid)
        self._waiting.pop(uid, None)
