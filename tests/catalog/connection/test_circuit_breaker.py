"""The circuit breaker of a catalog that takes connections and says nothing; and what a session hears of trouble."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from tiled.structures.array import ArrayStructure

from bluesky_ptychonn.catalog.connection import circuit_breaker as breaker_module
from bluesky_ptychonn.catalog.connection.circuit_breaker import CircuitBreaker
from bluesky_ptychonn.catalog.connection.errors import CatalogUnavailableError
from bluesky_ptychonn.catalog.connection.http import TiledNode
from bluesky_ptychonn.catalog.connection.requests import send_once
from bluesky_ptychonn.catalog.runs.frame_source import TiledFrames


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
    monkeypatch.setattr(breaker_module, "_READ_S", (0.2, 0.5))
    monkeypatch.setattr(breaker_module, "_PROBE_S", 0.1)
    monkeypatch.setattr(breaker_module, "_EVERY_S", 0.05)
    server = Mute()
    with httpx.Client() as client:
        context = SimpleNamespace(http_client=client, api_uri=server.uri)
        yield SimpleNamespace(server=server, context=context, path_parts=())
    server.close()


def until(condition: Any, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(condition())


def test_a_catalog_that_takes_connections_and_says_nothing_costs_one_time_out(mute: Any) -> None:
    asked: list[float] = []
    breaker = CircuitBreaker(mute, lambda: asked.append(time.monotonic()), own=True)
    breaker.wait()
    with pytest.raises(CatalogUnavailableError) as caught:
        send_once(lambda: mute.context.http_client.get(mute.server.uri), "c")
    breaker.record_failure(caught.value)
    began = time.monotonic()
    for _ in range(50):
        with pytest.raises(CatalogUnavailableError, match="catalog c does not answer: timed out"):
            breaker.wait()
    assert time.monotonic() - began < 0.1
    assert breaker.is_open
    assert len(asked) == 1
    time.sleep(0.2)
    mute.server.speaks = True
    assert until(lambda: not breaker.is_open)
    breaker.wait()
    assert len(asked) == 2
    assert mute.context.http_client.timeout.read == 0.2  # it was away, not slow


def test_a_catalog_that_is_alive_and_slow_gets_more_time(mute: Any) -> None:
    mute.server.speaks = True
    breaker = CircuitBreaker(mute, own=True)
    for expected in (0.4, 0.5):
        with pytest.raises(ConnectionError), breaker.recording():
            raise CatalogUnavailableError("catalog c does not answer: timed out", timed_out=True)
        assert until(lambda: not breaker.is_open)
        assert mute.context.http_client.timeout.read == expected


def test_a_users_own_client_keeps_its_time_outs(mute: Any) -> None:
    before = mute.context.http_client.timeout
    CircuitBreaker(mute)
    assert mute.context.http_client.timeout == before


@pytest.mark.parametrize("known", [False, True])
def test_frames_that_cannot_be_read_are_heard_of(mute: Any, monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    """Whether it is the array that cannot be found, or its frames that cannot be had."""
    if known:
        structure = asdict(ArrayStructure.from_array(np.zeros((2, 4, 4), "<u2")))
        monkeypatch.setattr(TiledNode, "attributes", lambda self, **_: {"structure": structure})
    breaker = CircuitBreaker(mute, own=True)
    source = TiledFrames(mute, ("array",), (4, 4), local=False, breaker=breaker)
    fetched = source.read([0, 1])
    assert not np.any(fetched.found)
    assert fetched.unreachable
    assert breaker.is_open
    with pytest.raises(CatalogUnavailableError, match="does not answer: timed out"):
        source.read([0])
    mute.server.speaks = True
    assert until(lambda: not breaker.is_open)
