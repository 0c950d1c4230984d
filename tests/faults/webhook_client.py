"""Lune's part in its webhooks: made by hand, signed, and posted to the real listener."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from harvester.app import App
from harvester.context import Limits
from harvester.runtime.drain import Drain
from harvester.web.app import make_web_app, serving
from harvester.web.lune_webhook import LuneWebhooks
from tests import canaries
from tests.faults.scene import Scene

SECRET = canaries.WEBHOOK_SECRET
PATH = "/webhooks/lune"


def mac(body: bytes, at: str, secret: str = SECRET) -> bytes:
    """Sign as Lune's guide says, independently of the program."""
    return hmac.new(secret.encode(), at.encode() + b"." + body, hashlib.sha256).digest()


def header(
    body: bytes,
    *,
    secret: str = SECRET,
    at: float | None = None,
    organisation: str | None = None,
    form: str = "hex",
) -> str:
    """Return a ``Lune-HMAC`` header's value."""
    text = str(int(time.time() if at is None else at))
    digest = mac(body, text, secret)
    shown = digest.hex() if form == "hex" else base64.b64encode(digest).decode()
    parts = [f"timestamp={text}", f"v1={shown}"]
    if organisation is not None:
        parts.insert(1, f"organisation={organisation}")
    return ",".join(parts)


def event(
    order_id: str, kind: str = "completed", number: int = 1, **changed: Any
) -> dict[str, Any]:
    """Return an event of an order as Lune's schema has it; None leaves a field out."""
    served: dict[str, Any] = {
        "api_version": "v1",
        "event_id": f"event{number}",
        "event_type": f"order.{kind}",
        "sequence": f"2026-03-01 12:00:00.{number:06d}",
        "data": {"order": {"id": order_id, "status": "complete", "email": "someone@example.com"}},
    }
    served |= changed
    return {name: value for name, value in served.items() if value is not None}


def body_of(*events: object) -> bytes:
    """Return a request's body."""
    return json.dumps({"events": events}).encode()


@dataclass
class WebhookClient:
    """Posts to a running listener; ``woken`` counts how often it made the harvest check orders."""

    app: App
    webhooks: LuneWebhooks
    session: aiohttp.ClientSession
    account_id: str
    port: int
    woken: int = 0

    async def post(
        self,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        **signing: Any,
    ) -> int:
        """Send a body, signed unless ``headers`` say otherwise; return the answered status."""
        return (await self.ask(body, headers, **signing))[0]

    async def ask(
        self, body: Any, headers: Mapping[str, str] | None = None, **signing: Any
    ) -> tuple[int, bytes]:
        """Send a body and return status and body of the answer."""
        if headers is None:
            headers = {"Lune-HMAC": header(body, **signing)}
        async with self.session.post(PATH, data=body, headers=headers) as answer:
            return answer.status, await answer.read()

    async def send(self, *events: Mapping[str, Any], **signing: Any) -> int:
        """Send events of the default account."""
        whole = [{"account_id": self.account_id, **one} for one in events]
        return await self.post(body_of(*whole), **signing)

    async def send_until_accepted(self, *events: Mapping[str, Any]) -> None:
        """Send events again and again, as Lune does, until they are accepted."""
        async with asyncio.timeout(60):
            while (status := await self.send(*events)) != 200:
                assert status == 503

    async def status(self, order_id: str) -> str:
        """Return an order's status in the ledger."""
        async with self.app.database.read() as connection:
            query = f"SELECT status FROM orders WHERE id = '{order_id}'"
            return str((await connection.exec_driver_sql(query)).scalar_one())

    async def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Ask the ledger."""
        async with self.app.database.read() as connection:
            found = await connection.exec_driver_sql(query)
            return [tuple(row) for row in found]


@asynccontextmanager
async def webhook_client(
    scene: Scene, secrets: Iterable[str] = (SECRET,), limits: Limits | None = None
) -> AsyncIterator[WebhookClient]:
    """Drain once, then take webhooks while inside."""
    known = tuple(secrets)
    async with scene.open(limits=limits) as app:
        await Drain(app).run()
        made: list[WebhookClient] = []

        def wake(step: str) -> None:
            assert step == "hints"
            made[0].woken += 1

        webhooks = LuneWebhooks(app.database, lambda: known, app.context, wake)
        limits = app.context.limits
        web_app = make_web_app(webhooks.routes(), v1=(), control=(), token=None, limits=limits)
        async with (
            serving(web_app, limits) as faces,
            faces.on_address("127.0.0.1", 0) as port,
            aiohttp.ClientSession(
                f"http://127.0.0.1:{port}", connector=aiohttp.TCPConnector(limit=0)
            ) as session,
        ):
            made.append(WebhookClient(app, webhooks, session, scene.lune.accounts[0].id, port))
            try:
                yield made[0]
            finally:
                await webhooks.close()
