"""The line to a catalog that takes connections and says nothing; and what a session hears of trouble."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from bluesky_ptychonn.catalog.connection import circuit_breaker as line_module
from bluesky_ptychonn.catalog.connection.circuit_breaker import CircuitBreaker
from bluesky_ptychonn.catalog.connection.http import CatalogUnavailableError
from bluesky_ptychonn.catalog.runs.frame_source import Fetched, WatchedFrames
from bluesky_ptychonn.live.pipeline.testing import FakeSource


class Mute:
    """A server on loopback that accepts every connection, and answers once `speaks`."""

    def __init__(self) -> None:
        self.speaks = False
        self._held: list[socket.socket] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._socket.getsockname()[1]}/api/v1/"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                if self.speaks:
                    with connection:
                        connection.recv(4096)
                        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
                else:
                    self._held.append(connection)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)
        for connection in self._held:
            connection.close()


@pytest.fixture
def mute(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(line_module, "_READ_S", (0.2, 0.5))
    monkeypatch.setattr(line_module, "_PROBE_S", 0.1)
    monkeypatch.setattr(line_module, "_EVERY_S", 0.05)
    server = Mute()
    with httpx.Client() as client:
        yield SimpleNamespace(server=server, context=SimpleNamespace(http_client=client, api_uri=server.uri))
    server.close()


def until(condition: Any, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(condition())


def test_a_catalog_that_takes_connections_and_says_nothing_costs_one_time_out(mute: Any) -> None:
    asked: list[float] = []
    line = CircuitBreaker(mute, lambda: asked.append(time.monotonic()), own=True)
    line.wait()
    with pytest.raises(httpx.ReadTimeout) as caught:
        mute.context.http_client.get(mute.server.uri)
    line.lost(CatalogUnavailableError(f"catalog c does not answer: {caught.value}"))
    began = time.monotonic()
    for _ in range(50):
        with pytest.raises(CatalogUnavailableError, match="catalog c does not answer: timed out"):
            line.wait()
    assert time.monotonic() - began < 0.1
    assert line.away
    assert len(asked) == 1
    time.sleep(0.2)
    mute.server.speaks = True
    assert until(lambda: not line.away)
    line.wait()
    assert len(asked) == 2
    assert mute.context.http_client.timeout.read == 0.2  # it was away, not slow


def test_a_catalog_that_is_alive_and_slow_gets_more_time(mute: Any) -> None:
    mute.server.speaks = True
    line = CircuitBreaker(mute, own=True)
    for expected in (0.4, 0.5):
        with pytest.raises(ConnectionError), line.watched():
            raise CatalogUnavailableError("catalog c does not answer: timed out")
        assert until(lambda: not line.away)
        assert mute.context.http_client.timeout.read == expected


def test_a_users_own_client_keeps_its_time_outs(mute: Any) -> None:
    before = mute.context.http_client.timeout
    CircuitBreaker(mute)
    assert mute.context.http_client.timeout == before


def test_frames_that_cannot_be_read_are_heard_of(mute: Any) -> None:
    line, source = CircuitBreaker(mute), FakeSource(outage=True)
    fetched: Fetched = WatchedFrames(source, line).read([0, 1])
    assert not np.any(fetched.found)
    assert line.away
