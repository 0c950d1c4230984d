"""A receiver of events on loopback, that answers as it should and remembers what it was sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass(frozen=True, slots=True)
class Sent:
    """One request, and whether it was answered with success."""

    headers: dict[str, str]
    body: bytes
    event: dict[str, Any]
    accepted: bool


@dataclass(slots=True)
class Receiver:
    """``judge`` gives the status for an event; ``hold`` keeps answers back while it is unset."""

    url: str = ""
    judge: Callable[[dict[str, Any]], int] = lambda _: 204
    sent: list[Sent] = field(default_factory=list)
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    headers: dict[str, str] = field(default_factory=dict)
    answer: bytes = b""
    at_once: int = 0
    most_at_once: int = 0

    @property
    def accepted(self) -> list[dict[str, Any]]:
        """The events that were answered with success, repetitions too."""
        return [one.event for one in self.sent if one.accepted]

    async def receive(self, request: web.Request) -> web.Response:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            body = await request.read()
            event = json.loads(body)
            await self.hold.wait()
            status = self.judge(event)
            headers = {name.lower(): value for name, value in request.headers.items()}
            self.sent.append(Sent(headers, body, event, 200 <= status < 300))
            return web.Response(status=status, headers=self.headers, body=self.answer)
        finally:
            self.at_once -= 1


@asynccontextmanager
async def receiving(**more: Any) -> AsyncIterator[Receiver]:
    """Run a receiver on a free port of loopback while inside."""
    one = Receiver(**more)
    one.hold.set()
    app = web.Application()
    app.add_routes([web.post("/events", one.receive)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        one.url = f"http://127.0.0.1:{port}/events"
        yield one
    finally:
        one.hold.set()
        await runner.cleanup()
