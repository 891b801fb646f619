"""A TCP proxy on loopback that misbehaves on demand: between everybody and the catalog."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

_VERBS = (b"GET ", b"POST ", b"PUT ", b"PATCH ", b"DELETE ", b"HEAD ")
_ERROR = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\nconnection: close\r\n\r\naway"


class Proxy:
    """Forwards connections to a port of loopback.

    Attributes
    ----------
    port : int
        Where it listens; the same from the first moment to the last.
    target : int
        Where it leads; may change.
    delay_s : float
        Added to every request.
    silent : bool
        New connections are accepted and never answered.
    error_share, cut_share : float
        Share of the requests that are answered with 503, or whose connection is reset.
    """

    def __init__(self, target: int, seed: int = 0) -> None:
        self.target = target
        self.delay_s = 0.0
        self.silent = False
        self.error_share = self.cut_share = 0.0
        self._rng = random.Random(seed)
        self._open: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self.port = 0
        self.accept()

    def _do(self, what: Callable[[], Any]) -> None:
        asyncio.run_coroutine_threadsafe(what(), self._loop).result(10)

    def accept(self) -> None:
        """Listen (again)."""

        async def listen() -> None:
            if self._server is None:
                self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, reuse_address=True)
                self.port = self._server.sockets[0].getsockname()[1]

        self._do(listen)

    def refuse(self) -> None:
        """Refuse connections, and reset those there are."""

        async def close() -> None:
            if self._server is not None:
                self._server.close()
                self._server = None
            for connection in list(self._open):
                connection.reset()

        self._do(close)

    def fall_silent(self) -> None:
        """Accept, and never answer; connections that are open now stay open and dead for ever, as after a cut cable."""

        async def silence() -> None:
            self.silent = True
            for connection in self._open:
                connection.dead = True

        self._do(silence)

    def mend(self) -> None:
        """Be a good proxy from now on, for new connections."""
        self.delay_s = self.error_share = self.cut_share = 0.0
        self.silent = False
        self.accept()

    def close(self) -> None:
        """End."""
        self.refuse()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        with contextlib.suppress(RuntimeError):
            self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self, reader, writer)
        connection.dead = self.silent
        self._open.add(connection)
        try:
            await connection.run()
        finally:
            self._open.discard(connection)


class _Connection:
    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.dead = False
        self._proxy = proxy
        self._reader, self._writer = reader, writer
        self._ends = [writer]

    async def run(self) -> None:
        """Carry bytes both ways until one end closes."""
        tasks = [asyncio.current_task()]
        try:
            back = None
            while data := await self._reader.read(1 << 16):
                if self.dead:
                    continue  # acknowledged by our kernel, seen by nobody
                if data.startswith(_VERBS) and not await self._let_pass():
                    return
                if back is None:
                    reader, there = await asyncio.open_connection("127.0.0.1", self._proxy.target)
                    self._ends.append(there)
                    back = asyncio.ensure_future(self._carry_back(reader))
                    tasks.append(back)
                there.write(data)
                await there.drain()
        except OSError:
            self.reset()
        finally:
            for task in tasks[1:]:
                task.cancel()
            for end in self._ends:
                end.close()

    async def _let_pass(self) -> bool:
        proxy = self._proxy
        if proxy.delay_s:
            await asyncio.sleep(proxy.delay_s)
        luck = proxy._rng.random()
        if luck < proxy.cut_share:
            self.reset()
            return False
        if luck < proxy.cut_share + proxy.error_share:
            self._writer.write(_ERROR)
            await self._writer.drain()
            return False
        return True

    async def _carry_back(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if not self.dead:
                    self._writer.write(data)
                    await self._writer.drain()
        if not self.dead:
            self._writer.close()

    def reset(self) -> None:
        """Close at once, with RST."""
        for end in self._ends:
            sock = end.get_extra_info("socket")
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.transport.abort()
