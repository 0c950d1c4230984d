"""The API below /v1: what the ledger knows, the certificates, and following more orders.

Described in ``openapi.json`` beside this file. Who asks shows the token of the configuration.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import asdict, replace
from datetime import datetime
from importlib.resources import files

from aiohttp import web

from harvester import serializers
from harvester.app import App
from harvester.domain.errors import AccountRefused
from harvester.domain.instants import MICROSECOND
from harvester.domain.orders import OrderFilter
from harvester.ledger.certificates import retry_certificates
from harvester.ledger.database import Database
from harvester.ledger.queries import OrderDetail, OrderRow, find_orders, stream_orders
from harvester.web.certificates import choose, send_certificate
from harvester.web.changes import Changes
from harvester.web.parameters import (
    Cursor,
    OrderQuery,
    Parameters,
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
        rows: list[OrderRow] = []
        async with aclosing(self._rows(query)) as found:
            async for row in found:
                rows.append(row)
                if len(rows) > query.limit:
                    break
        page = rows[: query.limit]
        more = len(rows) > len(page)
        return web.json_response(
            {
                "orders": [serializers.order(row, self._app.archive.locate) for row in page],
                "next": str(_cursor(page[-1])) if more else None,
            }
        )

    async def _rows(self, query: OrderQuery) -> AsyncGenerator[OrderRow, None]:
        """Yield the rows of a listing from its cursor on, newest first."""
        after, scope = query.after, query.scope
        if query.idempotency_key is not None:
            for row in await self._with_key(query.idempotency_key, scope):
                if after is None or _is_beyond(row, after):
                    yield row
            return
        if after is not None:
            # Those of the same microsecond first; then everything before it.
            beyond = after.created_at + MICROSECOND
            tie = replace(
                scope,
                since=_later(scope.since, after.created_at),
                until=_earlier(scope.until, beyond),
            )
            async for row in stream_orders(self._reading, tie):
                if _is_beyond(row, after):
                    yield row
            scope = replace(scope, until=_earlier(scope.until, after.created_at))
        async for row in stream_orders(self._reading, scope, query.limit + 1):
            yield row

    async def _with_key(self, key: str, scope: OrderFilter) -> list[OrderRow]:
        found = [detail.order for detail in await find_orders(self._reading, key)]
        found.sort(key=lambda row: (row.account_id, row.id))
        found.sort(key=lambda row: row.created_at, reverse=True)
        return [row for row in found if row.idempotency_key == key and _is_in(scope, row)]

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
        except AccountRefused:
            raise Problem(404, "the key reaches no such account") from None
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


def _cursor(row: OrderRow) -> Cursor:
    return Cursor(row.created_at, row.account_id, row.id)


def _is_beyond(row: OrderRow, cursor: Cursor) -> bool:
    if row.created_at == cursor.created_at:
        return (row.account_id, row.id) > (cursor.account_id, cursor.order_id)
    return row.created_at < cursor.created_at


def _later(one: datetime | None, other: datetime) -> datetime:
    return other if one is None else max(one, other)


def _earlier(one: datetime | None, other: datetime) -> datetime:
    return other if one is None else min(one, other)


def _is_in(scope: OrderFilter, row: OrderRow) -> bool:
    return (
        (scope.accounts is None or row.account_id in scope.accounts)
        and scope.status in {None, row.status}
        and scope.certificate in {None, row.certificate_state or "none"}
        and (scope.since is None or row.created_at >= scope.since)
        and (scope.until is None or row.created_at < scope.until)
    )
