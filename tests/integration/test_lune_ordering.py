"""The client when money is spent: what is on the wire, and that an order is sent once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import pytest

from harvester.domain import errors
from harvester.domain.orders import Account
from harvester.lune import (
    BundleShare,
    ClientOptions,
    Deadlines,
    LuneClient,
    Purchase,
    RateLimiter,
    by_estimate,
    by_mass,
    by_value,
)
from tests.integration.raw_server import Answer, RawServer
from tests.integration.served_api import FastTime

OWN = Account("own", "own", "live", "account", "GBP", None, "org", is_default=True)
CLIENT = replace(OWN, id="client", scope="client_account", is_default=False)
DEADLINES = Deadlines(connect=0.3, read=0.3, total=1.0)
MASS = by_mass("259.110", "kg", [BundleShare("Asia1", Decimal(100))], {"customer": "Zoë"})
ORDER = {
    "id": "o1",
    "status": "received",
    "created_at": "2023-01-04T15:00:27Z",
    "idempotency_key": "INV-1",
}
QUOTE = {
    "currency": "GBP",
    "estimated_quantity": "0.259109",
    "estimated_offset_cost": "6.58",
    "estimated_commission": "0.74",
    "estimated_total_cost": "7.320000000000000001",
    "bundles": [
        {
            "bundle_id": "Asia1",
            "bundle_name": "Forests",
            "quantity": "0.259109",
            "unit_price": "13.57",
            "offset_cost": "6.58",
            "insufficient_available_quantity": True,
            "added_later": [],
        }
    ],
}


@dataclass(frozen=True, slots=True)
class Sent:
    """A request as it came over the wire."""

    line: str
    headers: dict[str, str]
    body: bytes


class Wire(RawServer):
    """A raw server that reads bodies too."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer)
        self.sent: list[Sent] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                line, *rest = head.splitlines()
                headers = {k.lower(): v for k, _, v in (row.partition(": ") for row in rest)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                self.sent.append(Sent(line, headers, body))
                await self._answer(len(self.sent), writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)


def response(
    body: object, status: str = "200 OK", content_type: str = "application/json", extra: str = ""
) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(data)}\r\n"
    return f"{head}{extra}\r\n".encode() + data


def refusal(status: str, code: str) -> bytes:
    return response({"error": {"error_code": code, "message": "no"}}, status)


def saying(*answers: bytes) -> Answer:
    """Answer in turn, and with the last one from then on."""

    async def answer(n: int, writer: asyncio.StreamWriter) -> None:
        writer.write(answers[min(n, len(answers)) - 1])

    return answer


async def silence(_: int, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def hanging_up(_: int, writer: asyncio.StreamWriter) -> None:
    writer.close()


@asynccontextmanager
async def ordering(answer: Answer) -> AsyncIterator[tuple[LuneClient, Wire, FastTime]]:
    wire, hours = Wire(answer), FastTime()
    server = await asyncio.start_server(wire.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    base = f"http://127.0.0.1:{port}/v1"
    rate_limiter = RateLimiter(1000, clock=hours.clock, sleep=hours.sleep)
    options = ClientOptions(DEADLINES, sleep=hours.sleep)
    client = LuneClient(base, lambda: "secret-key", rate_limiter, options)
    try:
        async with client as lune:
            yield lune, wire, hours
    finally:
        server.close()
        await wire.stop()


@pytest.mark.parametrize(
    ("purchase", "path", "request_body"),
    [
        (by_mass("259.11", "kg"), "by-mass", {"mass": {"amount": "259.11", "unit": "kg"}}),
        (by_value("0.54"), "by-value", {"value": "0.54"}),
        (by_value("100"), "by-value", {"value": "100"}),
        (by_estimate("90ng23MKv"), "by-estimate", {"estimate_id": "90ng23MKv"}),
    ],
)
async def test_each_kind_of_order_is_posted_to_its_path_with_its_key(
    purchase: Purchase, path: str, request_body: dict[str, Any]
) -> None:
    async with ordering(saying(response(ORDER))) as (lune, wire, _):
        order = await lune.place_order(OWN, purchase, "INV-1")
    (sent,) = wire.sent
    assert sent.line == f"POST /v1/orders/{path} HTTP/1.1"
    assert json.loads(sent.body) == {**request_body, "idempotency_key": "INV-1"}
    assert (order.id, order.status, order.idempotency_key) == ("o1", "received", "INV-1")


async def test_what_is_sent_is_json_with_the_key_the_version_and_the_exact_amount() -> None:
    async with ordering(saying(response(ORDER))) as (lune, wire, _):
        await lune.place_order(OWN, MASS, "INV-1")
    (sent,) = wire.sent
    assert sent.headers["content-type"] == "application/json"
    assert sent.headers["authorization"] == "Bearer secret-key"
    assert sent.headers["lune-version"] == "2024-08-08"
    assert "lune-account" not in sent.headers
    assert b'"259.110"' in sent.body
    assert json.loads(sent.body)["metadata"] == {"customer": "Zoë"}


async def test_another_accounts_order_and_quote_name_the_account() -> None:
    async with ordering(saying(response(ORDER), response(QUOTE))) as (lune, wire, _):
        await lune.place_order(CLIENT, MASS, "INV-1")
        await lune.quote(CLIENT, MASS)
    assert [sent.headers["lune-account"] for sent in wire.sent] == ["client", "client"]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (hanging_up, errors.Unreachable),
        (silence, errors.Unreachable),
        (saying(response(ORDER)[:-5]), errors.Unreachable),
        (saying(response(b"", "500 Fault")), errors.ServerFault),
        (saying(response(b"<html>", "502 Edge", "text/html")), errors.ServerFault),
        (saying(response(b"{}")), errors.UnexpectedAnswer),
        (saying(response(b"<html>", content_type="text/html")), errors.UnexpectedAnswer),
        (saying(response(ORDER, "201 Created")), errors.UnexpectedAnswer),
        (saying(response(b"<html>", "403 Forbidden", "text/html")), errors.EdgeBlocked),
        (saying(response(b"", "307 There", extra="Location: /v1\r\n")), errors.Redirected),
        (saying(b"junk\r\n\r\n"), errors.UnexpectedAnswer),
        (saying(refusal("400 Bad", "insufficient_credits")), errors.RequestRefused),
        (saying(refusal("401 No", "unauthorised")), errors.KeyRefused),
    ],
)
async def test_an_order_is_sent_once_whatever_comes_back(
    answer: Answer, error: type[errors.LuneError]
) -> None:
    async with ordering(answer) as (lune, wire, _):
        with pytest.raises(error):
            await lune.place_order(OWN, MASS, "INV-1")
        assert len(wire.sent) == 1


async def test_an_order_lost_on_a_kept_connection_is_not_sent_again() -> None:
    """A GET is: the server hung up while idle. Nobody knows that of an order."""

    async def hang_up_on_the_second(n: int, writer: asyncio.StreamWriter) -> None:
        if n == 2:
            writer.close()
        else:
            writer.write(response(ORDER))

    async with ordering(hang_up_on_the_second) as (lune, wire, _):
        await lune.fetch_order(OWN, "o1")
        with pytest.raises(errors.Unreachable):
            await lune.place_order(OWN, MASS, "INV-1")
        assert [sent.line.split()[0] for sent in wire.sent] == ["GET", "POST"]


async def test_after_a_429_the_same_order_is_sent_again_when_the_pause_is_over() -> None:
    too_many = response(b"Too many", "429 Slow", "text/plain", "Retry-After: 7\r\n")
    async with ordering(saying(too_many, too_many, response(ORDER))) as (lune, wire, hours):
        order = await lune.place_order(OWN, MASS, "INV-1")
        assert hours.now >= 14
    assert order.id == "o1"
    assert len(wire.sent) == 3
    assert len({sent.body for sent in wire.sent}) == 1


async def test_the_tenth_429_is_the_last() -> None:
    too_many = response(b"Too many", "429 Slow", "text/plain")
    async with ordering(saying(too_many)) as (lune, wire, _):
        with pytest.raises(errors.RateLimited):
            await lune.place_order(OWN, MASS, "INV-1")
        assert len(wire.sent) == 10


async def test_a_500_after_a_429_is_not_tried_again() -> None:
    too_many = response(b"Too many", "429 Slow", "text/plain")
    async with ordering(saying(too_many, response(b"", "500 Fault"))) as (lune, wire, _):
        with pytest.raises(errors.ServerFault):
            await lune.place_order(OWN, MASS, "INV-1")
        assert len(wire.sent) == 2


@pytest.mark.parametrize("key", ["", "x" * 101, "a\nb", "\udcff"])
async def test_a_key_that_lune_does_not_take_is_refused_unsent(key: str) -> None:
    async with ordering(saying(response(ORDER))) as (lune, wire, _):
        with pytest.raises(ValueError, match="idempotency key"):
            await lune.place_order(OWN, MASS, key)
        assert wire.sent == []


async def test_a_used_key_is_a_refusal_with_lunes_code() -> None:
    used = refusal("409 Conflict", "order_idempotency_already_exists")
    async with ordering(saying(used)) as (lune, wire, _):
        with pytest.raises(errors.RequestRefused) as caught:
            await lune.place_order(OWN, MASS, "INV-1")
        assert (caught.value.status, caught.value.code) == (409, "order_idempotency_already_exists")
        assert (caught.value.method, caught.value.path) == ("POST", "/v1/orders/by-mass")
        assert len(wire.sent) == 1


async def test_an_answer_about_another_order_is_not_taken_for_ours() -> None:
    other = ORDER | {"id": "o2", "idempotency_key": "INV-2"}
    async with ordering(saying(response(other))) as (lune, wire, _):
        with pytest.raises(errors.UnexpectedAnswer):
            await lune.place_order(OWN, MASS, "INV-1")
        assert len(wire.sent) == 1


async def test_a_quote_is_read_without_a_rounding() -> None:
    async with ordering(saying(response(QUOTE))) as (lune, wire, _):
        quote = await lune.quote(OWN, MASS)
    assert wire.sent[0].line == "POST /v1/orders/by-mass/quote HTTP/1.1"
    assert json.loads(wire.sent[0].body) == {
        "mass": {"amount": "259.110", "unit": "kg"},
        "bundle_selection": [{"bundle_id": "Asia1", "percentage": 100}],
    }
    assert (quote.currency, str(quote.total_cost)) == ("GBP", "7.320000000000000001")
    assert (quote.offset_cost, quote.commission) == (Decimal("6.58"), Decimal("0.74"))
    assert quote.quantity == Decimal("0.259109")
    (bundle,) = quote.bundles
    assert (bundle.bundle_id, bundle.name, bundle.is_short) == ("Asia1", "Forests", True)
    assert (bundle.unit_price, bundle.offset_cost) == (Decimal("13.57"), Decimal("6.58"))
    assert quote.document == QUOTE


@pytest.mark.parametrize(
    "change",
    [
        {"estimated_total_cost": None},
        {"estimated_total_cost": "1e9"},
        {"estimated_total_cost": "NaN"},
        {"estimated_total_cost": "-1"},
        {"estimated_total_cost": "9" * 65},
        {"estimated_commission": [1]},
        {"bundles": None},
        {"bundles": ["Forests"]},
        {"currency": "\x1b[31mGBP"},
        {"currency": None},
    ],
    ids=str,
)
async def test_what_is_no_quote_is_asked_for_once_more_and_refused(change: dict[str, Any]) -> None:
    async with ordering(saying(response(QUOTE | change))) as (lune, wire, _):
        with pytest.raises(errors.UnexpectedAnswer):
            await lune.quote(OWN, MASS)
        assert len(wire.sent) == 2


async def test_a_quote_spends_nothing_and_is_asked_for_again_after_a_fault() -> None:
    async with ordering(saying(response(b"", "500 Fault"), response(QUOTE))) as (lune, wire, _):
        assert (await lune.quote(OWN, by_value("5"))).currency == "GBP"
        assert len(wire.sent) == 2


async def test_an_estimate_cannot_be_priced_and_nothing_is_sent() -> None:
    async with ordering(saying(response(QUOTE))) as (lune, wire, _):
        with pytest.raises(ValueError, match="only when it is ordered"):
            await lune.quote(OWN, by_estimate("90ng23MKv"))
        assert wire.sent == []


@pytest.mark.parametrize(
    ("key", "segment"),
    [
        ("INV 7/ä", "INV%207%2F%C3%A4"),
        ("a?b#c&d=e", "a%3Fb%23c%26d%3De"),
        ("%2F", "%252F"),
        ("../../accounts/me", "..%2F..%2Faccounts%2Fme"),
    ],
)
async def test_a_key_is_one_segment_of_the_path_when_it_is_asked_for(
    key: str, segment: str
) -> None:
    async with ordering(saying(response(ORDER | {"idempotency_key": key}))) as (lune, wire, _):
        assert (await lune.fetch_order_by_key(OWN, key)).id == "o1"
    assert wire.sent[0].line == f"GET /v1/orders/by-idempotency-key/{segment} HTTP/1.1"
