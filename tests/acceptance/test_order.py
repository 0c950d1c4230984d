"""``quote`` and ``order``: what it costs, what is bought, what is asked first, what is wrong."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from harvester.sandbox import Sandbox, SandboxOptions
from tests.acceptance.harness import Home, Ran, on_a_terminal, until
from tests.acceptance.ordering import BUY, MASS, at_the_desk, chain, converse
from tests.integration.order_desk import CLIENT, OrderDesk

ASIA = "q9aKx7b6nNXMk3Yv3pD1mlW5Od2eLZE8"
OCEAN = "xWaKJL3okjD46VpJ4yGXnQNZRe1vzP0w"
ESTIMATE = "90ng23MKvLqbkpMwMw7yMBD4wJQrV6O6"


@pytest.fixture
def home(tmp_path: Path, lune: Sandbox) -> Home:
    return Home(tmp_path, lune, lune__accounts=["default"], harvest__sweep_interval="500ms")


# What it costs.


async def test_a_quote_prices_each_bundle_and_buys_nothing(home: Home, lune: Sandbox) -> None:
    ran = await home.run("quote", "by-mass", "259.11", "kg")
    assert ran.code == 0, ran.err
    rows = [line.split("\t") for line in ran.out.splitlines()]
    assert [row[:4] for row in rows] == [
        ["Conserving forests in Asia", "0.246154", "13.57", "3.34"],
        ["Ocean Carbon Removal", "0.012955", "250", "3.24"],
        ["commission", "", "", "0.74"],
        ["total", "0.259109", "", "7.32"],
    ]
    assert lune.orders() == []
    assert not home.ledger.exists()


async def test_a_quote_as_json_is_lunes_document_and_nothing_else(home: Home) -> None:
    ran = await home.run("quote", "by-value", "0.54", "--json", "--bundle", OCEAN)
    document = ran.document()
    assert (ran.code, ran.err) == (0, "")
    assert (document["requested_value"], document["estimated_total_cost"]) == ("0.54", "0.54")
    assert [bundle["bundle_id"] for bundle in document["bundles"]] == [OCEAN]


async def test_a_quote_on_a_terminal_is_a_table_and_asked_in_the_accounts_name(
    shop: Home, desk: OrderDesk
) -> None:
    code, text = await on_a_terminal(shop, "quote", "by-value", "5", "--account", CLIENT)
    assert code == 0
    assert "EUR/t" in text
    assert "short of inventory" in text
    (asked,) = [one for one in desk.asked if one.endpoint.endswith("/quote")]
    assert (asked.account, asked.body) == (CLIENT, {"value": "5"})


# What is bought.


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        (("by-mass", "259.110", "kg"), {"mass": {"amount": "259.110", "unit": "kg"}}),
        (("by-value", "0.54"), {"value": "0.54"}),
        (("by-estimate", ESTIMATE), {"estimate_id": ESTIMATE}),
    ],
)
async def test_what_was_written_is_what_is_sent_to_the_letter(
    shop: Home, desk: OrderDesk, arguments: tuple[str, ...], sent: dict[str, Any]
) -> None:
    extra = ["--bundle", f"{ASIA}=95", "--bundle", f"{OCEAN}=5.00", "--metadata", "customer=Zoë=1"]
    ran = await shop.run("order", *arguments, *extra, "--yes", "--idempotency-key", "INV 7/ä")
    assert ran.code == 0, ran.err
    assert ("total" in ran.out) is (arguments[0] != "by-estimate")
    shares = [{"bundle_id": ASIA, "percentage": 95}, {"bundle_id": OCEAN, "percentage": 5}]
    assert desk.posts() == [
        {
            **sent,
            "bundle_selection": shares,
            "metadata": {"customer": "Zoë=1"},
            "idempotency_key": "INV 7/ä",
        }
    ]


async def test_an_order_is_placed_shown_and_followed_under_a_key_that_is_made(
    home: Home, lune: Sandbox
) -> None:
    ran = await home.run(*MASS, "--yes", "--metadata", "invoice=7")
    assert ran.code == 0, ran.err
    (order,) = lune.orders()
    assert order.idempotency_key
    assert f"idempotency key: {order.idempotency_key}" in ran.err
    assert ran.out.splitlines()[-2:] == [
        "total\t0.259109\t\t7.32\t",
        f"{order.id} ordered (Lune: received); its certificate will be stored",
    ]
    shown = await home.show(order.id)
    assert shown["idempotency_key"] == order.idempotency_key
    assert shown["metadata"] == {"invoice": "7"}
    assert shown["next_check_at"] is not None
    assert [step["source"] for step in shown["transitions"]] == ["track"]


async def test_waiting_stays_until_the_certificate_is_stored_whoever_is_followed(
    home: Home, lune: Sandbox
) -> None:
    client = lune.accounts[1].id
    async with home.running(*BUY, "--account", client, "--wait", "50s") as buying:
        await until(lambda: lune.orders(client))
        (order,) = lune.orders(client)
        lune.move_order(order.id, "complete")
        ran = await buying.result()
    assert ran.code == 0, ran.err
    assert "its certificate: stored" in ran.out
    (path,) = home.archive.glob("*/*/*.pdf")
    assert path.read_bytes() == lune.certificate(order.id)
    assert chain(home) == [("received", "track"), ("complete", "check")]


async def test_waiting_in_vain_is_said_with_3(home: Home, lune: Sandbox) -> None:
    ran = await home.run(*BUY, "--wait", "200ms")
    assert ran.code == 3
    assert "ordered (Lune: received); its certificate will be stored" in ran.out
    assert "not stored yet" in ran.err
    assert chain(home) == [("received", "track")]


async def test_an_order_that_ends_without_a_certificate_is_not_waited_for(
    home: Home, lune: Sandbox
) -> None:
    async with home.running(*BUY, "--wait", "50s") as buying:
        await until(lune.orders)
        lune.move_order(lune.orders()[0].id, "cancelled")
        assert (await buying.result()).code == 3


# What is asked first.


async def test_without_a_terminal_and_without_yes_nothing_is_asked_of_lune(
    home: Home, lune: Sandbox
) -> None:
    ran = await home.run(*MASS, stdin="y\ny\n")
    assert ran.code == 2
    assert "--yes" in ran.err
    assert lune.journal.count() == 0


async def test_the_question_shows_the_price_and_no_is_no(home: Home, lune: Sandbox) -> None:
    code, text = await converse(home, MASS, "n")
    assert code == 130
    account = lune.accounts[0]
    assert "Conserving forests in Asia" in text
    assert f"Buy for 7.32 GBP, account {account.name} ({account.id})?" in text
    assert text.count("[y/N]") == 1
    assert lune.orders() == []
    assert lune.journal.count("POST /orders/by-mass") == 0


@pytest.mark.parametrize(("answers", "orders"), [("yn", 0), ("yy", 1)])
async def test_a_live_key_is_asked_once_more_with_account_and_sum(
    tmp_path: Path, answers: str, orders: int
) -> None:
    options = SandboxOptions(orders=0, speed=0, rate_limit=0, mode="live")
    async with Sandbox(options) as lune:
        home = Home(tmp_path, lune)
        code, text = await converse(home, MASS, answers)
        account = lune.accounts[0]
        assert text.count("[y/N]") == 2
        assert f"live key: {account.name} ({account.id}) really pays 7.32 GBP" in text
        assert len(lune.orders()) == orders
        assert code == (0 if orders else 130)


async def test_what_lune_serves_cannot_redraw_the_question(tmp_path: Path) -> None:
    async with OrderDesk(name="Ac\x1b[2Kme\u202e").serving() as desk:
        _, text = await converse(at_the_desk(tmp_path, desk), MASS, "n")
    assert "\x1b[2K" not in text
    assert "\u202e" not in text


# What is wrong with it.

WRONG: list[tuple[tuple[str | bytes, ...], str]] = [
    (("by-mass", "-5", "kg"), "decimal number"),
    (("by-mass", "0", "kg"), "more than zero"),
    (("by-mass", "0.5", "g"), "finer than a gram"),
    (("by-mass", "1e5", "kg"), "decimal number"),
    (("by-mass", "\uff11\uff12", "kg"), "decimal number"),
    (("by-mass", "1,5", "kg"), "decimal number"),
    (("by-mass", "", "kg"), "decimal number"),
    (("by-mass", " 5", "kg"), "decimal number"),
    (("by-mass", "1.", "kg"), "decimal number"),
    (("by-mass", "1" * 40, "kg"), "decimal number"),
    (("by-mass", "5", "stone"), "unit"),
    (("by-mass", "5"), "Missing argument"),
    (("by-value", "0.001"), "two decimals"),
    (("by-value", "nan"), "decimal number"),
    (("by-estimate", "../me"), "estimate id"),
    (("by-value", "5", "--bundle", f"{ASIA}=99"), "sum to 100"),
    (("by-value", "5", "--bundle", f"{ASIA}=100", "--bundle", OCEAN), "all bundles"),
    (("by-value", "5", "--bundle", ASIA, "--bundle", ASIA), "named once"),
    (("by-value", "5", "--metadata", "customer"), "NAME=VALUE"),
    (("by-value", "5", "--metadata", "=7"), "NAME=VALUE"),
    (("by-value", "5", "--idempotency-key", ""), "1 to 100"),
    (("by-value", "5", "--idempotency-key", "x" * 101), "1 to 100"),
    (("by-value", "5", "--wait", "soon"), "duration"),
    (("by-value", "5", "--yess"), "yess"),
]


async def test_what_cannot_be_bought_is_a_usage_error_before_anything_is_sent(
    home: Home, lune: Sandbox
) -> None:
    four = asyncio.Semaphore(4)

    async def attempt(arguments: tuple[str | bytes, ...]) -> Ran:
        async with four:
            return await home.run("order", *arguments, "--yes")  # type: ignore[arg-type]  # arguments may be bytes

    for (arguments, rule), ran in zip(
        WRONG, await asyncio.gather(*(attempt(one) for one, _ in WRONG)), strict=True
    ):
        assert (ran.code, ran.out) == (2, ""), (arguments, ran.err)
        assert rule in ran.err, (arguments, ran.err)
        assert "Traceback" not in ran.err, arguments
    assert lune.journal.count() == 0
    assert not home.ledger.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("by-mass", "1" * 30, "t"),
        ("by-value", "5", "--account", "a b"),
        ("by-value", "5", "--account", "../me"),
        ("by-value", "5", "--metadata", b"customer=Zo\xeb"),
        ("by-value", "5", "--bundle", f"{ASIA}=33.333", "--bundle", f"{OCEAN}=66.667"),
    ],
    ids=["many digits", "spaced account", "path as account", "latin-1 metadata", "fine percentage"],
)
async def test_what_lune_could_not_even_be_asked_is_a_usage_error(
    home: Home, lune: Sandbox, arguments: tuple[str, ...]
) -> None:
    ran = await home.run("order", *arguments, "--yes")
    assert "Traceback" not in ran.err, ran.err
    assert ran.code == 2, ran.err
    assert lune.journal.count() == 0


async def test_fractional_percentages_are_taken_by_a_lune_that_checks_its_schema(
    home: Home, lune: Sandbox
) -> None:
    ran = await home.run(*BUY, "--bundle", f"{ASIA}=33.33", "--bundle", f"{OCEAN}=66.67")
    assert ran.code == 0, ran.err
    assert len(lune.orders()) == 1
