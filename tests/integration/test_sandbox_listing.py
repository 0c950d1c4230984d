"""The sandbox lists and serves orders and accounts as Lune's schema says."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import aiohttp
import pytest
from yarl import URL

from harvester.sandbox import Sandbox, SandboxOptions

ORDER_KEYS = {
    "id",
    "idempotency_key",
    "type",
    "status",
    "currency",
    "offset_cost",
    "total_cost",
    "commission",
    "quantity",
    "payment_method",
    "created_at",
    "bundles",
    "projects",
    "certificate",
    "public_certificate_url",
    "metadata",
    "offset_link_id",
    "email",
    "requested_quantity",
    "requested_value",
    "estimate_id",
}
BUNDLE_KEYS = {
    "bundle_id",
    "bundle_name",
    "primary_image",
    "quantity",
    "unit_price",
    "gross_unit_price",
    "offset_cost",
    "insufficient_available_quantity",
}
PROJECT_KEYS = {
    "project_id",
    "project_name",
    "project_type",
    "project_slug",
    "quantity",
    "unit_price",
    "offset_cost",
    "status",
}
ACCOUNT_KEYS = {
    "id",
    "name",
    "organisation_id",
    "handle",
    "currency",
    "type",
    "logo",
    "beneficiary",
    "bundle_portfolio_id",
    "external_pages_visibility",
    "scope",
}
STATUSES = {"received", "placed", "paid", "retiring", "complete", "cancelled", "failed"}
WITH_BUNDLES = {"placed", "paid", "retiring", "complete"}
WITH_PROJECTS = {"retiring", "complete"}


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    options = SandboxOptions(orders=140, client_accounts=1, speed=0, rate_limit=0)
    async with Sandbox(options) as running:
        yield running


@pytest.fixture
async def lune(sandbox: Sandbox) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"Authorization": f"Bearer {sandbox.key}"}
    async with aiohttp.ClientSession(f"{sandbox.base_url}/", headers=headers) as session:
        yield session


async def get(lune: aiohttp.ClientSession, path: str, **query: str) -> Any:
    async with lune.get(path, params=query) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "application/json"
        return await response.json()


async def list_all(lune: aiohttp.ClientSession, path: str, **query: str) -> list[Any]:
    rows: list[Any] = []
    page = await get(lune, path, **query)
    rows += page["data"]
    while page["has_more"]:
        page = await get(lune, path, **query, after=page["next_cursor"])
        rows += page["data"]
    assert page["next_cursor"] is None
    return rows


async def refusal(lune: aiohttp.ClientSession, path: str, **query: str) -> tuple[int, str]:
    async with lune.get(path, params=query) as response:
        body = await response.json()
        assert body["errors"] == [body["error"]]
        assert body["error"]["message"]
        return response.status, body["error"]["error_code"]


async def test_pages_show_every_order_once_and_the_newest_first(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    rows = await list_all(lune, "orders", limit="7")
    assert [row["id"] for row in rows] == [order.id for order in sandbox.orders()]
    assert len({row["id"] for row in rows}) == 70
    dates = [row["created_at"] for row in rows]
    assert dates == sorted(dates, reverse=True)


async def test_a_page_holds_ten_orders_unless_asked_otherwise(lune: aiohttp.ClientSession) -> None:
    assert len((await get(lune, "orders"))["data"]) == 10
    assert len((await get(lune, "orders", limit="1"))["data"]) == 1
    whole = await get(lune, "orders", limit="100")
    assert len(whole["data"]) == 70
    assert (whole["has_more"], whole["next_cursor"]) == (False, None)


async def test_orders_created_while_paging_neither_skip_nor_repeat_others(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    expected = [order.id for order in sandbox.orders()]
    seen: list[str] = []
    query: dict[str, str] = {"limit": "20"}
    while True:
        page = await get(lune, "orders", **query)
        seen += [row["id"] for row in page["data"]]
        sandbox.create_order("received")
        if not page["has_more"]:
            break
        query["after"] = page["next_cursor"]
    assert seen == expected


async def test_an_order_id_serves_as_a_cursor_too(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    orders = sandbox.orders()
    page = await get(lune, "orders", limit="3", after=orders[4].id)
    assert [row["id"] for row in page["data"]] == [order.id for order in orders[5:8]]
    assert page["next_cursor"] not in {order.id for order in orders}


@pytest.mark.parametrize("after", ["", "nonsense", "YWZ0ZXI6bm9uc2Vuc2U", "é"])
async def test_an_invalid_cursor_is_refused(lune: aiohttp.ClientSession, after: str) -> None:
    assert await refusal(lune, "orders", after=after) == (400, "validation_error")
    assert await refusal(lune, "accounts", after=after) == (400, "validation_error")


async def test_another_accounts_order_is_no_cursor(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    other = sandbox.orders(sandbox.accounts[1].id)[0]
    assert await refusal(lune, "orders", after=other.id) == (400, "validation_error")


@pytest.mark.parametrize(
    ("limit", "code"),
    [
        ("0", "pagination_limit_invalid"),
        ("101", "pagination_limit_invalid"),
        ("9" * 5000, "pagination_limit_invalid"),
        ("-1", "validation_error"),
        ("ten", "validation_error"),
        ("", "validation_error"),
        ("\u0661\u0660", "validation_error"),
    ],
)
async def test_a_bad_limit_is_refused(lune: aiohttp.ClientSession, limit: str, code: str) -> None:
    assert await refusal(lune, "orders", limit=limit) == (400, code)


async def test_orders_of_one_offset_link_are_listed_apart(lune: aiohttp.ClientSession) -> None:
    linked = [row for row in await list_all(lune, "orders") if row["offset_link_id"]]
    link = linked[0]["offset_link_id"]
    rows = await list_all(lune, "orders", offset_link_id=link, limit="1")
    assert rows == [row for row in linked if row["offset_link_id"] == link]
    assert all(row["email"] for row in rows)
    assert await list_all(lune, "orders", offset_link_id="no-such-link") == []


async def test_an_email_is_served_on_orders_of_offset_links_only(
    lune: aiohttp.ClientSession,
) -> None:
    rows = await list_all(lune, "orders", limit="100")
    assert {row["email"] is None for row in rows} == {True, False}
    assert all((row["email"] is None) == (row["offset_link_id"] is None) for row in rows)


async def test_every_status_is_there_from_the_start(sandbox: Sandbox) -> None:
    for account in sandbox.accounts:
        orders = sandbox.orders(account.id)
        assert {sandbox.status(order.id) for order in orders} == STATUSES


async def test_every_order_has_every_property_of_the_schema(lune: aiohttp.ClientSession) -> None:
    for row in await list_all(lune, "orders", limit="100"):
        assert row.keys() == ORDER_KEYS | {"certificate_url"}
        assert row["status"] in STATUSES
        assert isinstance(row["metadata"], dict)
        assert row["created_at"].endswith("Z")
        assert row["payment_method"] in ("invoice", "card", None)


async def test_properties_are_null_until_the_status_that_sets_them(
    lune: aiohttp.ClientSession,
) -> None:
    for row in await list_all(lune, "orders", limit="100"):
        has_bundles = row["status"] in WITH_BUNDLES
        for name in ("offset_cost", "total_cost", "commission", "quantity", "bundles"):
            assert (row[name] is not None) is has_bundles, (row["status"], name)
        assert bool(row["projects"]) is (row["status"] in WITH_PROJECTS)
        assert (row["certificate"] is not None) is (row["status"] == "complete")


async def test_what_was_requested_follows_from_the_kind_of_order(
    lune: aiohttp.ClientSession,
) -> None:
    kinds: Counter[tuple[str, bool]] = Counter()
    for row in await list_all(lune, "orders", limit="100"):
        by_value = row["type"] == "value"
        assert (row["requested_value"] is not None) is by_value
        assert (row["requested_quantity"] is not None) is not by_value
        assert not (by_value and row["estimate_id"])
        kinds[row["type"], row["estimate_id"] is not None] += 1
    assert set(kinds) == {("value", False), ("quantity", False), ("quantity", True)}


async def test_rows_of_bundles_and_projects_add_up(lune: aiohttp.ClientSession) -> None:
    for row in await list_all(lune, "orders", limit="100"):
        if row["status"] not in WITH_BUNDLES:
            continue
        quantity, cost = Decimal(row["quantity"]), Decimal(row["offset_cost"])
        assert cost + Decimal(row["commission"]) == Decimal(row["total_cost"])
        parts = [(row["bundles"], BUNDLE_KEYS)]
        if row["status"] in WITH_PROJECTS:
            parts.append((row["projects"], PROJECT_KEYS))
        for rows, keys in parts:
            assert all(keys <= part.keys() for part in rows)
            assert sum(Decimal(part["quantity"]) for part in rows) == quantity
            assert sum(Decimal(part["offset_cost"]) for part in rows) == cost


async def test_projects_are_retired_once_the_order_is_complete(
    lune: aiohttp.ClientSession,
) -> None:
    for row in await list_all(lune, "orders", limit="100"):
        states = {project["status"] for project in row["projects"] or ()}
        if row["status"] == "complete":
            assert states == {"retired"}
        elif row["status"] == "retiring":
            assert "allocated" in states


async def test_an_order_is_found_by_its_id_and_by_its_key(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    order = sandbox.create_order("paid", idempotency_key="a/b c?%2F#é")
    by_id = await get(lune, f"orders/{order.id}")
    quoted = "a%2Fb%20c%3F%252F%23%C3%A9"
    assert by_id["id"] == order.id
    assert by_id == sandbox.document(order.id)
    url = f"{sandbox.base_url}/orders/by-idempotency-key/{quoted}"
    async with lune.get(URL(url, encoded=True)) as response:
        assert await response.json() == by_id


@pytest.mark.parametrize(
    "path", ["orders/nope", "orders/by-idempotency-key/nope", "orders/nope/certificate", "nope"]
)
async def test_what_is_not_there_is_answered_404_without_a_body(
    lune: aiohttp.ClientSession, path: str
) -> None:
    async with lune.get(path) as response:
        assert response.status == 404
        assert await response.read() == b""
        assert response.headers["CF-Ray"]


async def test_another_accounts_order_is_not_found(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    client = sandbox.accounts[1]
    order = sandbox.orders(client.id)[0]
    async with lune.get(f"orders/{order.id}") as response:
        assert response.status == 404
    async with lune.get(f"orders/{order.id}", headers={"Lune-Account": client.id}) as response:
        assert (await response.json())["id"] == order.id


async def test_accounts_have_every_property_of_the_schema(lune: aiohttp.ClientSession) -> None:
    me = await get(lune, "accounts/me")
    assert me.keys() == ACCOUNT_KEYS | {"sibling_id"}
    (client,) = await list_all(lune, "accounts/client")
    assert client.keys() == ACCOUNT_KEYS
    assert client["scope"] == "client_account"
    assert await get(lune, f"accounts/{me['id']}") == me
    assert await get(lune, f"accounts/client/{client['id']}") == client


async def test_accounts_of_both_modes_are_listed_as_siblings(lune: aiohttp.ClientSession) -> None:
    mine, sibling = await list_all(lune, "accounts", limit="1")
    assert (mine["type"], sibling["type"]) == ("test", "live")
    assert (mine["sibling_id"], sibling["sibling_id"]) == (sibling["id"], mine["id"])


async def test_the_same_seed_gives_the_same_world() -> None:
    one, same, other = (Sandbox(SandboxOptions(orders=9, speed=0, seed=seed)) for seed in (5, 5, 6))
    assert [order.id for order in one.orders()] == [order.id for order in same.orders()]
    assert one.accounts == same.accounts
    assert {order.id for order in one.orders()}.isdisjoint(order.id for order in other.orders())


async def test_ten_thousand_orders_are_there_at_once() -> None:
    began = time.monotonic()
    sandbox = Sandbox(SandboxOptions(orders=10_000))
    assert time.monotonic() - began < 5
    assert sum(len(sandbox.orders(account.id)) for account in sandbox.accounts) == 10_000
