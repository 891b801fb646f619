"""The container of raw runs, over a connection of the writer's own that gives up on a dead server soon."""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bluesky_ptychonn.catalog.connection.connect import connect_catalog
from bluesky_ptychonn.catalog.connection.layout import runs_path
from bluesky_ptychonn.catalog.connection.requests import send_once, why_silent

if TYPE_CHECKING:
    import httpx

_REQUEST_S = 15.0  # a catalog with 2 s of latency on every request still answers; a half-open one is noticed
_CONNECT_S = 5.0
_PROBE_S = 5.0
_REPEATABLE = ("GET", "HEAD", "PUT", "DELETE")


class RawCatalog:
    """Where raw runs go, see `raw.writer.raw_writer`; connects when it is asked to. For one thread."""

    def __init__(self, catalog: Any, raw: str | None) -> None:
        self._catalog = catalog
        self._raw = raw
        self._named: Any = None  # the client that `connect` gave
        self._root: Any = None
        self._runs: Any = None
        self._asked: float | None = None

    @property
    def silent_s(self) -> float:
        """How long the request of this moment has been without an answer, s. For any thread."""
        asked = self._asked
        return 0.0 if asked is None else time.monotonic() - asked

    @property
    def runs(self) -> Any:
        """Tiled client of the container of runs.

        Raises
        ------
        ValueError
            When `catalog` names none, or one without such a container.
        httpx.HTTPError, OSError
            When it does not answer.
        """
        if self._runs is None:
            with self._asking():
                named = connect_catalog(self._catalog)
            if named is not self._named:
                self.close()
                self._named, self._root = named, self._own(named)
            path = runs_path(self._root, self._raw)
            self._runs = self._root[tuple(path.split("/"))] if path else self._root
        return self._runs

    def answers(self) -> bool:
        """Whether the server answers a plain request now; where it was never reached, whether it can be."""
        import httpx

        try:
            context = self.runs.context
        except httpx.HTTPStatusError as error:  # it answers, if only to refuse
            return not error.response.is_server_error
        except (httpx.HTTPError, OSError, json.JSONDecodeError):  # the last: some other server answers there
            return False
        except RuntimeError:  # the connection was closed under us
            self.close()
            return False
        if context.http_client.is_closed:
            self.close()
            return False
        return not why_silent(str(context.api_uri), _PROBE_S, context.http_client)

    def forget(self) -> None:
        """Look the catalog up anew at the next request: the server may be another process, at another port."""
        self._runs = None

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._root is not None and self._root is not self._named:
            self._root.context.http_client.close()
        self._named = self._root = self._runs = None

    def _own(self, client: Any) -> Any:
        """Return the same container over a connection of its own: others may close theirs, and wait longer than we."""
        import httpx
        from tiled.client.utils import client_for_item

        try:
            context = copy.copy(client.context)
        except TypeError:  # a catalog inside this process has no connection to copy
            return client
        context.http_client.timeout = httpx.Timeout(_REQUEST_S, connect=_CONNECT_S, pool=_CONNECT_S)
        self._try_once(context.http_client)
        return client_for_item(context, client.structure_clients, client.item)

    def _try_once(self, http: Any) -> None:
        """Have every request fail at once where it fails, with an error that Tiled's client does not know.

        It would repeat it for 45 s, and rows that a slow server took after all would be in the table twice.
        """
        send = http.send

        def send_and_fail(request: httpx.Request, **options: Any) -> httpx.Response:
            repeatable = request.method in _REPEATABLE
            with self._asking():
                return send_once(lambda: send(request, **options), request.url.host, repeatable=repeatable)

        http.send = send_and_fail

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        self._asked = time.monotonic()
        try:
            yield
        finally:
            self._asked = None
