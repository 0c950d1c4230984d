"""The whole service against the sandbox, with a client on its listener."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import structlog

from harvester.app import App, open_app
from harvester.config.settings import Settings
from harvester.context import Limits, Stop
from harvester.lune import ClientOptions
from harvester.runtime.service import serve
from harvester.sandbox import Sandbox
from tests.integration.conftest import settings_for

TOKEN = "a-token-for-tests"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}


@dataclass(frozen=True)
class Service:
    """A running service; ``get`` and ``post`` answer with status, headers and body."""

    app: App
    port: int
    session: aiohttp.ClientSession

    async def get(self, path: str, **more: Any) -> tuple[int, Mapping[str, str], bytes]:
        return await self.ask("GET", path, **more)

    async def ask(
        self, method: str, path: str, **more: Any
    ) -> tuple[int, Mapping[str, str], bytes]:
        options: dict[str, Any] = {"headers": AUTHORIZED, "allow_redirects": False} | more
        async with self.session.request(method, path, **options) as answer:
            return answer.status, answer.headers, await answer.read()

    async def json(self, path: str, method: str = "GET", **more: Any) -> Any:
        async with self.session.request(method, path, **({"headers": AUTHORIZED} | more)) as answer:
            return await answer.json(content_type=None)

    async def until(self, condition: Callable[[], Awaitable[object]], seconds: float = 20) -> None:
        async with asyncio.timeout(seconds):
            while not await condition():  # noqa: ASYNC110 - nothing tells of rows
                await asyncio.sleep(0.05)

    async def stored(self, count: int) -> None:
        """Wait until so many certificates are stored."""

        async def are_stored() -> bool:
            found = await self.json("/v1/orders?certificate=stored&limit=500")
            return len(found["orders"]) == count

        await self.until(are_stored)


def with_http(settings: Settings, **http: Any) -> Settings:
    """Change the [http] settings."""
    return Settings.model_validate(settings.model_dump() | {"http": http})


@asynccontextmanager
async def serving(
    sandbox: Sandbox,
    folder: Path,
    *,
    token: str | None = TOKEN,
    token_file: Path | None = None,
    events: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
    options: ClientOptions | None = None,
    **harvest: Any,
) -> AsyncIterator[Service]:
    """Run the service on a free port of loopback while inside; ``events`` is its [events]."""
    settings = settings_for(sandbox, folder, **({"sweep_interval": "200ms"} | harvest))
    settings = with_http(settings, listen="127.0.0.1:0", token=token, token_file=token_file)
    settings = Settings.model_validate(settings.model_dump() | {"events": events or {}})
    stop = Stop()
    with structlog.testing.capture_logs() as lines:
        async with open_app(settings, stop, "test", options=options, limits=limits) as opened:
            daemon = asyncio.create_task(serve(opened))
            try:
                async with asyncio.timeout(20):
                    while not (listening := [one for one in lines if one["event"] == "listening"]):
                        assert not daemon.done(), daemon
                        await asyncio.sleep(0.02)
                port = int(listening[0]["address"].rpartition(":")[2])
                base = f"http://127.0.0.1:{port}"
                async with aiohttp.ClientSession(base) as session:
                    yield Service(opened, port, session)
            finally:
                stop.request()
                await asyncio.wait_for(daemon, 20)
