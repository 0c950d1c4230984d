"""A second implementation of Lune's API, for tests of the installed command.

Written from Lune's schema alone and sharing nothing with the sandbox, so that the harvester meets
other habits where the schema is silent: sealed cursors, accounts of both modes in one list, PDFs
of another producer. It runs in a thread of the test's process; tests change its public
attributes while it serves, and read what it saw.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import random
import string
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from types import TracebackType
from typing import Any, Literal, Self

from aiohttp import web

NEWEST = datetime(2026, 3, 1, 12, tzinfo=UTC)
ENDS = {"complete", "cancelled", "failed"}
_ZONES = [timezone(timedelta(minutes=minutes)) for minutes in (0, 330, -480, 765)]
_LETTERS = string.ascii_letters + string.digits


@dataclass(frozen=True)
class Habits:
    """Answers to what Lune's documents leave open."""

    cursors: Literal["sealed", "ids"] = "sealed"
    last_cursor: Literal["null", "absent"] = "null"
    lists_default_account: bool = True
    chunk_seconds: float = 0.0
    """A certificate comes in four pieces, this long apart."""


@dataclass
class Seen:
    """A request; ``at``, on the monotonic clock, is when it arrived.

    ``status`` is 0 until it is answered whole, and stays so when the client goes away.
    """

    at: float
    method: str
    path: str
    query: dict[str, str]
    account: str | None
    status: int = 0


@dataclass(frozen=True)
class Served:
    """What is answered for a certificate instead of the certificate."""

    body: bytes
    status: int = 200
    content_type: str = "application/pdf"


@dataclass
class Order:
    """An order at Lune; ``oddities`` replace fields of its row, whatever their type."""

    id: str
    account: str
    created_at: datetime
    status: str
    size: int = 3000
    edition: int = 1
    oddities: dict[str, Any] = field(default_factory=dict)

    @property
    def certificate(self) -> bytes:
        """The bytes of its certificate, the same at every call until the edition changes."""
        return certificate_pdf(self.id, self.size, self.edition)

    def row(self, status: str) -> dict[str, Any]:
        """Return the served object: all of the schema's fields, and some that it does not know."""
        number = int(hashlib.sha256(self.id.encode()).hexdigest()[:6], 16)
        created = self.created_at.astimezone(_ZONES[number % len(_ZONES)])
        late = status in {"retiring", "complete"}
        row = {
            "id": self.id,
            "idempotency_key": None if number % 3 else f"INV/{number} ü",
            "type": "quantity",
            "status": status,
            "currency": "EUR",
            "offset_cost": None if status == "received" else "7.10",
            "total_cost": "7.70",
            "commission": None if status == "received" else "0.60",
            "quantity": None if number % 5 == 0 else f"{number % 90}.{number % 1000:06d}",
            "payment_method": (None, "invoice", "card")[number % 3],
            "created_at": created.isoformat(timespec=("seconds", "milliseconds")[number % 2]),
            "bundles": None if status == "received" else [],
            "projects": [{"project_name": "Löss", "status": "retired"}] if late else None,
            "certificate": f"https://api.lune.co/v1/orders/{self.id}/x" if late else None,
            "public_certificate_url": None,
            "metadata": None if number % 4 == 0 else {"invoice": str(number)},
            "offset_link_id": None,
            "email": "someone@example.org",
            "requested_quantity": "1.5",
            "requested_value": None,
            "estimate_id": None,
            "transaction_kind": {"added": ["after", 2024]},
        }
        return row | self.oddities


class OtherLune:
    """The server; a context manager. ``base_url`` is what ``lune.base_url`` has to be."""

    def __init__(self, habits: Habits = Habits(), *, accounts: int = 2, seed: int = 1) -> None:
        """Make an organisation with ``accounts`` live accounts, half of them client accounts."""
        self._random = random.Random(seed)
        self.habits = habits
        self.seen: list[Seen] = []
        self.statuses: defaultdict[str, list[str]] = defaultdict(list)
        self.orders: dict[str, Order] = {}
        self.accounts: dict[str, dict[str, Any]] = {}
        live = [self._add_account("live", client=number % 2 == 1) for number in range(accounts)]
        test = self._add_account("test", client=False)
        self._add_account("test", client=True)
        self.live = live
        self.keys = {self._id(): live[0], self._id(): test}
        self.key, self.test_key = self.keys
        self._listed: defaultdict[str, list[Order]] = defaultdict(list)
        self._position: dict[str, int] = {}
        # Faults, to be set and lifted by tests.
        self.refused: dict[str, tuple[int, str]] = {}
        self.revoked = False
        self.version = "2024-08-08"
        self.redirect_to: str | None = None
        self.looping: str | None = None
        self.loop: Literal["one page", "two pages"] = "one page"
        self.quotes_the_key = False
        self.certificates: dict[str, Served] = {}
        self._thread = threading.Thread(target=self._serve, name="other-lune")
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.base_url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(30) or not self.base_url:
            raise RuntimeError("the server did not start")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    def add_orders(
        self, account: str, statuses: Iterable[str], *, size: Callable[[], int] = lambda: 3000
    ) -> list[Order]:
        """Place orders in an account, each newer than the ones before; return them."""
        added = []
        for status in statuses:
            position = len(self._listed[account])
            created = (
                NEWEST - timedelta(days=200) + timedelta(minutes=position, microseconds=position)
            )
            order = Order(self._id(), account, created, status, size())
            self.orders[order.id] = order
            self._position[order.id] = position
            self._listed[account].append(order)
            added.append(order)
        return added

    def asked(self, ending: str = "", *, since: float = 0.0) -> list[Seen]:
        """Return the requests so far whose path ends so; ``since`` is on the monotonic clock."""
        return [one for one in self.seen.copy() if one.path.endswith(ending) and one.at >= since]

    def busiest_second(self) -> int:
        """Return the most requests that arrived within any second."""
        times = sorted(one.at for one in self.seen)
        most = first = 0
        for last, at in enumerate(times):
            while at - times[first] >= 1:
                first += 1
            most = max(most, last - first + 1)
        return most

    def _id(self) -> str:
        return "".join(self._random.choices(_LETTERS, k=32))

    def _add_account(self, mode: str, *, client: bool) -> str:
        account_id = self._id()
        account: dict[str, Any] = {
            "id": account_id,
            "name": f"Größe {len(self.accounts)}",
            "organisation_id": "VndoQ0PZjGMzvYOZGwqy6kbgN1eOJx9B",
            "handle": None,
            "currency": "EUR",
            "type": mode,
            "logo": None,
            "beneficiary": None,
            "bundle_portfolio_id": None,
            "external_pages_visibility": "hidden",
            "scope": "client_account" if client else "account",
            "some_new_field": 1,
        }
        if not client:
            account["sibling_id"] = self._id()
        self.accounts[account_id] = account
        return account_id

    def _serve(self) -> None:
        asyncio.run(self._serve_until_stopped())

    async def _serve_until_stopped(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self._loop = asyncio.get_running_loop()
            self.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
            self._ready.set()
            await self._stop.wait()
        finally:
            self._ready.set()
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0]
        account = request.headers.get("Lune-Account")
        seen = Seen(time.monotonic(), request.method, path, dict(request.query), account)
        self.seen.append(seen)
        answer = await self._answer(request)
        seen.status = answer.status
        return answer

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if self.redirect_to is not None:
            return web.Response(status=307, headers={"Location": self.redirect_to + request.path})
        bearer = request.headers.get("Authorization", "")
        own = self.keys.get(bearer.removeprefix("Bearer "))
        quoted = f" ({bearer})" if self.quotes_the_key else ""
        if own is None or self.revoked:
            return _error(401, "unauthorised", f"The API Key is missing or is invalid{quoted}")
        if request.headers.get("Lune-Version") != self.version:
            return _error(400, "api_version_invalid", f"This version is not served{quoted}")
        account = request.headers.get("Lune-Account", own)
        if self.accounts.get(account, {}).get("type") != self.accounts[own]["type"]:
            return _error(403, "invalid_selected_account_id", f"Not an account of yours{quoted}")
        if account in self.refused:
            return _error(*self.refused[account], f"This account may not be used{quoted}")
        return await self._resource(request, own, account)

    async def _resource(self, request: web.Request, own: str, account: str) -> web.StreamResponse:
        match request.path.split("/")[2:]:
            case ["accounts", "me"]:
                return _json(self.accounts[account])
            case ["accounts", *rest] if rest in ([], ["client"]):
                scope = "client_account" if rest else "account"
                return self._account_page(request, own, scope)
            case ["orders"]:
                return self._order_page(request, account)
            case ["orders", order_id, *rest] if self._has(account, order_id):
                order = self.orders[order_id]
                if rest == ["certificate"]:
                    return await self._certificate(request, order)
                return _json(self._row(order)) if not rest else web.Response(status=404)
        return web.Response(status=404)

    def _has(self, account: str, order_id: str) -> bool:
        return order_id in self.orders and self.orders[order_id].account == account

    def _row(self, order: Order) -> dict[str, Any]:
        status = order.status
        chain = self.statuses[order.id]
        if not chain or chain[-1] != status:
            chain.append(status)
        return order.row(status)

    def _account_page(self, request: web.Request, own: str, scope: str) -> web.Response:
        rows = [row for row in self.accounts.values() if row["scope"] == scope]
        if not self.habits.lists_default_account:
            rows = [row for row in rows if row["id"] != own]
        positions = {row["id"]: position for position, row in enumerate(rows)}
        return self._page(request, scope, len(rows), positions, lambda position: rows[position])

    def _order_page(self, request: web.Request, account: str) -> web.Response:
        newest = len(self._listed[account]) - 1
        listed = self._listed[account][newest::-1]
        positions = {order.id: newest - self._position[order.id] for order in listed}
        if account == self.looping:
            # The first page again, or the first two by turns, for ever.
            second = self.loop == "two pages" and "after" in request.query
            after = self._cursor(account, listed[0 if second else -1].id)
            rows = [self._row(order) for order in (listed[:50] if second else listed[50:])]
            return _json({"has_more": True, "next_cursor": after, "data": rows})
        return self._page(
            request,
            account,
            len(listed),
            positions,
            lambda position: self._row(listed[position]),
        )

    def _page(
        self,
        request: web.Request,
        listing: str,
        total: int,
        positions: dict[str, int],
        row: Callable[[int], dict[str, Any]],
    ) -> web.Response:
        """Serve ``limit`` rows from the one that the cursor points to, as the schema says."""
        limit = request.query.get("limit", "10")
        if not limit.isdigit() or not 1 <= int(limit) <= 100:
            return _error(400, "pagination_limit_invalid", "limit is 1 to 100")
        start = 0
        if "after" in request.query:
            pointed = self._pointed(listing, request.query["after"])
            if pointed not in positions:
                return _error(400, "validation_error", "after is not a cursor of this list")
            start = positions[pointed]
        end = min(start + int(limit), total)
        data = [row(position) for position in range(start, end)]
        page: dict[str, Any] = {"has_more": end < total, "next_cursor": None, "data": data}
        if end < total:
            ids = {position: one for one, position in positions.items()}
            page["next_cursor"] = self._cursor(listing, ids[end])
        elif self.habits.last_cursor == "absent":
            del page["next_cursor"]
        return _json(page)

    def _cursor(self, listing: str, pointed: str) -> str:
        if self.habits.cursors == "ids":
            return pointed
        text = base64.b64encode(f"{listing} {pointed}".encode()).decode()
        return f"{text}.{_seal(text)}"

    def _pointed(self, listing: str, cursor: str) -> str:
        if self.habits.cursors == "ids":
            return cursor
        text, _, seal = cursor.rpartition(".")
        if not hmac.compare_digest(seal.encode(), _seal(text).encode()):
            return ""
        sealed, _, pointed = base64.b64decode(text).decode().partition(" ")
        return pointed if sealed == listing else ""

    async def _certificate(self, request: web.Request, order: Order) -> web.StreamResponse:
        special = self.certificates.get(order.id)
        if special is None and order.status != "complete":
            return web.Response(status=404)
        served = special or Served(order.certificate)
        headers = {"CF-Ray": f"{order.id[:16]}-FRA", "Content-Type": served.content_type}
        if not self.habits.chunk_seconds or served.status != 200:
            return web.Response(status=served.status, body=served.body, headers=headers)
        answer = web.StreamResponse(headers=headers)
        answer.content_length = len(served.body)
        await answer.prepare(request)
        piece = len(served.body) // 4 + 1
        for start in range(0, len(served.body), piece):
            await asyncio.sleep(self.habits.chunk_seconds)
            await answer.write(served.body[start : start + piece])
        await answer.write_eof()
        return answer


def certificate_pdf(order_id: str, size: int, edition: int) -> bytes:
    """Return a PDF 1.5 of about ``size`` bytes, unlike any other order's and edition's.

    With an object stream and a cross-reference stream, as office programs write them; no table.
    """
    seal = hashlib.shake_256(f"{order_id} {edition}".encode()).digest(size)
    text = f"BT /F0 12 Tf 72 720 Td (3 credits retired, {order_id}, edition {edition}) Tj ET"
    plain = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents 5 0 R/Resources 4 0 R>>",
        b"<</Font<</F0<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>>>/XObject<</Im0 6 0 R>>>>",
    ]
    offsets = [sum(len(one) + 1 for one in plain[:n]) for n in range(len(plain))]
    index = " ".join(f"{n + 1} {offset}" for n, offset in enumerate(offsets)).encode() + b" "
    image = f"/Type/XObject/Subtype/Image/Width {size}/Height 1/ColorSpace/DeviceGray"
    packed = zlib.compress(index + b"\n".join(plain), 9)
    streams = [
        (5, "", f"{text} q 99 0 0 9 72 72 cm /Im0 Do Q".encode()),
        (6, f"{image}/BitsPerComponent 8", seal),
        (7, f"/Type/ObjStm/N {len(plain)}/First {len(index)}/Filter/FlateDecode", packed),
    ]
    body = bytearray(b"%PDF-1.5\n%\xe2\xe3\xcf\xd3\n")
    entries = [b"\0\0\0\0\xff", *(bytes([2, 0, 0, 7, n]) for n in range(len(plain)))]
    for number, fields, data in streams:
        entries.append(b"\1" + len(body).to_bytes(3, "big") + b"\0")
        body += _stream(number, fields, data)
    start = len(body)
    entries.append(b"\1" + start.to_bytes(3, "big") + b"\0")
    table = f"/Type/XRef/Size {len(entries)}/W[1 3 1]/Root 1 0 R"
    body += _stream(8, table, b"".join(entries))
    return bytes(body) + f"startxref\n{start}\n%%EOF\n".encode()


def _stream(number: int, fields: str, data: bytes) -> bytes:
    head = f"{number} 0 obj\n<<{fields}/Length {len(data)}>>\nstream\n".encode()
    return head + data + b"\nendstream\nendobj\n"


def _seal(text: str) -> str:
    return hmac.new(b"only the server knows", text.encode(), hashlib.sha256).hexdigest()[:24]


def _json(value: object) -> web.Response:
    text = json.dumps(value, ensure_ascii=False)
    headers = {"Content-Type": "application/json; charset=utf-8", "CF-Ray": "8f0c0ffee-FRA"}
    return web.Response(body=text.encode(), headers=headers)


def _error(status: int, code: str, message: str) -> web.Response:
    error = {"error_code": code, "message": message}
    answer = _json({"error": error, "errors": [error]})
    answer.set_status(status)
    return answer
