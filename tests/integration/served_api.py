"""A loopback API that answers by path, and time that passes at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


def lune_error(status: int, code: str, message: str = "no") -> web.Response:
    error = {"error_code": code, "message": message}
    return web.json_response({"error": error, "errors": [error]}, status=status)


class FastTime:
    """A clock that jumps over every sleep."""

    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


@dataclass
class Served:
    """What it answers by path, and what it was asked."""

    base_url: str = ""
    replies: dict[str, Callable[[web.BaseRequest], Any]] = field(default_factory=dict)
    requests: list[web.BaseRequest] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(request)
        self.asked.set()
        path = request.raw_path.partition("?")[0].removeprefix("/v1")
        reply = self.replies[path](request) if path in self.replies else web.Response(status=404)
        if asyncio.iscoroutine(reply):
            reply = await reply
        return reply if isinstance(reply, web.StreamResponse) else web.json_response(reply)

    @property
    def paths(self) -> list[str]:
        return [request.raw_path for request in self.requests]


@asynccontextmanager
async def served_api(own_account: dict[str, Any]) -> AsyncIterator[Served]:
    served = Served()
    served.replies["/accounts/me"] = lambda _: own_account
    runner = web.ServerRunner(web.Server(served.handle))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    served.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield served
    await runner.cleanup()
