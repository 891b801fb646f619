"""What a user gets for ``processed``: a container that is searched by the run that something was made from."""

from __future__ import annotations

from typing import Any

from tiled.client.container import Container


class PtychoResults(Container):  # type: ignore[misc]  # Tiled is not typed
    """The container of results. databroker's queries mean the run that a result was made from.

    `ScanID`, `ScanIDRange`, `PartialUID` and `TimeRange` are known to runs' containers alone; a server that does not
    know a query answers with everything.
    """

    def search(self, query: Any) -> Any:
        """Search, also by databroker's queries.

        Raises
        ------
        ValueError
            For several scan ids or uids at once, as in a container of runs.
        """
        from bluesky_tiled_plugins.queries import ScanIDRange, TimeRange, _PartialUID, _ScanID
        from tiled.queries import Comparison, Eq, Like

        if isinstance(query, _ScanID):
            return super().search(Eq("raw.scan_id", int(_only(query.scan_ids, "ScanID"))))
        if isinstance(query, _PartialUID):
            return super().search(Like("raw.uid", f"{_only(query.partial_uids, 'PartialUID')}%"))
        if isinstance(query, ScanIDRange):
            bounds = [("ge", "raw.scan_id", query.start_id), ("lt", "raw.scan_id", query.end_id)]
        elif isinstance(query, TimeRange):
            bounds = [("ge", "raw.time", query.since), ("lt", "raw.time", query.until)]
        else:
            return super().search(query)
        found: Any = self
        for operator, key, value in bounds:
            if value is not None:
                found = Container.search(found, Comparison(operator, key, value))
        return found


def _only(values: Any, name: str) -> Any:
    if len(values) != 1:
        raise ValueError(f"{name}: one at a time, got {', '.join(map(str, values)) or 'none'}; search for each")
    return values[0]
