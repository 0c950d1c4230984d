"""The one HTTP application, and where it is served: the listener and the local socket.

Health, metrics and webhooks are open to whoever reaches the address, the API below /v1 to whoever
shows the token; over the local socket no token is needed, and only there commands reach /control.
"""

from __future__ import annotations

import hmac
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client.aiohttp import make_aiohttp_handler

from harvester.context import Limits
from harvester.domain.errors import ConfigurationError
from harvester.web.listener import Server, respond_in_time
from harvester.web.local_socket import reachable, socket_path
from harvester.web.metrics import Metrics
from harvester.web.problems import LIMITS, Problem, faults_as_problems

_ENDING_SECONDS = 1.0
_QUEUED = 1024
_ACCEPTED_AT_ONCE = 1
"""Connections between two turns of everything else: the busier the loop, the fewer a second, and
under a flood of them more webhooks are taken than with eight."""


def make_web_app(
    routes: Iterable[web.RouteDef],
    *,
    v1: Iterable[web.RouteDef],
    control: Iterable[web.RouteDef],
    token: Callable[[], str] | None,
    limits: Limits,
) -> web.Application:
    """Make the application: ``routes`` are open, those below /v1 and /control guarded.

    ``token`` is read at each request to the API.
    """
    app = web.Application(middlewares=[respond_in_time(limits.response), faults_as_problems])
    app[LIMITS] = limits
    app.on_response_prepare.append(_mark)
    app.add_routes(routes)
    app.add_subapp("/v1", _sub_app(v1, _requiring_token(token)))
    app.add_subapp("/control", _sub_app(control, _requiring_local))
    return app


def _sub_app(routes: Iterable[web.RouteDef], guard: Middleware) -> web.Application:
    app = web.Application(middlewares=[guard])
    app.add_routes(routes)
    return app


def metrics_routes(metrics: Metrics) -> list[web.RouteDef]:
    """Return ``/metrics``."""
    expose = make_aiohttp_handler(metrics.registry)

    async def scrape(request: web.Request) -> web.StreamResponse:
        await metrics.refresh()
        return await expose(request)

    return [web.get("/metrics", scrape)]


class Serving:
    """An application that is ready to be served, on an address and on the local socket."""

    def __init__(self, runner: web.AppRunner, limits: Limits) -> None:
        self._runner = runner
        self._limits = limits

    @asynccontextmanager
    async def on_address(self, host: str, port: int) -> AsyncIterator[int]:
        """Serve on an address while inside; yields the port, a free one for port 0.

        Raises ``OSError`` when the address cannot be had.
        """
        server = self._server()
        loop = server.loop
        listening = await loop.create_server(server, host, port, backlog=_ACCEPTED_AT_ONCE)
        for one in listening.sockets:
            # The loop takes its backlog at a time; the kernel's queue may well be longer.
            with socket.fromfd(one.fileno(), one.family, one.type) as same:
                same.listen(_QUEUED)
        try:
            yield listening.sockets[0].getsockname()[1]
        finally:
            listening.close()
            await server.end(_ENDING_SECONDS)

    @asynccontextmanager
    async def on_socket(self, ledger: Path) -> AsyncIterator[None]:
        """Serve on the ledger's local socket while inside; the caller holds the ledger's lock."""
        path = socket_path(ledger)
        # Whoever left it behind is dead: the lock is ours.
        path.unlink(missing_ok=True)
        server = self._server()
        listener = socket.socket(socket.AF_UNIX)
        try:
            _bind(listener, path)
            # Not create_unix_server: it would remove a name that is gone by then (Python 3.13).
            listening = await server.loop.create_server(server, sock=listener)
            try:
                yield
            finally:
                listening.close()
                await server.end(_ENDING_SECONDS)
        finally:
            listener.close()
            path.unlink(missing_ok=True)

    def _server(self) -> Server:
        made = self._runner.server
        if made is None:
            raise RuntimeError("the application was not set up")
        return Server(made, self._limits)


@asynccontextmanager
async def serving(app: web.Application, limits: Limits) -> AsyncIterator[Serving]:
    """Set an application up while inside."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        yield Serving(runner, limits)
    finally:
        await runner.cleanup()


@web.middleware
async def _requiring_local(request: web.Request, handler: Handler) -> web.StreamResponse:
    if not _is_local(request):
        raise Problem(404)
    return await handler(request)


def _requiring_token(token: Callable[[], str] | None) -> Middleware:
    @web.middleware
    async def require(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not _is_local(request):
            _check_token(request, token)
        return await handler(request)

    return require


def _is_local(request: web.Request) -> bool:
    """Tell whether a request came over the local socket, which only our user may open."""
    transport = request.transport
    connection = None if transport is None else transport.get_extra_info("socket")
    return connection is not None and connection.family == socket.AF_UNIX


def _check_token(request: web.Request, token: Callable[[], str] | None) -> None:
    if token is None:
        raise Problem(403, "no token is configured: set http.token_file")
    scheme, _, shown = request.headers.get("Authorization", "").partition(" ")
    try:
        wanted = token()
    except ConfigurationError:
        raise Problem(503, "the configured token cannot be read") from None
    good = hmac.compare_digest(shown.strip().encode(errors="replace"), wanted.encode())
    if scheme.lower() != "bearer" or not good:
        raise Problem(401, headers={"WWW-Authenticate": "Bearer"})


async def _mark(_: web.Request, answer: web.StreamResponse) -> None:
    answer.headers["Server"] = "harvester"  # the library would tell its version
    answer.headers["X-Content-Type-Options"] = "nosniff"
    answer.headers.setdefault("Cache-Control", "no-store")


def _bind(listener: socket.socket, path: Path) -> None:
    before = os.umask(0o177)
    try:
        with reachable(path) as name:
            listener.bind(name)
    finally:
        os.umask(before)
