"""The client against a served API: orders, certificates, paging, accounts, addresses."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from harvester.domain import errors
from harvester.domain.orders import Account
from harvester.lune import ClientOptions, LuneClient, RateLimiter
from tests.integration.served_api import FastTime, Served, lune_error, served_api

KEY = "canary/KEY+0123456789=="
CREATED = "2023-01-04T15:00:27.349Z"
PDF = b"%PDF-1.7 bytes"


def order(order_id: str, **more: Any) -> dict[str, Any]:
    return {"id": order_id, "status": "placed", "created_at": CREATED, **more}


def account(account_id: str, mode: str = "live", scope: str = "account") -> dict[str, Any]:
    return {
        "id": account_id,
        "name": account_id,
        "type": mode,
        "scope": scope,
        "currency": "GBP",
        "beneficiary": None,
        "organisation_id": "org",
    }


def page(rows: list[Any], cursor: str | None = None) -> dict[str, Any]:
    return {"data": rows, "has_more": cursor is not None, "next_cursor": cursor}


@pytest.fixture
async def api() -> AsyncIterator[Served]:
    async with served_api(account("own")) as served:
        served.base_url += "/"
        yield served


@pytest.fixture
def fast() -> FastTime:
    return FastTime()


@pytest.fixture
async def lune(api: Served, fast: FastTime) -> AsyncIterator[LuneClient]:
    rate_limiter = RateLimiter(1, clock=fast.clock, sleep=fast.sleep)
    options = ClientOptions(sleep=fast.sleep)
    async with LuneClient(api.base_url, lambda: KEY, rate_limiter, options) as client:
        yield client


OWN = Account("own", "own", "live", "account", "GBP", None, "org", is_default=True)
OTHER = Account("other", "other", "live", "account", "GBP", None, "org")


async def test_an_order_and_its_certificate_are_fetched(api: Served, lune: LuneClient) -> None:
    api.replies["/orders/o1"] = lambda _: order("o1")
    api.replies["/orders/o1/certificate"] = lambda _: web.Response(
        body=PDF, content_type="application/pdf", headers={"CF-Ray": "8a-LHR"}
    )
    assert (await lune.fetch_order(OWN, "o1")).status == "placed"
    certificate = await lune.fetch_certificate(OWN, "o1")
    assert (certificate.data, certificate.cf_ray) == (PDF, "8a-LHR")


async def test_every_request_says_who_asks_which_version(api: Served, lune: LuneClient) -> None:
    await lune.fetch_own_account()
    api.replies["/orders/o1"] = lambda _: order("o1")
    await lune.fetch_order(OTHER, "o1")
    own, other = (request.headers for request in api.requests)
    for headers in (own, other):
        assert headers["Authorization"] == f"Bearer {KEY}"
        assert headers["Lune-Version"] == "2024-08-08"
        assert headers["Accept-Encoding"] == "identity"
        assert headers["User-Agent"] == "lune-harvester"
        assert "Cookie" not in headers
    assert "Lune-Account" not in own
    assert other["Lune-Account"] == "other"


async def test_a_certificate_of_another_type_is_handed_on_with_its_type(
    api: Served, lune: LuneClient
) -> None:
    api.replies["/orders/o1/certificate"] = lambda _: web.Response(text="<html>")
    body = await lune.fetch_certificate(OWN, "o1")
    assert (body.content_type, body.data) == ("text/plain", b"<html>")


async def test_another_order_than_the_one_asked_for_is_refused(
    api: Served, lune: LuneClient
) -> None:
    api.replies["/orders/o1"] = lambda _: order("o2")
    api.replies["/orders/by-idempotency-key/k"] = lambda _: order("o1", idempotency_key="K")
    with pytest.raises(errors.UnexpectedAnswer, match="another order"):
        await lune.fetch_order(OWN, "o1")
    with pytest.raises(errors.UnexpectedAnswer, match="another order"):
        await lune.fetch_order_by_key(OWN, "k")


@pytest.mark.parametrize(
    ("key", "segment"),
    [
        ("a/b", "a%2Fb"),
        ("..", "%2E%2E"),
        (".", "%2E"),
        ("%2F", "%252F"),
        ("é ?#", "%C3%A9%20%3F%23"),
        ("../../accounts/me", "..%2F..%2Faccounts%2Fme"),
        ("a;b=c+d", "a%3Bb%3Dc%2Bd"),
    ],
)
async def test_an_idempotency_key_is_one_segment_of_the_path(
    api: Served, lune: LuneClient, key: str, segment: str
) -> None:
    path = f"/orders/by-idempotency-key/{segment}"
    api.replies[path] = lambda _: order("o1", idempotency_key=key)
    assert (await lune.fetch_order_by_key(OWN, key)).id == "o1"
    assert api.paths == [f"/v1{path}"]


@pytest.mark.parametrize("order_id", ["", ".", "..", "a/b", "a%2Fb", "é", "x" * 65, "a\nb"])
async def test_what_cannot_be_an_order_id_is_not_asked_for(
    api: Served, lune: LuneClient, order_id: str
) -> None:
    for fetch in (lune.fetch_order, lune.fetch_certificate):
        with pytest.raises(ValueError, match="not an id"):
            await fetch(OWN, order_id)
    with pytest.raises(ValueError, match="not an id"):
        await lune.fetch_account(order_id)
    assert api.requests == []


async def test_pages_are_read_by_cursor_to_the_end(api: Served, lune: LuneClient) -> None:
    pages = {None: page([order("o2")], "c/1+&"), "c/1+&": page([order("o1")])}
    api.replies["/orders"] = lambda request: pages[request.query.get("after")]
    first = await lune.fetch_orders(OWN)
    last = await lune.fetch_orders(OWN, first.next_cursor)
    assert [listed.id for listed in (*first.orders, *last.orders)] == ["o2", "o1"]
    assert last.next_cursor is None
    assert api.requests[0].query == {"limit": "100"}


async def test_a_cursor_that_does_not_advance_is_refused(api: Served, lune: LuneClient) -> None:
    api.replies["/orders"] = lambda _: page([order("o1")], "same")
    with pytest.raises(errors.UnexpectedAnswer, match="pagination"):
        await lune.fetch_orders(OWN, "same")


async def test_a_page_over_the_cap_is_asked_for_in_halves(api: Served, fast: FastTime) -> None:
    def reply(request: web.BaseRequest) -> dict[str, Any]:
        return page([order(f"o{n}") for n in range(int(request.query["limit"]))], "next")

    api.replies["/orders"] = reply
    room_for_30 = ClientOptions(largest_json=30 * len(json.dumps(order("o10"))))
    rate_limiter = RateLimiter(100, clock=fast.clock, sleep=fast.sleep)
    async with LuneClient(api.base_url, lambda: KEY, rate_limiter, room_for_30) as lune:
        assert len((await lune.fetch_orders(OWN, "cursor")).orders) == 25
    asked = [(request.query["limit"], request.query["after"]) for request in api.requests]
    assert asked == [("100", "cursor"), ("50", "cursor"), ("25", "cursor")]


async def test_a_single_order_over_the_cap_is_given_up(api: Served, fast: FastTime) -> None:
    api.replies["/orders"] = lambda _: page([order("o1", metadata={"n": "x" * 2000})])
    rate_limiter = RateLimiter(100, clock=fast.clock, sleep=fast.sleep)
    options = ClientOptions(largest_json=1000)
    async with LuneClient(api.base_url, lambda: KEY, rate_limiter, options) as lune:
        with pytest.raises(errors.UnexpectedAnswer, match="too large"):
            await lune.fetch_orders(OWN)
    assert [request.query["limit"] for request in api.requests] == [
        "100",
        "50",
        "25",
        "12",
        "6",
        "3",
        "1",
    ]


async def test_all_accounts_of_the_keys_mode_are_listed(api: Served, lune: LuneClient) -> None:
    def accounts(request: web.BaseRequest) -> dict[str, Any]:
        if request.query.get("after") == "next":
            return page([account("b"), account("a")])
        return page([account("a"), account("t", "test"), {"id": "a/b"}, account("own")], "next")

    api.replies["/accounts"] = accounts
    api.replies["/accounts/client"] = lambda _: page([account("c", scope="client_account")])
    with capture_logs() as logs:
        listed = await lune.fetch_accounts()
    assert [account.id for account in listed] == ["own", "a", "b", "c"]
    assert [account.is_default for account in listed] == [True, False, False, False]
    assert [line["event"] for line in logs] == ["account skipped"]
    assert api.paths == [
        "/v1/accounts/me",
        "/v1/accounts?limit=100",
        "/v1/accounts?limit=100&after=next",
        "/v1/accounts/client?limit=100",
    ]


@pytest.mark.parametrize("code", ["account_scope_incorrect", "validation_error"])
async def test_a_list_out_of_the_keys_scope_is_left_out(
    api: Served, lune: LuneClient, code: str
) -> None:
    api.replies["/accounts"] = lambda _: lune_error(403, code)
    api.replies["/accounts/client"] = lambda _: page([account("c")])
    with capture_logs() as logs:
        assert [account.id for account in await lune.fetch_accounts()] == ["own", "c"]
    assert [(line["event"], line["list"]) for line in logs] == [
        ("accounts not listed", "/accounts")
    ]


@pytest.mark.parametrize(("row", "cursor"), [("same", "c{}"), ("row{}", "same")])
async def test_an_account_list_in_circles_is_refused(
    api: Served, lune: LuneClient, row: str, cursor: str
) -> None:
    numbers = iter(range(50))

    def reply(_: web.BaseRequest) -> dict[str, Any]:
        number = next(numbers)
        return page([account(row.format(number))], cursor.format(number))

    api.replies["/accounts"] = reply
    with pytest.raises(errors.UnexpectedAnswer, match="pagination"):
        await lune.fetch_accounts()
    assert len(api.requests) == 3


async def test_one_account_is_fetched_in_its_own_name(api: Served, lune: LuneClient) -> None:
    api.replies["/accounts/me"] = lambda request: account(
        request.headers.get("Lune-Account", "own")
    )
    assert (await lune.fetch_account("other")).is_default is False
    assert (await lune.fetch_account("own")).is_default is True
    asked = [request.headers.get("Lune-Account") for request in api.requests]
    assert asked == [None, "other", None]


async def test_an_account_is_looked_for_in_the_lists_where_the_header_is_ignored(
    api: Served, lune: LuneClient
) -> None:
    api.replies["/accounts"] = lambda _: page([account("other")])
    api.replies["/accounts/client"] = lambda _: page([])
    assert (await lune.fetch_account("other")).id == "other"
    with pytest.raises(errors.AccountRefused, match="no such account"):
        await lune.fetch_account("nobody")


async def test_the_server_never_sees_more_than_the_rate_in_any_second(api: Served) -> None:
    seen: list[float] = []

    async def reply(_: web.BaseRequest) -> dict[str, Any]:
        seen.append(time.monotonic())
        await asyncio.sleep(0.02 * (len(seen) % 4))
        return order("o1")

    api.replies["/orders/o1"] = reply
    async with LuneClient(api.base_url, lambda: KEY, RateLimiter(50)) as lune:
        await asyncio.gather(*(lune.fetch_order(OWN, "o1") for _ in range(110)))
    most = max(sum(1 for later in seen[n:] if later - at < 1) for n, at in enumerate(seen))
    assert len(seen) == 110
    assert 25 <= most <= 50


@pytest.mark.parametrize(
    "base_url",
    [
        "http://api.lune.co/v1",
        "ftp://127.0.0.1/v1",
        "https://",
        "api.lune.co/v1",
        "file:///etc",
        "https://user:secret@api.lune.co/v1",
        "https://api.lune.co/v1?a=b",
        "http://127.0.0.1:99999/",
        "https://api.lune.co/v1#part",
        "http://127.0.0.1.example.com/v1",
        "",
    ],
)
def test_an_address_the_key_must_not_go_to_is_refused(base_url: str) -> None:
    with pytest.raises(errors.ConfigurationError, match="base_url") as caught:
        LuneClient(base_url, lambda: KEY, RateLimiter(1))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "[::1]", "localhost"])
def test_plain_http_is_for_loopback(host: str) -> None:
    LuneClient(f"http://{host}:8080/v1", lambda: KEY, RateLimiter(1))


@pytest.mark.parametrize("key", ["", " ", "a b", "a\r\nHost: x", "käy", "a\0b"])
def test_a_key_that_no_header_takes_is_refused_unquoted(key: str) -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        LuneClient("https://api.lune.co/v1", lambda: key, RateLimiter(1))
    assert not key.strip() or key not in str(caught.value)


async def test_outside_of_its_block_the_client_says_so() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await LuneClient("http://127.0.0.1:9/v1", lambda: KEY, RateLimiter(1)).fetch_own_account()
