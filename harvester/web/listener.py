"""Connections of the listener, bounded in everything a stranger could make it hold.

A head has 16 KiB and ten seconds to arrive, a connection ten idle seconds, an answer five minutes
to be taken (:class:`harvester.context.Limits`), and there are 256 connections: for one more, those
go that have been waiting longest for the rest of a request. What is over is cut off; the harvest
goes on beside it.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import socket
from operator import itemgetter
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from harvester.context import Limits
from harvester.web.problems import Problem, problem

MOST_CONNECTIONS: Final = 256
_CLOSED_AT_ONCE: Final = 32
_LARGEST_HEAD: Final = 16 * 1024
_LARGEST_LINE: Final = 8190
_MOST_HEADERS: Final = 64
_ENDING_SECONDS: Final = 1.0
_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"Server: harvester\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)

# What strangers send wrongly is not for our log, and its tracebacks would quote it.
_quiet = logging.getLogger("harvester.web.listener")
_quiet.disabled = True


class _Connection(web.RequestHandler):
    """One connection, cut off when it is one too many or its request's head too large."""

    __slots__ = ("_head", "_server", "_unread_milliseconds", "_waits_since")

    def __init__(self, server: Server, limits: Limits) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=limits.request_head,
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
        self._unread_milliseconds = round(limits.unread_response * 1000)
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
        connection = transport.get_extra_info("socket")
        if connection.family != socket.AF_UNIX:
            # The kernel gives up on a peer that takes nothing, also when we closed already.
            connection.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self._unread_milliseconds
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
        answer.headers["Server"] = "harvester"
        answer.force_close()
        return answer


class Server(web.Server):
    """Makes connections for an application that was set up as ``made``, and room for them."""

    def __init__(self, made: web.Server, limits: Limits) -> None:
        super().__init__(made.request_handler, request_factory=made.request_factory)
        self.loop = asyncio.get_running_loop()
        self._limits = limits
        self._open: set[_Connection] = set()

    def __call__(self) -> web.RequestHandler:
        """Make the handler of a new connection."""
        return _Connection(self, self._limits)

    async def end(self, seconds: float) -> None:
        """Let requests under way end for so long, then cut them off."""
        self.pre_shutdown()
        await self.shutdown(seconds)

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


def respond_in_time(seconds: float) -> Middleware:
    """Make what cuts off an answer that is not made and read within so many seconds."""

    @web.middleware
    async def respond(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            async with asyncio.timeout(seconds):
                answer = await handler(request)
                await answer.prepare(request)
                await answer.write_eof()
                return answer
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionAbortedError("an answer took too long") from None

    return respond
