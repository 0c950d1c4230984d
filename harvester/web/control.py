"""The daemon's local socket: commands that change something are handed to the process that may.

A Unix socket beside the ledger, mode 0600: who may open it may also write the ledger.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from harvester.domain import errors
from harvester.domain.errors import HarvesterError, LuneError
from harvester.domain.ledger import Ledger
from harvester.domain.ports import Archive
from harvester.domain.purchases import Purchase
from harvester.events.dispatch import Announcer
from harvester.harvest.accounts import AccountBook
from harvester.harvest.purchase import Placer
from harvester.harvest.track import Tracker
from harvester.harvest.verify import Discrepancy, Finding, reopen
from harvester.web.address import control_path, reachable

log = structlog.get_logger()

_LARGEST_BODY = 16 * 1024 * 1024


def control_app(
    tracker: Tracker,
    placer: Placer,
    book: AccountBook,
    ledger: Ledger,
    archive: Archive,
    clock: Callable[[], datetime],
    wake: Callable[[str], None],
    pace: Callable[[], Mapping[str, float]],
    more: Iterable[web.RouteDef] = (),
) -> web.Application:
    """Make the handlers: track, place, retry, repair. Each answers when what it did is durable.

    ``pace`` is told at ``GET /pace``; ``more`` routes are served beside them.
    """

    async def tell_pace(_: web.Request) -> web.Response:
        return web.json_response(dict(pace()))

    async def track(request: web.Request) -> web.Response:
        body = await request.json()
        found = await tracker.track(
            body["references"], by_key=body["by_key"], account_id=body["account_id"]
        )
        wake("collect")
        return web.json_response([asdict(one) for one in found])

    async def retry(request: web.Request) -> web.Response:
        body = await request.json()
        due = await ledger.retry_certificates(clock(), body["order_ids"])
        wake("collect")
        return web.json_response(due)

    async def repair(request: web.Request) -> web.Response:
        discrepancies = [
            Discrepancy(**{**one, "finding": Finding(one["finding"])})
            for one in await request.json()
        ]
        count = await reopen(ledger, archive, discrepancies, clock())
        wake("collect")
        return web.json_response(count)

    async def place(request: web.Request) -> web.Response:
        body = await request.json()
        account = await book.account(body["account_id"])
        purchase = Purchase(body["kind"], body["request"])
        placed = await placer.place(account, purchase, body["idempotency_key"])
        wake("collect")
        return web.json_response(asdict(placed))

    app = web.Application(client_max_size=_LARGEST_BODY, middlewares=[_faults_as_answers])
    app.add_routes(
        [
            web.post("/track", track),
            web.post("/place", place),
            web.post("/retry", retry),
            web.post("/repair", repair),
            web.get("/pace", tell_pace),
            *more,
        ]
    )
    return app


def event_routes(announcer: Announcer, clock: Callable[[], datetime]) -> list[web.RouteDef]:
    """Make the handler that queues events again for receivers, or hurries what is queued."""

    async def resend(request: web.Request) -> web.Response:
        body = await request.json()
        again = await announcer.resend(body["seqs"], body["receiver"], clock())
        return web.json_response(again)

    return [web.post("/resend", resend)]


@web.middleware
async def _faults_as_answers(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        answer: web.StreamResponse = await handler(request)
    except HarvesterError as error:
        return web.json_response(_fault(error), status=503)
    except (KeyError, TypeError, ValueError, json.JSONDecodeError) as error:
        body = {"error": "BadRequest", "message": f"not a request of ours: {type(error).__name__}"}
        return web.json_response(body, status=400)
    return answer


def _fault(error: HarvesterError) -> dict[str, Any]:
    # The nearest class of the tree: a narrower one is known to its own module only.
    name = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
    if not isinstance(error, LuneError):
        return {"error": name, "message": str(error)}
    request = {
        "method": error.method,
        "path": error.path,
        "status": error.status,
        "code": error.code,
        "cf_ray": error.cf_ray,
    }
    return {"error": name, "message": error.message, "request": request}


@asynccontextmanager
async def serve_control(app: web.Application, ledger: Path) -> AsyncIterator[None]:
    """Serve on the ledger's socket while inside; the caller holds the ledger's lock."""
    path = control_path(ledger)
    # Whoever left it behind is dead: the lock is ours.
    path.unlink(missing_ok=True)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=2)
    await runner.setup()
    listener = socket.socket(socket.AF_UNIX)
    try:
        _bind(listener, path)
        # Not a UnixSite: from Python 3.13 on it would remove a name that is gone by then.
        await web.SockSite(runner, listener).start()
        yield
    finally:
        await runner.cleanup()
        listener.close()
        with contextlib.suppress(OSError):
            path.unlink()


def _bind(listener: socket.socket, path: Path) -> None:
    before = os.umask(0o177)
    try:
        with reachable(path) as name:
            listener.bind(name)
    finally:
        os.umask(before)
