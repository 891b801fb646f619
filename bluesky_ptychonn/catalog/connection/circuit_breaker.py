"""That a catalog is dead is found out once, for all runs; that it is back, by nobody who works."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from bluesky_ptychonn.catalog.connection.errors import CatalogUnavailableError
from bluesky_ptychonn.catalog.connection.requests import why_silent

log = logging.getLogger(__name__)

_CONNECT_S = 5.0
_READ_S = (10.0, 60.0)  # for an answer: at first, and at most for a catalog that is alive and slow
_SLOW_FOR_S = 300.0  # how long a catalog counts as slow
_PROBE_S = 5.0  # for an answer that costs the catalog next to nothing
_EVERY_S = 1.0
_FORGOTTEN_S = 60.0  # nobody asked for so long: nobody waits


class CircuitBreaker:
    """Whether a catalog can be asked now.

    After a request without an answer every other fails at once, until a thread of this object has had an answer: so a
    catalog that takes a connection and says nothing holds a worker up for one time-out, however many runs it has.

    Parameters
    ----------
    root : Tiled client
        Any client of the catalog.
    before_request : callable, optional
        Called before every request: `live.request_pacing.RequestPacer.wait`.
    own : bool
        Whether the client's time-outs are ours to set.
    """

    def __init__(self, root: Any, before_request: Callable[[], None] | None = None, *, own: bool = False) -> None:
        self._http = root.context.http_client
        self._uri = str(root.context.api_uri)
        self._before_request = before_request
        self._own = own
        self._mutex = threading.Lock()
        self._problem = ""
        self._timed_out = False
        self._last_request = 0.0
        self._thread: threading.Thread | None = None
        self._read_s, self._slow_since = _READ_S[0], 0.0
        self._set_timeout()

    @property
    def is_open(self) -> bool:
        """Whether the catalog did not answer, and has not since."""
        return bool(self._problem)

    def wait(self) -> None:
        """Wait for the moment to ask.

        Raises
        ------
        CatalogUnavailableError
            At once, while the catalog does not answer.
        """
        self._last_request = time.monotonic()
        if problem := self._problem:
            self._start_probing()
            raise CatalogUnavailableError(problem)
        if self._read_s > _READ_S[0] and self._last_request - self._slow_since > _SLOW_FOR_S:
            self._read_s = _READ_S[0]
            self._set_timeout()
        if self._before_request is not None:
            self._before_request()

    def record_failure(self, error: Exception) -> None:
        """Hear that a request had no answer: every other fails at once from now on."""
        if not self._problem:
            self._timed_out = isinstance(error, CatalogUnavailableError) and error.timed_out
            self._problem = str(error)
            self._last_request = time.monotonic()
            self._start_probing()

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Record the failure that is raised inside."""
        try:
            yield
        except ConnectionError as error:
            self.record_failure(error)
            raise

    def _start_probing(self) -> None:
        """See to it that somebody finds out when the catalog answers again."""
        with self._mutex:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._probe, name="ptychonn circuit breaker", daemon=True)
                self._thread.start()

    def _probe(self) -> None:
        while time.monotonic() - self._last_request < _FORGOTTEN_S:
            # Where the connection was closed, the next request says so, in words.
            if self._http.is_closed or not why_silent(self._uri, _PROBE_S, self._http):
                if self._timed_out:  # alive all the time, and slower than we waited for
                    self._read_s, self._slow_since = min(2 * self._read_s, _READ_S[1]), time.monotonic()
                    self._set_timeout()
                self._problem = ""
                return
            self._timed_out = False
            time.sleep(_EVERY_S)

    def _set_timeout(self) -> None:
        import httpx

        if self._own:
            self._http.timeout = httpx.Timeout(self._read_s, connect=_CONNECT_S)
