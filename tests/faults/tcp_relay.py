"""A relay of bytes before a server: it begins to listen late, speaks TLS, or never answers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass(slots=True)
class TcpRelay:
    """Passes bytes to the server at ``upstream`` (a base URL) and back.

    Without one it gives this ``answer`` to whoever sent something, and hangs up. ``connections``
    counts what was accepted, TLS handshake included; ``received`` is what came on them.
    """

    upstream: str = ""
    answer: bytes = b""
    connections: int = 0
    received: bytearray = field(default_factory=bytearray)
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def base_url(self, scheme: str = "http", host: str = "127.0.0.1") -> str:
        return f"{scheme}://{host}:{self.port}/v1"

    async def listen(
        self, sock: socket.socket | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        """Begin to take connections, on a socket that is bound already or on one of its own."""
        if sock is None:
            sock = bound_socket()
        self._server = await asyncio.start_server(self._serve, sock=sock, ssl=tls)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in (tasks := list(self._tasks)):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            if not self.upstream:
                self.received += await reader.read(65_536)
                writer.write(self.answer)
                await writer.drain()
            else:
                await self._pass_on(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = urlsplit(self.upstream)
        far_reader, far_writer = await asyncio.open_connection(address.hostname, address.port)
        with contextlib.closing(far_writer):
            back = asyncio.create_task(_copy(far_reader, writer))
            try:
                while data := await reader.read(65_536):
                    self.received += data
                    far_writer.write(data)
                    await far_writer.drain()
            finally:
                back.cancel()
                await asyncio.gather(back, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def relaying(
    upstream: str = "", tls: ssl.SSLContext | None = None, answer: bytes = b""
) -> AsyncIterator[TcpRelay]:
    """TcpRelay on a port of its own, from now on."""
    relay = TcpRelay(upstream, answer)
    await relay.listen(tls=tls)
    try:
        yield relay
    finally:
        await relay.stop()


def bound_socket(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """Return a socket that has an address and does not listen: connections are refused."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.bind((host, port))
    return sock


@contextmanager
def never_accepting(sock: socket.socket) -> Iterator[None]:
    """Listen without room for another connection: whoever connects gets no answer at all."""
    sock.listen(0)
    fillers = [socket.socket(sock.family) for _ in range(3)]
    try:
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(sock.getsockname())
        yield
    finally:
        for filler in fillers:
            filler.close()
