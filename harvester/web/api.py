"""The API below /v1: what the ledger knows, the certificates, and following more orders.

Described in ``openapi.json`` beside this file. Who asks shows the token of the configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from importlib.resources import files

from aiohttp import web

from harvester import serializers
from harvester.app import App
from harvester.domain.errors import AccountRefused
from harvester.ledger.certificates import retry_certificates
from harvester.ledger.database import Database
from harvester.ledger.queries import Cursor, OrderDetail, find_orders, stream_orders
from harvester.web.certificates import choose, send_certificate
from harvester.web.changes import Changes
from harvester.web.local_socket import error_members
from harvester.web.parameters import (
    Parameters,
    cursor_text,
    identifier,
    order_query,
    track_request,
    version,
)
from harvester.web.problems import Problem, read_body


class Api:
    """The handlers. ``reading`` is the database they read; ``wake`` runs a step of the daemon."""

    def __init__(self, app: App, reading: Database, wake: Callable[[str], None]) -> None:
        self._app = app
        self._reading = reading
        self._wake = wake
        self._description = files("harvester.web").joinpath("openapi.json").read_bytes()

    def routes(self) -> list[web.RouteDef]:
        """Return the routes, as they are below /v1."""
        return [
            web.get("/openapi.json", self._describe),
            web.get("/orders", self._list),
            web.post("/orders", self._track),
            web.get("/orders/{id}", self._show),
            web.get("/orders/{id}/certificate", self._certificate),
            web.post("/orders/{id}/retry", self._retry),
            web.get("/changes", Changes(self._reading).list),
        ]

    async def _describe(self, request: web.Request) -> web.Response:
        Parameters(request)
        return web.Response(body=self._description, content_type="application/json")

    async def _list(self, request: web.Request) -> web.Response:
        query = order_query(request)
        stream = stream_orders(self._reading, query.scope, query.limit + 1, query.after)
        rows = [row async for row in stream]
        page = rows[: query.limit]
        last = page[-1] if len(rows) > len(page) else None
        return web.json_response(
            {
                "orders": [serializers.order(row, self._app.archive.locate) for row in page],
                "next": last and cursor_text(Cursor(last.created_at, last.account_id, last.id)),
            }
        )

    async def _show(self, request: web.Request) -> web.Response:
        account = Parameters(request, "account_id").read("account_id", identifier)
        detail = await self._find(request.match_info["id"], account)
        return web.json_response(serializers.order_detail(detail, self._app.archive.locate))

    async def _certificate(self, request: web.Request) -> web.StreamResponse:
        query = Parameters(request, "account_id", "version")
        account, wanted = query.read("account_id", identifier), query.read("version", version)
        detail = await self._find(request.match_info["id"], account)
        chosen = choose(detail, wanted)
        return await send_certificate(request, self._app.archive, detail.order.id, chosen)

    async def _find(self, order_id: str, account_id: str | None) -> OrderDetail:
        found = await find_orders(self._reading, order_id, account_id)
        found = [detail for detail in found if detail.order.id == order_id]
        if len(found) > 1:
            accounts = sorted(detail.order.account_id for detail in found)
            raise Problem(
                409, "several accounts have one; name it as account_id", accounts=accounts
            )
        if not found:
            raise Problem(404, "no such order in the ledger; POST /v1/orders follows one")
        return found[0]

    async def _track(self, request: web.Request) -> web.Response:
        Parameters(request)
        if request.content_type != "application/json":
            raise Problem(415, "send application/json")
        wanted = track_request(await read_body(request))
        try:
            found = await self._app.tracker.track(
                wanted.references, by_key=wanted.by_key, account_id=wanted.account_id
            )
        except AccountRefused as error:
            members = error_members(error)
            raise Problem(404, "the key reaches no such account", **members) from None
        self._wake("collect")
        return web.json_response({"tracked": [asdict(one) for one in found]})

    async def _retry(self, request: web.Request) -> web.Response:
        Parameters(request)
        order_id = request.match_info["id"]
        now = self._app.context.clock()
        due = await retry_certificates(self._app.database, now, [order_id])
        if not due and not await self._is_known(order_id):
            raise Problem(404, "no such order in the ledger; POST /v1/orders follows one")
        self._wake("collect")
        return web.json_response(
            {"due": [{"account_id": account, "order_id": order} for account, order in due]}
        )

    async def _is_known(self, order_id: str) -> bool:
        found = await find_orders(self._reading, order_id)
        return any(detail.order.id == order_id for detail in found)
