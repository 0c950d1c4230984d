"""What the client makes of refusals: each its class; what the key, the account, the rate do."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from harvester.domain import errors
from harvester.domain.orders import Account
from harvester.lune import ClientOptions, LuneClient, RateLimiter
from tests.integration.served_api import FastTime, Served, lune_error, served_api

KEY = "canary-KEY.0123456789"  # could pass for a code or a CF-Ray


OWN_ACCOUNT = {"id": "own", "name": "own", "type": "live"}


def order(order_id: str) -> dict[str, str]:
    return {"id": order_id, "status": "placed", "created_at": "2023-01-04T15:00:27.349Z"}


@pytest.fixture
async def api() -> AsyncIterator[Served]:
    async with served_api(OWN_ACCOUNT) as served:
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


@pytest.mark.parametrize(
    ("status", "code", "kind", "tries"),
    [
        (400, "validation_error", errors.RequestRefused, 1),
        (400, "api_version_invalid", errors.RequestRefused, 1),
        (400, "invalid_selected_account_id", errors.AccountRefused, 1),
        (401, "account_suspended", errors.AccountRefused, 1),
        (403, "account_scope_incorrect", errors.AccountRefused, 1),
        (403, "live_account_required", errors.AccountRefused, 1),
        (403, "emission_factor_gated", errors.RequestRefused, 1),
        (401, "unauthorised", errors.KeyRefused, 1),
        (403, "unauthorised", errors.KeyRefused, 1),
        (404, "id_invalid", errors.NotFound, 1),
        (429, "slow_down", errors.RateLimited, 10),
        (503, "service_unavailable", errors.ServerFault, 4),
    ],
)
async def test_a_coded_error_becomes_its_class(
    api: Served, lune: LuneClient, status: int, code: str, kind: type[errors.LuneError], tries: int
) -> None:
    api.replies["/orders/o1"] = lambda _: lune_error(status, code, "It is\r\nso.\x1b[0m")
    with pytest.raises(kind) as caught:
        await lune.fetch_order(OWN, "o1")
    error = caught.value
    assert type(error) is kind
    assert (error.method, error.path) == ("GET", "/v1/orders/o1")
    assert (error.status, error.code) == (status, code)
    assert error.message.endswith(": It is so.[0m")
    assert len(api.requests) == tries


HTML, TEXT, JSON = "text/html", "text/plain", "application/json"


@pytest.mark.parametrize(
    ("status", "content_type", "text", "kind"),
    [
        (401, TEXT, "Unauthorized", errors.KeyRefused),
        (403, HTML, "<html>", errors.EdgeBlocked),
        (403, JSON, '{"ray": 1}', errors.EdgeBlocked),
        (404, TEXT, "", errors.NotFound),
        (408, TEXT, "", errors.Unreachable),
        (409, TEXT, "conflict", errors.RequestRefused),
        (429, TEXT, "Too many requests", errors.RateLimited),
        (500, TEXT, "", errors.ServerFault),
        (522, HTML, "<html>", errors.ServerFault),
        (202, JSON, "{}", errors.UnexpectedAnswer),
        (204, JSON, "", errors.UnexpectedAnswer),
        (206, JSON, "{}", errors.UnexpectedAnswer),
        (304, JSON, "", errors.UnexpectedAnswer),
        (200, HTML, "<html>", errors.UnexpectedAnswer),
        (200, "", "{}", errors.UnexpectedAnswer),
        (200, JSON, "{", errors.UnexpectedAnswer),
        (200, JSON, "{}", errors.UnexpectedAnswer),
    ],
)
async def test_an_uncoded_answer_becomes_its_class(
    api: Served,
    lune: LuneClient,
    status: int,
    content_type: str,
    text: str,
    kind: type[errors.LuneError],
) -> None:
    api.replies["/orders/o1"] = lambda _: web.Response(
        status=status, body=text.encode(), headers={"Content-Type": content_type}
    )
    with pytest.raises(errors.LuneError) as caught:
        await lune.fetch_order(OWN, "o1")
    assert type(caught.value) is kind
    assert caught.value.status == status
    assert "html>" not in caught.value.message


async def test_a_compressed_answer_was_not_asked_for(api: Served, lune: LuneClient) -> None:
    api.replies["/orders/o1"] = lambda _: web.Response(
        body=b"x", headers={"Content-Type": JSON, "Content-Encoding": "gzip"}
    )
    with pytest.raises(errors.UnexpectedAnswer, match="encoding"):
        await lune.fetch_order(OWN, "o1")


async def test_an_error_says_where_and_when_to_ask_again(api: Served, lune: LuneClient) -> None:
    headers = {"Retry-After": "3", "CF-Ray": "8a1b-LHR"}
    api.replies["/orders/o1"] = lambda _: web.Response(status=503, headers=headers)
    with pytest.raises(errors.ServerFault) as caught:
        await lune.fetch_order(OWN, "o1")
    assert caught.value.retry_after == 3.0
    assert caught.value.cf_ray == "8a1b-LHR"


async def test_a_quoted_message_is_at_most_200_bytes(api: Served, lune: LuneClient) -> None:
    api.replies["/orders/o1"] = lambda _: lune_error(400, "id_invalid", "é" * 500)
    with pytest.raises(errors.RequestRefused) as caught:
        await lune.fetch_order(OWN, "o1")
    assert len(caught.value.message.partition(": ")[2].encode()) == 200


async def test_after_the_key_was_refused_nothing_is_asked_until_a_probe_succeeds(
    api: Served, fast: FastTime
) -> None:
    keys = ["old-key", KEY]
    good = {f"Bearer {KEY}"}

    def reply(request: web.BaseRequest) -> Any:
        if request.headers["Authorization"] not in good:
            return lune_error(401, "unauthorised")
        return OWN_ACCOUNT

    api.replies["/accounts/me"] = reply
    api.replies["/orders/o1"] = reply
    rate_limiter = RateLimiter(100, clock=fast.clock, sleep=fast.sleep)
    options = ClientOptions(sleep=fast.sleep)
    async with LuneClient(api.base_url, lambda: keys[0], rate_limiter, options) as lune:
        for _ in range(5):
            with pytest.raises(errors.KeyRefused):
                await lune.fetch_order(OWN, "o1")
        assert lune.key_refused
        assert len(api.requests) == 1
        with pytest.raises(errors.KeyRefused):
            await lune.probe()
        assert len(api.requests) == 2
        del keys[0]
        assert (await lune.probe()).id == "own"
        assert not lune.key_refused
        assert (await lune.fetch_own_account()).id == "own"


async def test_those_who_wait_for_a_turn_are_turned_away_at_once(api: Served) -> None:
    api.replies["/orders/o1"] = lambda _: lune_error(401, "unauthorised")
    # One request an hour: a waiter that is not turned away waits longer than the test may take.
    async with LuneClient(api.base_url, lambda: KEY, RateLimiter(1 / 3600)) as lune:
        async with asyncio.timeout(10):
            calls = [lune.fetch_order(OWN, "o1") for _ in range(20)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {errors.KeyRefused}
    assert len(api.requests) == 1


async def test_those_who_wait_for_another_try_are_turned_away_at_once(api: Served) -> None:
    api.replies["/orders/o1"] = lambda _: web.Response(status=503, headers={"Retry-After": "300"})
    api.replies["/orders/o2"] = lambda _: lune_error(401, "unauthorised")
    async with (
        LuneClient(api.base_url, lambda: KEY, RateLimiter(1000)) as lune,
        asyncio.timeout(10),
    ):
        waiting = asyncio.create_task(lune.fetch_order(OWN, "o1"))
        await api.asked.wait()
        with pytest.raises(errors.KeyRefused):
            await lune.fetch_order(OWN, "o2")
        with pytest.raises(errors.KeyRefused):
            await waiting


async def test_a_401_for_one_account_refuses_that_account_only(
    api: Served, lune: LuneClient
) -> None:
    api.replies["/orders/o1"] = lambda request: (
        lune_error(401, "unauthorised") if "Lune-Account" in request.headers else order("o1")
    )
    with pytest.raises(errors.AccountRefused) as caught:
        await lune.fetch_order(OTHER, "o1")
    assert (caught.value.status, caught.value.path) == (401, "/v1/orders/o1")
    assert api.paths == ["/v1/orders/o1", "/v1/accounts/me"]
    assert not lune.key_refused
    assert (await lune.fetch_order(OWN, "o1")).id == "o1"


async def test_one_request_confirms_the_key_for_all_who_wait(api: Served, lune: LuneClient) -> None:
    api.replies["/orders/o1"] = lambda _: lune_error(401, "unauthorised")
    calls = [lune.fetch_order(OTHER, "o1") for _ in range(5)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {errors.AccountRefused}
    assert api.paths.count("/v1/accounts/me") == 1


async def test_a_401_for_an_account_and_for_the_key_refuses_the_key(
    api: Served, lune: LuneClient
) -> None:
    for path in ("/orders/o1", "/accounts/me"):
        api.replies[path] = lambda _: lune_error(401, "unauthorised")
    calls = [lune.fetch_order(OTHER, "o1") for _ in range(5)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {errors.KeyRefused}
    assert lune.key_refused
    assert api.paths.count("/v1/accounts/me") == 1


async def test_a_key_that_cannot_be_confirmed_just_now_is_not_refused(
    api: Served, lune: LuneClient
) -> None:
    api.replies["/orders/o1"] = lambda _: lune_error(401, "unauthorised")
    api.replies["/accounts/me"] = lambda _: web.Response(status=502)
    with pytest.raises(errors.ServerFault):
        await lune.fetch_order(OTHER, "o1")
    assert not lune.key_refused


async def test_a_429_makes_every_request_wait(
    api: Served, fast: FastTime, lune: LuneClient
) -> None:
    asked: list[tuple[str, float]] = []
    limited = iter([True])

    def reply(request: web.BaseRequest) -> Any:
        asked.append((request.path[-2:], fast.now))
        if next(limited, False):
            return web.Response(status=429, headers={"Retry-After": "7"})
        return order(request.path[-2:])

    api.replies["/orders/o1"] = api.replies["/orders/o2"] = reply
    await asyncio.gather(lune.fetch_order(OWN, "o1"), lune.fetch_order(OWN, "o2"))
    assert asked[0] == ("o1", 0)
    assert sorted(name for name, _ in asked[1:]) == ["o1", "o2"]
    assert all(at >= 7 for _, at in asked[1:])


async def test_the_key_is_in_no_error_and_no_log_line(api: Served, fast: FastTime) -> None:
    api.replies["/orders/o1"] = lambda r: lune_error(400, KEY, f"bad: {KEY}\n{KEY}")
    api.replies["/orders/o2"] = lambda r: lune_error(400, "id_invalid", "x" * 190 + KEY)
    api.replies["/orders/o3"] = lambda r: web.Response(
        status=503, text=KEY[:5] + "\0" + KEY[5:], headers={"CF-Ray": KEY, "X-Echo": KEY}
    )
    api.replies["/orders/o4"] = lambda r: web.Response(body=KEY.encode(), content_type="text/html")
    api.replies["/orders/o5"] = lambda r: web.json_response(
        {"id": KEY, "status": KEY}, headers={"CF-Ray": KEY}
    )
    rate_limiter = RateLimiter(100, clock=fast.clock, sleep=fast.sleep)
    texts: list[str] = []
    with capture_logs() as logs:
        options = ClientOptions(sleep=fast.sleep)
        async with LuneClient(api.base_url, lambda: KEY, rate_limiter, options) as lune:
            texts += [repr(lune), str(vars(lune))]
            for order_id in ("o1", "o2", "o3", "o4", "o5"):
                with pytest.raises(errors.LuneError) as caught:
                    await lune.fetch_order(OWN, order_id)
                error = caught.value
                texts += [str(error), repr(error), str(vars(error))]
                texts += traceback.format_exception(error)
    texts.append(str(logs))
    assert logs
    assert any("bad: *** ***" in text for text in texts)
    assert not any(KEY[:8] in text for text in texts)
