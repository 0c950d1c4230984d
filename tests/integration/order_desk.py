"""A Lune that takes orders and then answers as a test has it: wrongly, late or not at all.

It shares nothing with the sandbox, which always says what it did. Here an order can be taken while
whoever sent it learns nothing, as when a connection is cut at the worst moment.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web
from aiohttp.typedefs import Handler

KEY = "desk-key"
OWN, CLIENT = "OwnAccount", "ClientAccount"
MESSAGE = "The desk says no."


@dataclass(frozen=True, slots=True)
class Turn:
    """What is done with one request to order: taken or not, and answered how.

    ``code`` makes it a coded refusal, ``body`` replaces the order in the answer. ``silence`` is
    for ever (``hang``) or ends with the connection (``drop``).
    """

    takes: bool = True
    status: int = 200
    code: str | None = None
    body: str | None = None
    silence: Literal["", "hang", "drop"] = ""
    headers: dict[str, str] = field(default_factory=dict)


def refusing(status: int, code: str | None) -> Turn:
    """Make a turn that takes nothing and says why."""
    return Turn(takes=False, status=status, code=code)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it arrived."""

    endpoint: str
    account: str
    body: Any


class OrderDesk:
    """Orders by account and key. ``turns``, ``key_turns`` and ``quote_turns`` run out, then all
    is well again; ``key_turns`` are statuses in front of the true answer.
    """

    def __init__(self, *, mode: str = "test", name: str = "Acme") -> None:
        self.base_url = ""
        self.key = KEY
        self.mode = mode
        self.name = name
        self.orders: dict[tuple[str, str], dict[str, Any]] = {}
        self.asked: list[Asked] = []
        self.turns: deque[Turn] = deque()
        self.key_turns: deque[int] = deque()
        self.quote_turns: deque[Turn] = deque()
        self.on_order: Callable[[], Awaitable[None]] | None = None
        self._closing = asyncio.Event()

    def posts(self) -> list[dict[str, Any]]:
        """Return the bodies of all requests to order, whatever became of them."""
        return [one.body for one in self.asked if self._is_order(one.endpoint)]

    def lookups(self) -> int:
        """Count the questions for an order by its key."""
        return sum(1 for one in self.asked if "by-idempotency-key" in one.endpoint)

    def take(self, key: str, account: str = OWN, **fields: Any) -> dict[str, Any]:
        """Take an order as if somebody else had sent it."""
        return self._take(account, {"idempotency_key": key, **fields})

    @asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[OrderDesk]:
        """Listen on a loopback port while inside."""
        self._closing.clear()
        app = web.Application(middlewares=[self._note])
        app.add_routes(
            [
                web.get("/v1/accounts/me", self._me),
                web.get("/v1/accounts", self._accounts),
                web.get("/v1/accounts/client", self._accounts),
                web.get("/v1/orders", self._list),
                web.get("/v1/orders/by-idempotency-key/{key}", self._by_key),
                web.get("/v1/orders/{id}", self._one),
                web.post("/v1/orders/{kind}/quote", self._quote),
                web.post("/v1/orders/{kind}", self._order),
            ]
        )
        runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.2
        )
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        self.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        try:
            yield self
        finally:
            self._closing.set()
            await runner.cleanup()

    @web.middleware
    async def _note(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        text = await request.text()
        endpoint = f"{request.method} {request.path.removeprefix('/v1')}"
        self.asked.append(Asked(endpoint, _account(request), json.loads(text) if text else None))
        if request.headers.get("Authorization") != f"Bearer {self.key}":
            return _refusal(401, "unauthorised")
        if request.headers.get("Lune-Version") is None:
            return _refusal(400, "api_version_invalid")
        return await handler(request)

    async def _me(self, request: web.Request) -> web.Response:
        return web.json_response(self._account_row(_account(request)))

    async def _accounts(self, request: web.Request) -> web.Response:
        own = OWN if request.path == "/v1/accounts" else CLIENT
        return _page([self._account_row(own)])

    async def _list(self, request: web.Request) -> web.Response:
        mine = [row for (account, _), row in self.orders.items() if account == _account(request)]
        return _page(list(reversed(mine)))

    async def _by_key(self, request: web.Request) -> web.StreamResponse:
        if self.key_turns and (status := self.key_turns.popleft()) != 200:
            code = "account_suspended" if status == 403 else None
            return _refusal(status, code)
        return self._serve(_account(request), lambda row: row["idempotency_key"], request, "key")

    async def _one(self, request: web.Request) -> web.StreamResponse:
        return self._serve(_account(request), lambda row: row["id"], request, "id")

    async def _quote(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.text())
        turn = self.quote_turns.popleft() if self.quote_turns else Turn()
        return await self._answered(request, turn, _quote_row(body))

    async def _order(self, request: web.Request) -> web.StreamResponse:
        if self.on_order is not None:
            await self.on_order()
        body = json.loads(await request.text())
        account, key = _account(request), body["idempotency_key"]
        turn = self.turns.popleft() if self.turns else Turn()
        if turn.takes and (account, key) in self.orders:
            turn = Turn(False, 409, "order_idempotency_already_exists", silence=turn.silence)
        row = self._take(account, body) if turn.takes else {}
        return await self._answered(request, turn, row)

    async def _answered(
        self, request: web.Request, turn: Turn, row: dict[str, Any]
    ) -> web.StreamResponse:
        if turn.silence == "hang":
            await self._closing.wait()
        if turn.silence and request.transport is not None:
            request.transport.abort()
        if turn.status != 200:
            return _refusal(turn.status, turn.code, turn.headers)
        return web.Response(text=turn.body or json.dumps(row), content_type="application/json")

    def _take(self, account: str, body: dict[str, Any]) -> dict[str, Any]:
        mass, value = body.get("mass"), body.get("value")
        row = {
            "id": f"Order{len(self.orders) + 1}",
            "idempotency_key": body["idempotency_key"],
            "type": "value" if value else "quantity",
            "status": "received",
            "currency": "EUR",
            "quantity": None if mass is None else mass["amount"],
            "requested_value": value,
            "created_at": "2026-03-01T12:00:00Z",
            "metadata": body.get("metadata", {}),
        }
        self.orders[account, body["idempotency_key"]] = row
        return row

    def _serve(
        self, account: str, of: Callable[[dict[str, Any]], str], request: web.Request, name: str
    ) -> web.Response:
        wanted = request.match_info[name]
        for (owner, _), row in self.orders.items():
            if owner == account and of(row) == wanted:
                return web.json_response(row)
        return web.Response(status=404)

    def _account_row(self, account: str) -> dict[str, Any]:
        return {
            "id": account,
            "name": self.name if account == OWN else "Client",
            "type": self.mode,
            "currency": "EUR",
            "beneficiary": None,
            "organisation_id": "Organisation",
            "scope": "account" if account == OWN else "client_account",
        }

    @staticmethod
    def _is_order(endpoint: str) -> bool:
        return endpoint.startswith("POST /orders/") and not endpoint.endswith("/quote")


def _account(request: web.Request) -> str:
    return request.headers.get("Lune-Account", OWN)


def _page(rows: list[dict[str, Any]]) -> web.Response:
    return web.json_response({"has_more": False, "next_cursor": None, "data": rows})


def _refusal(status: int, code: str | None, headers: dict[str, str] | None = None) -> web.Response:
    if code is None:
        return web.Response(status=status, headers=headers)
    error = {"error_code": code, "message": MESSAGE}
    return web.json_response({"error": error, "errors": [error]}, status=status, headers=headers)


def _quote_row(body: dict[str, Any]) -> dict[str, Any]:
    return {
        "currency": "EUR",
        "requested_quantity": None,
        "requested_value": body.get("value"),
        "estimated_quantity": "0.25911",
        "estimated_offset_cost": "6.58",
        "estimated_commission": "0.74",
        "estimated_total_cost": "7.32",
        "bundles": [
            {
                "bundle_id": "BundleOne",
                "bundle_name": "Forests",
                "quantity": "0.25911",
                "unit_price": "25.40",
                "offset_cost": "6.58",
                "insufficient_available_quantity": True,
            }
        ],
    }
