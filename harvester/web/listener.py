"""The listener: HTTP on one address, bounded in everything a stranger could make it hold.

A head has 16 KiB and ten seconds to arrive, a connection ten idle seconds, an answer five minutes
to be taken, and there are 256 connections: for one more, those go that have been waiting longest
for the rest of a request. What is over is cut off; the harvest goes on beside it.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from operator import itemgetter
from typing import Any, Final

from aiohttp import web
from aiohttp.typedefs import Handler

from harvester.web.problems import Problem, problem

MOST_CONNECTIONS: Final = 256
_CLOSED_AT_ONCE: Final = 32
_ACCEPTED_AT_ONCE: Final = 1
"""Connections between two turns of everything else: the busier the loop, the fewer a second, and
and under a flood of them more webhooks are taken than with eight."""
_QUEUED: Final = 1024
_LARGEST_HEAD: Final = 16 * 1024
_IDLE_SECONDS: Final = 10.0
_ANSWER_SECONDS: Final = 300.0
_UNREAD_MILLISECONDS: Final = 20_000
_LARGEST_LINE: Final = 8190
_MOST_HEADERS: Final = 64
_ENDING_SECONDS: Final = 1.0
_NAME: Final = "harvester"
_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"Server: harvester\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)

# What strangers send wrongly is not for our log, and its tracebacks would quote it.
_quiet = logging.getLogger("harvester.web.listener")
_quiet.disabled = True


class _Connection(web.RequestHandler):
    """One connection, cut off when it is one too many or its request's head too large."""

    __slots__ = ("_head", "_server", "_waits_since")

    def __init__(self, server: _Server) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=_IDLE_SECONDS,
            lingering_time=_ENDING_SECONDS,
            max_line_size=_LARGEST_LINE,
            max_field_size=_LARGEST_LINE,
            max_headers=_MOST_HEADERS,
            auto_decompress=False,
            access_log=None,  # type: ignore[arg-type]  # its annotation forgets that None is off
            logger=_quiet,
        )
        self._head = 0
        self._server = server
        self._waits_since = self._loop.time()

    @property
    def claim(self) -> tuple[bool, float] | None:
        """How good its claim to a place is while a whole request is awaited; None: it works.

        Whoever was answered before comes before who never was, then who began to wait later.
        """
        request = self._current_request
        if self._messages or (request is not None and request.content.is_eof()):
            return None
        return self._request_count > (request is not None), self._waits_since

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not self._server.admit(self):
            transport.close()
            return
        # The kernel gives up on a peer that takes nothing, also when we closed already.
        transport.get_extra_info("socket").setsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_MILLISECONDS
        )
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._server.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        waits_for_head = self._waiter is not None
        super().data_received(data)
        if not waits_for_head or self._messages:
            self._head = 0
            if self._messages:
                self._waits_since = self._loop.time()
            return
        self._head += len(data)
        if self._head > _LARGEST_HEAD and self.transport is not None:
            self.transport.write(_TOO_LARGE)
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - the library's signature
    ) -> web.StreamResponse:
        super().handle_error(request, status, exc)  # raises when an answer was begun
        answer = problem(Problem(status))
        answer.headers["Server"] = _NAME
        answer.force_close()
        return answer


class _Server(web.Server):
    """Makes connections, and room for them."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._open: set[_Connection] = set()

    def __call__(self) -> web.RequestHandler:
        return _Connection(self)

    def admit(self, connection: _Connection) -> bool:
        """Count a connection in if there is room, or can be made."""
        if len(self._open) >= MOST_CONNECTIONS:
            self._make_room()
        if len(self._open) >= MOST_CONNECTIONS:
            return False
        self._open.add(connection)
        return True

    def forget(self, connection: _Connection) -> None:
        """Count a connection out. Idempotent."""
        self._open.discard(connection)

    def _make_room(self) -> None:
        """Close some of those that only hold a place, the longest waiting first.

        Whoever sends its request at once is served, however many others send none. Several go at
        a time, so that a flood does not have every one looked for among all.
        """
        waiting = [(claim, one) for one in self._open if (claim := one.claim) is not None]
        for _, one in heapq.nsmallest(_CLOSED_AT_ONCE, waiting, key=itemgetter(0)):
            self.forget(one)
            one.force_close()


def listener_app(*middlewares: Any) -> web.Application:
    """Make the application that routes and sub-applications are added to."""
    app = web.Application(middlewares=[_within_five_minutes, *middlewares])
    app.on_response_prepare.append(_mark)
    return app


@web.middleware
async def _within_five_minutes(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Cut off an answer that takes too long to be made or to be read, its last byte included."""
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            answer = await handler(request)
            await answer.prepare(request)
            await answer.write_eof()
            return answer
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionAbortedError("an answer took too long") from None


async def _mark(_: web.Request, answer: web.StreamResponse) -> None:
    answer.headers["Server"] = _NAME  # the library would tell its version
    answer.headers["X-Content-Type-Options"] = "nosniff"
    answer.headers.setdefault("Cache-Control", "no-store")


@asynccontextmanager
async def serve_listener(app: web.Application, host: str, port: int) -> AsyncIterator[int]:
    """Serve on an address while inside; yields the port, a free one for port 0.

    Raises ``OSError`` when the address cannot be had.
    """
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        made = runner.server
        if made is None:
            raise RuntimeError("the application was not set up")
        server = _Server(made.request_handler, request_factory=made.request_factory)
        listening = await asyncio.get_running_loop().create_server(
            server, host, port, backlog=_ACCEPTED_AT_ONCE
        )
        for one in listening.sockets:
            # The loop takes its backlog at a time; the kernel's queue may well be longer.
            with socket.fromfd(one.fileno(), one.family, one.type) as same:
                same.listen(_QUEUED)
        try:
            yield listening.sockets[0].getsockname()[1]
        finally:
            listening.close()
            server.pre_shutdown()
            await server.shutdown(_ENDING_SECONDS)
    finally:
        await runner.cleanup()
