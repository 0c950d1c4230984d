"""The sandbox takes orders and prices them by the rules of Lune's schema."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import aiohttp
import pytest

from harvester.sandbox import Sandbox, SandboxOptions

ASIA = "q9aKx7b6nNXMk3Yv3pD1mlW5Od2eLZE8"
OCEAN = "xWaKJL3okjD46VpJ4yGXnQNZRe1vzP0w"
ESTIMATE = "90ng23MKvLqbkpMwMw7yMBD4wJQrV6O6"
KILO = {"amount": "1", "unit": "kg"}


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(SandboxOptions(orders=0, speed=0, rate_limit=0)) as running:
        yield running


@pytest.fixture
async def lune(sandbox: Sandbox) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"Authorization": f"Bearer {sandbox.key}"}
    async with aiohttp.ClientSession(f"{sandbox.base_url}/", headers=headers) as session:
        yield session


async def post(lune: aiohttp.ClientSession, path: str, body: object) -> Any:
    async with lune.post(path, json=body) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def refusal(lune: aiohttp.ClientSession, path: str, body: object) -> tuple[int, str]:
    async with lune.post(path, json=body) as response:
        document = await response.json()
        assert document["errors"] == [document["error"]]
        return response.status, document["error"]["error_code"]


async def test_the_schemas_sample_quote_by_mass_is_reproduced(
    lune: aiohttp.ClientSession,
) -> None:
    quote = await post(lune, "orders/by-mass/quote", {"mass": {"amount": "12.07", "unit": "kg"}})
    assert quote["requested_quantity"] == "0.01207"
    assert quote["requested_value"] is None
    assert quote["estimated_quantity"] == "0.012069"
    assert quote["estimated_offset_cost"] == "0.31"
    assert quote["estimated_total_cost"] == "0.35"
    assert quote["estimated_commission"] == "0.04"
    assert [
        (row["bundle_id"], row["quantity"], row["offset_cost"], row["gross_unit_price"])
        for row in quote["bundles"]
    ] == [(ASIA, "0.011466", "0.16", "15.08"), (OCEAN, "0.000603", "0.15", "277.78")]
    assert {row["insufficient_available_quantity"] for row in quote["bundles"]} == {None}


async def test_the_schemas_sample_quote_by_value_is_reproduced(
    lune: aiohttp.ClientSession,
) -> None:
    quote = await post(lune, "orders/by-value/quote", {"value": "0.54"})
    assert quote["requested_value"] == "0.54"
    assert quote["requested_quantity"] is None
    assert quote["estimated_quantity"] == "0.019137"
    assert quote["estimated_offset_cost"] == "0.49"
    assert quote["estimated_total_cost"] == "0.54"
    assert quote["estimated_commission"] == "0.05"
    assert [(row["quantity"], row["offset_cost"]) for row in quote["bundles"]] == [
        ("0.018181", "0.25"),
        ("0.000956", "0.24"),
    ]


async def test_a_quote_places_no_order(sandbox: Sandbox, lune: aiohttp.ClientSession) -> None:
    await post(lune, "orders/by-mass/quote", {"mass": KILO})
    assert sandbox.orders() == []


async def test_the_guides_sample_order_by_value_is_answered_in_its_shape(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    order = await post(lune, "orders/by-value", {"value": "0.54"})
    assert order.keys() >= {
        "id",
        "metadata",
        "idempotency_key",
        "type",
        "status",
        "currency",
        "offset_cost",
        "total_cost",
        "commission",
        "quantity",
        "created_at",
        "bundles",
        "projects",
        "certificate",
        "certificate_url",
        "offset_link_id",
        "email",
        "estimate_id",
        "requested_quantity",
        "requested_value",
    }
    assert (order["type"], order["status"], order["requested_value"]) == (
        "value",
        "received",
        "0.54",
    )
    sandbox.move_order(order["id"], "placed")
    placed = sandbox.document(order["id"])
    assert (placed["offset_cost"], placed["total_cost"]) == ("0.49", "0.54")
    assert (placed["commission"], placed["quantity"]) == ("0.05", "0.019137")
    assert placed["projects"] == []


async def test_the_guides_sample_order_by_mass_is_placed(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    body = {
        "mass": {"amount": "259.11", "unit": "kg"},
        "idempotency_key": "sg5knd2",
        "metadata": {"shipment": "S-1"},
        "bundle_selection": [
            {"bundle_id": ASIA, "percentage": 34},
            {"bundle_id": OCEAN, "percentage": "66.00"},
        ],
    }
    order = await post(lune, "orders/by-mass", body)
    assert order["requested_quantity"] == "0.25911"
    assert order["metadata"] == {"shipment": "S-1"}
    assert order["idempotency_key"] == "sg5knd2"
    assert [listed.id for listed in sandbox.orders()] == [order["id"]]
    sandbox.move_order(order["id"], "placed")
    quantities = [row["quantity"] for row in sandbox.document(order["id"])["bundles"]]
    assert quantities == ["0.088097", "0.171012"]


async def test_an_order_by_bundle_masses_buys_exactly_those(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    masses = [
        {"bundle_id": ASIA, "mass": {"amount": "20", "unit": "t"}},
        {"bundle_id": OCEAN, "mass": {"amount": "1", "unit": "g"}},
    ]
    order = await post(lune, "orders/by-mass", {"bundle_masses": masses})
    assert order["requested_quantity"] == "20.000001"
    sandbox.move_order(order["id"], "placed")
    rows = sandbox.document(order["id"])["bundles"]
    assert [row["quantity"] for row in rows] == ["20", "0.000001"]


async def test_an_order_by_estimate_names_the_estimate(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    order = await post(lune, "orders/by-estimate", {"estimate_id": ESTIMATE})
    assert (order["type"], order["estimate_id"]) == ("quantity", ESTIMATE)
    assert Decimal(order["requested_quantity"]) > 0
    again = await refusal(lune, "orders/by-estimate", {"estimate_id": ESTIMATE})
    assert again == (409, "estimate_order_already_placed")


async def test_a_used_idempotency_key_is_a_conflict_within_its_account_only(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    body = {"mass": KILO, "idempotency_key": "INV-1"}
    first = await post(lune, "orders/by-mass", body)
    conflict = (409, "order_idempotency_already_exists")
    assert await refusal(lune, "orders/by-mass", body) == conflict
    assert await refusal(lune, "orders/by-value", {"value": "9", **body}) == conflict
    async with lune.get("orders/by-idempotency-key/INV-1") as response:
        assert (await response.json())["id"] == first["id"]
    other = {"Lune-Account": sandbox.accounts[1].id}
    async with lune.post("orders/by-mass", json=body, headers=other) as response:
        assert response.status == 200
    assert [len(sandbox.orders(account.id)) for account in sandbox.accounts] == [1, 1, 0]


async def test_orders_without_a_key_are_all_placed(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    for _ in range(3):
        assert (await post(lune, "orders/by-mass", {"mass": KILO}))["idempotency_key"] is None
    assert len(sandbox.orders()) == 3


async def test_quantities_are_cut_off_at_the_unit_asked_for(lune: aiohttp.ClientSession) -> None:
    body = {"mass": {"amount": "1999.9", "unit": "kg"}, "quantity_trunc": "kg"}
    quote = await post(lune, "orders/by-mass/quote", body)
    assert [row["quantity"] for row in quote["bundles"]] == ["1.899", "0.099"]


async def test_a_selection_without_percentages_is_divided_equally(
    lune: aiohttp.ClientSession,
) -> None:
    selection = [{"bundle_id": ASIA}, {"bundle_id": OCEAN}]
    body = {"mass": {"amount": "1", "unit": "t"}, "bundle_selection": selection}
    quote = await post(lune, "orders/by-mass/quote", body)
    assert [row["quantity"] for row in quote["bundles"]] == ["0.5", "0.5"]


async def test_the_fee_never_lifts_the_total_above_the_value(
    lune: aiohttp.ClientSession,
) -> None:
    for cents in range(100, 2000, 37):
        value = Decimal(cents).scaleb(-2)
        quote = await post(lune, "orders/by-value/quote", {"value": str(value)})
        total = Decimal(quote["estimated_total_cost"])
        assert total <= value
        assert total == sum(
            Decimal(quote[name]) for name in ("estimated_offset_cost", "estimated_commission")
        )


def _selection(*rows: dict[str, object]) -> dict[str, object]:
    return {"mass": KILO, "bundle_selection": list(rows)}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ([], "validation_error"),
        ({}, "validation_error"),
        ({"mass": None}, "validation_error"),
        ({"mass": {"amount": 1, "unit": "kg"}}, "validation_error"),
        ({"mass": {"amount": "-1", "unit": "kg"}}, "validation_error"),
        ({"mass": {"amount": "1.", "unit": "kg"}}, "validation_error"),
        ({"mass": {"amount": "1e3", "unit": "kg"}}, "validation_error"),
        ({"mass": {"amount": "1\n", "unit": "kg"}}, "validation_error"),
        ({"mass": {"amount": "1", "unit": "lb"}}, "validation_error"),
        ({"mass": {"amount": "1"}}, "validation_error"),
        ({"mass": KILO, "bundle_masses": []}, "validation_error"),
        ({"mass": KILO, "quantity_trunc": "mg"}, "validation_error"),
        ({"mass": KILO, "idempotency_key": 7}, "validation_error"),
        ({"mass": KILO, "idempotency_key": None}, "validation_error"),
        ({"mass": KILO, "idempotency_key": "x" * 101}, "validation_error"),
        ({"mass": KILO, "metadata": []}, "validation_error"),
        ({"mass": KILO, "metadata": {"a": 1}}, "validation_error"),
        ({"mass": {"amount": "0", "unit": "t"}}, "order_quantity_invalid"),
        ({"mass": {"amount": "0.1", "unit": "g"}}, "order_quantity_invalid"),
        ({"mass": {"amount": "9" * 5000, "unit": "t"}}, "order_quantity_invalid"),
        ({"mass": KILO, "quantity_trunc": "t"}, "order_quantity_invalid"),
        ({"bundle_masses": []}, "order_quantity_invalid"),
        ({"bundle_masses": {}}, "validation_error"),
        ({"bundle_masses": [{"mass": KILO}]}, "validation_error"),
        ({"bundle_masses": [{"bundle_id": "nope", "mass": KILO}]}, "bundle_id_invalid"),
        (_selection(), "bundle_selection_ratios_invalid"),
        (_selection({"bundle_id": ASIA, "percentage": 99}), "bundle_selection_ratios_invalid"),
        (
            _selection({"bundle_id": ASIA, "percentage": 100}, {"bundle_id": OCEAN}),
            "bundle_selection_ratios_invalid",
        ),
        (_selection({"bundle_id": ASIA, "percentage": "99.999"}), "validation_error"),
        (_selection({"bundle_id": ASIA, "percentage": 99.5}), "validation_error"),
        (_selection({"bundle_id": ASIA, "percentage": True}), "validation_error"),
        (_selection({"percentage": 100}), "validation_error"),
        (_selection({"bundle_id": "nope"}), "bundle_selection_bundle_invalid"),
        (_selection({"bundle_id": ASIA}, {"bundle_id": ASIA}), "bundle_selection_bundle_invalid"),
    ],
)
async def test_an_order_by_mass_that_breaks_a_rule_is_refused(
    sandbox: Sandbox, lune: aiohttp.ClientSession, body: object, code: str
) -> None:
    assert await refusal(lune, "orders/by-mass", body) == (400, code)
    assert sandbox.orders() == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "validation_error"),
        ({"value": 5}, "validation_error"),
        ({"value": "5,00"}, "validation_error"),
        ({"value": "0"}, "order_value_invalid"),
        ({"value": "0.009"}, "order_value_invalid"),
        ({"value": "1" + "0" * 40}, "order_value_invalid"),
        ({"value": "1", "quantity_trunc": "t"}, "order_value_invalid"),
    ],
)
async def test_an_order_by_value_that_breaks_a_rule_is_refused(
    lune: aiohttp.ClientSession, body: object, code: str
) -> None:
    assert await refusal(lune, "orders/by-value", body) == (400, code)
    assert await refusal(lune, "orders/by-value/quote", body) == (400, code)


@pytest.mark.parametrize(
    ("body", "code"),
    [({}, "validation_error"), ({"estimate_id": "unknown"}, "estimate_not_found")],
)
async def test_an_unknown_estimate_is_refused(
    lune: aiohttp.ClientSession, body: object, code: str
) -> None:
    assert await refusal(lune, "orders/by-estimate", body) == (400, code)


async def test_a_key_of_a_hundred_characters_is_taken(lune: aiohttp.ClientSession) -> None:
    order = await post(lune, "orders/by-mass", {"mass": KILO, "idempotency_key": "x" * 100})
    assert order["idempotency_key"] == "x" * 100


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 90_000])
async def test_a_body_that_is_no_json_is_refused(lune: aiohttp.ClientSession, data: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    async with lune.post("orders/by-mass", data=data, headers=headers) as response:
        assert response.status == 400
        assert (await response.json())["error"]["error_code"] == "validation_error"


async def test_a_body_of_another_type_is_answered_415_without_a_body(
    lune: aiohttp.ClientSession,
) -> None:
    async with lune.post("orders/by-mass", data={"mass": "1"}) as response:
        assert (response.status, await response.read()) == (415, b"")


async def test_a_body_over_a_hundred_kilobytes_is_answered_413_without_a_body(
    lune: aiohttp.ClientSession,
) -> None:
    body = {"mass": KILO, "metadata": {"long": "x" * 100_001}}
    async with lune.post("orders/by-mass", json=body) as response:
        assert (response.status, await response.read()) == (413, b"")
