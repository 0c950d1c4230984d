"""Who the sandbox lets in, how it says no, and what it counts."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from harvester.sandbox import Sandbox, SandboxOptions


class HandClock:
    """Monotonic seconds that move only when told to."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def hand() -> HandClock:
    return HandClock()


@pytest.fixture
async def sandbox(hand: HandClock) -> AsyncIterator[Sandbox]:
    async with Sandbox(SandboxOptions(orders=14), monotonic=hand) as running:
        yield running


@pytest.fixture
async def lune(sandbox: Sandbox) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(f"{sandbox.base_url}/") as session:
        yield session


def bearer(sandbox: Sandbox, **others: str) -> dict[str, str]:
    named = {name.replace("_", "-"): value for name, value in others.items()}
    return {"Authorization": f"Bearer {sandbox.key}", **named}


async def ask(
    lune: aiohttp.ClientSession, headers: dict[str, str], path: str = "orders"
) -> tuple[int, str | None]:
    async with lune.get(path, headers=headers) as response:
        assert response.headers["CF-Ray"]
        if response.status == 200:
            return 200, None
        error = (await response.json())["error"]
        return response.status, error["error_code"]


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer wrong", "sandbox-key", "Basic sandbox-key"]
)
async def test_a_missing_or_wrong_key_is_refused(
    lune: aiohttp.ClientSession, authorization: str | None
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    assert await ask(lune, headers) == (401, "unauthorised")


async def test_a_refused_key_learns_nothing_of_what_exists(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    assert await ask(lune, {}, f"orders/{sandbox.orders()[0].id}") == (401, "unauthorised")
    assert await ask(lune, {}, "orders/nope") == (401, "unauthorised")


async def test_the_version_may_be_missing_but_not_unknown(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    assert await ask(lune, bearer(sandbox)) == (200, None)
    assert await ask(lune, bearer(sandbox, Lune_Version="2024-08-08")) == (200, None)
    unknown = bearer(sandbox, Lune_Version="2019-01-01")
    assert await ask(lune, unknown) == (400, "api_version_invalid")


async def test_the_account_header_acts_on_that_account(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    for account in sandbox.accounts:
        headers = bearer(sandbox, Lune_Account=account.id)
        async with lune.get("accounts/me", headers=headers) as response:
            assert (await response.json())["id"] == account.id
        async with lune.get("orders", headers=headers) as response:
            listed = {row["id"] for row in (await response.json())["data"]}
        assert listed == {order.id for order in sandbox.orders(account.id)}


async def test_an_unknown_account_or_one_of_the_other_mode_is_refused(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    for account_id in ("nobody", sandbox.accounts[0].sibling_id or ""):
        headers = bearer(sandbox, Lune_Account=account_id)
        assert await ask(lune, headers) == (400, "invalid_selected_account_id")


async def test_the_client_accounts_own_endpoint_wants_a_client_account(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    path = "accounts/client/me"
    assert await ask(lune, bearer(sandbox), path) == (400, "account_scope_incorrect")
    client = bearer(sandbox, Lune_Account=sandbox.accounts[1].id)
    assert await ask(lune, client, path) == (200, None)


async def test_accounts_are_read_under_their_own_scope_and_mode_only(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    own, client = sandbox.accounts[:2]
    for path in (
        f"accounts/{client.id}",
        f"accounts/client/{own.id}",
        f"accounts/{own.sibling_id}",
    ):
        async with lune.get(path, headers=bearer(sandbox)) as response:
            assert response.status == 404


async def test_a_live_sandbox_has_live_accounts() -> None:
    sandbox = Sandbox(SandboxOptions(orders=0, accounts=2, mode="live"))
    assert {account.mode for account in sandbox.accounts} == {"live"}
    assert [account.scope for account in sandbox.accounts] == ["account"] * 2 + [
        "client_account"
    ] * 2


async def test_the_sixteenth_request_of_a_second_is_refused(
    sandbox: Sandbox, lune: aiohttp.ClientSession, hand: HandClock
) -> None:
    for _ in range(15):
        assert await ask(lune, bearer(sandbox)) == (200, None)
        hand.seconds += 0.01
    async with lune.get("orders", headers=bearer(sandbox)) as response:
        assert response.status == 429
        assert response.content_type == "text/plain"
        assert "Retry-After" not in response.headers
        assert await response.text()


async def test_the_limit_holds_for_any_second_not_for_each_full_one(
    sandbox: Sandbox, lune: aiohttp.ClientSession, hand: HandClock
) -> None:
    hand.seconds += 0.9
    for _ in range(15):
        assert await ask(lune, bearer(sandbox)) == (200, None)
    hand.seconds += 0.99
    async with lune.get("orders", headers=bearer(sandbox)) as response:
        assert response.status == 429
    hand.seconds += 0.01
    assert await ask(lune, bearer(sandbox)) == (200, None)


async def test_requests_are_counted_by_endpoint_and_status(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    await ask(lune, bearer(sandbox))
    await ask(lune, bearer(sandbox), f"orders/{sandbox.orders()[0].id}")
    await ask(lune, bearer(sandbox), f"orders/{sandbox.orders()[1].id}")
    await ask(lune, {})
    journal = sandbox.journal
    assert journal.count() == 4
    assert journal.count("GET /orders") == 2
    assert journal.count("GET /orders", 401) == 1
    assert journal.count("GET /orders/{id}", 200) == 2
    assert journal.count(status=200) == 3
    assert journal.peak == 4
    journal.clear()
    assert (journal.count(), journal.peak) == (0, 0)


async def test_the_peak_is_the_most_that_came_within_one_second(
    sandbox: Sandbox, lune: aiohttp.ClientSession, hand: HandClock
) -> None:
    for _ in range(3):
        await ask(lune, bearer(sandbox))
        hand.seconds += 0.4
    hand.seconds += 5
    await ask(lune, bearer(sandbox))
    assert sandbox.journal.peak == 3


async def test_a_method_that_does_not_exist_is_not_found(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    async with lune.delete("orders", headers=bearer(sandbox)) as response:
        assert (response.status, await response.read()) == (404, b"")


async def test_a_taken_port_is_an_error_and_leaves_nothing_behind(sandbox: Sandbox) -> None:
    port = int(sandbox.base_url.rsplit(":", 1)[1].removesuffix("/v1"))
    second = Sandbox(SandboxOptions(orders=0))
    with pytest.raises(OSError, match="address already in use"):
        await second.start(port=port)
    assert (await second.start()).startswith("http://127.0.0.1:")
    await second.stop()


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"orders": -1}, "orders is"),
        ({"accounts": 0}, "accounts is"),
        ({"speed": -1.0}, "speed is"),
        ({"speed": float("nan")}, "speed is"),
        ({"key": "two words"}, "key is"),
        ({"key": ""}, "key is"),
        ({"mode": "prod"}, "mode is"),
        ({"certificate_at": "paid"}, "certificate_at is"),
    ],
)
def test_wrong_options_are_refused_with_the_rule(options: dict[str, object], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        SandboxOptions(**options)  # type: ignore[arg-type]  # wrong values are the point
