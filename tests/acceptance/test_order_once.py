"""``order``: refused with nothing left behind, cut off anywhere and bought once."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from harvester.sandbox import Sandbox
from tests.acceptance.harness import Home, until
from tests.acceptance.ordering import (
    BUY,
    MASS,
    ORDERED_BEFORE,
    chain,
    open_purchases,
)
from tests.integration.order_desk import MESSAGE, OWN, OrderDesk, Turn, refusing


@pytest.fixture
def home(tmp_path: Path, lune: Sandbox) -> Home:
    return Home(tmp_path, lune, lune__accounts=["default"], harvest__sweep_interval="500ms")


@asynccontextmanager
async def maybe_a_daemon(home: Home, *, runs: bool) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        if runs:
            await stack.enter_async_context(home.daemon())
        yield


# What Lune refuses.

REFUSALS = [(400, "order_value_invalid"), (402, "insufficient_credits")]
PRIVATE = ("--metadata", "customer=Zoë Private")


@pytest.mark.parametrize("daemon", [False, True], ids=["alone", "daemon"])
async def test_a_refusal_is_reported_with_3_and_leaves_the_key_free(
    shop: Home, desk: OrderDesk, daemon: bool
) -> None:
    async with maybe_a_daemon(shop, runs=daemon):
        for status, code in REFUSALS:
            desk.turns.append(refusing(status, code))
            ran = await shop.run(*BUY, *PRIVATE)
            assert ran.code == 3, ran.err
            assert code in ran.err
            assert MESSAGE in ran.err
            assert " ordered " not in ran.out
            assert "Private" not in ran.out + ran.err
        assert chain(shop) == []
        ran = await shop.run("order", "by-value", "5", "--yes", "--idempotency-key", "K")
        assert ran.code == 0, ran.err
    assert len(desk.orders) == 1


async def test_a_refused_quote_is_reported_with_3_and_nothing_is_ordered(
    shop: Home, desk: OrderDesk
) -> None:
    desk.quote_turns.append(refusing(400, "bundle_selection_ratios_invalid"))
    ran = await shop.run(*BUY)
    assert ran.code == 3
    assert "bundle_selection_ratios_invalid" in ran.err
    assert MESSAGE in ran.err
    assert desk.posts() == []
    assert not shop.ledger.exists()


@pytest.mark.parametrize("daemon", [False, True], ids=["alone", "daemon"])
async def test_a_refused_key_of_the_api_ends_with_77(
    shop: Home, desk: OrderDesk, daemon: bool
) -> None:
    async with maybe_a_daemon(shop, runs=daemon):
        desk.turns.append(refusing(401, "unauthorised"))
        ran = await shop.run(*BUY)
        assert ran.code == 77, ran.err
        assert "unauthorised" in ran.err
        assert desk.key not in ran.err
    assert len(desk.posts()) == 1
    assert desk.orders == {}


# Bought once.


async def test_an_order_placed_elsewhere_under_the_key_is_ours_and_the_key_is_taken(
    home: Home, lune: Sandbox
) -> None:
    order = lune.create_order("paid", hold=True, idempotency_key="K")
    ran = await home.run(*BUY)
    assert ran.code == 0, ran.err
    assert f"{order.id} {ORDERED_BEFORE} (Lune: paid); its certificate will be stored" in ran.out
    assert chain(home) == [("paid", "track")]
    other = await home.run("order", "by-mass", "259.12", *BUY[3:])
    assert other.code == 2
    assert "another purchase" in other.err
    assert [one.id for one in lune.orders()] == [order.id]


async def test_an_answer_that_is_lost_is_made_up_for_by_asking(shop: Home, desk: OrderDesk) -> None:
    desk.turns.append(Turn(silence="drop"))
    ran = await shop.run(*BUY, *PRIVATE)
    assert ran.code == 0, ran.err
    assert "Order1 ordered (Lune: received); its certificate will be stored" in ran.out
    assert "purchase in doubt" in ran.err
    assert "Private" not in ran.out + ran.err
    assert len(desk.posts()) == 1


async def killed_while_the_order_hangs(shop: Home, desk: OrderDesk) -> None:
    """Order; the desk takes it and never answers; the command is killed on the spot."""
    desk.turns.append(Turn(silence="hang"))
    async with shop.running(*BUY) as buying:
        await until(lambda: desk.orders)
        assert not buying.ended
        assert (await buying.end(signal.SIGKILL)).code == -signal.SIGKILL


async def test_killed_while_the_order_is_sent_and_run_again_it_is_bought_once(
    shop: Home, desk: OrderDesk
) -> None:
    await killed_while_the_order_hangs(shop, desk)
    ran = await shop.run(*BUY)
    assert ran.code == 0, ran.err
    assert f"Order1 {ORDERED_BEFORE} (Lune: received); its certificate will be stored" in ran.out
    assert list(desk.orders) == [(OWN, "K")]
    assert len(desk.posts()) == 1
    shown = await shop.show("K")
    assert (shown["id"], shown["status"]) == ("Order1", "received")
    assert shown["next_check_at"] is not None
    desk.orders[OWN, "K"]["status"] = "paid"
    assert (await shop.run("run", "--drain")).code == 0
    assert chain(shop) == [("received", "track"), ("paid", "drain")]
    assert len(desk.posts()) == 1


async def test_killed_before_the_order_is_sent_nothing_is_bought_until_it_is_run_again(
    shop: Home, desk: OrderDesk
) -> None:
    desk.quote_turns.append(Turn(silence="hang"))
    async with shop.running(*BUY) as buying:
        await until(lambda: any(one.endpoint.endswith("/quote") for one in desk.asked))
        await buying.end(signal.SIGKILL)
    assert desk.posts() == []
    assert not shop.ledger.exists()
    ran = await shop.run(*BUY)
    assert ran.code == 0, ran.err
    assert "Order1 ordered (Lune: received)" in ran.out
    assert len(desk.posts()) == len(desk.orders) == 1


@pytest.mark.parametrize("daemon", [False, True], ids=["drain", "daemon"])
async def test_an_order_left_in_doubt_is_settled_by_whoever_runs_next(
    shop: Home, desk: OrderDesk, daemon: bool
) -> None:
    await killed_while_the_order_hangs(shop, desk)
    desk.asked.clear()
    if daemon:
        async with shop.daemon():
            await until(lambda: chain(shop))
    else:
        assert (await shop.run("run", "--drain")).code == 0
    assert desk.posts() == []
    assert desk.lookups() == 1
    assert chain(shop) == [("received", "track")]


async def test_interrupted_while_the_order_is_sent_the_key_is_known_and_the_order_in_doubt(
    shop: Home, desk: OrderDesk
) -> None:
    desk.turns.append(Turn(silence="hang"))
    async with shop.running(*BUY) as buying:
        await until(lambda: desk.orders)
        stopped = await buying.end(signal.SIGINT)
    assert stopped.code == 130, stopped.err
    assert "idempotency key: K" in stopped.err
    assert "Traceback" not in stopped.err
    assert open_purchases(shop) == ["K"]
    assert len(desk.posts()) == 1


# With a daemon.


async def test_a_running_daemon_places_the_order_and_stores_its_certificate(
    home: Home, lune: Sandbox
) -> None:
    home.configure(harvest__sweep_interval="1h")  # no sweep may be first to see it
    async with home.daemon() as daemon:
        async with home.running(*BUY, "--wait", "50s", "--json") as buying:
            await until(lambda: chain(home))
            (order,) = lune.orders()
            lune.move_order(order.id, "complete")
            assert (await home.run("track", order.id)).code == 0
            ran = await buying.result()
        assert ran.code == 0, ran.err
        assert ran.document() == {
            "account_id": lune.accounts[0].id,
            "order_id": order.id,
            "status": "received",
            "existed": False,
            "idempotency_key": "K",
            "certificate_state": "stored",
        }
        assert chain(home) == [("received", "track"), ("complete", "track")]
        assert len(home.files()) == 1
        other = await home.run("order", "by-mass", "259.12", *BUY[3:])
        assert other.code == 2
        assert "another purchase" in other.err
        assert not daemon.ended
    assert len(lune.orders()) == 1


async def test_a_killed_command_leaves_its_order_to_the_daemon(shop: Home, desk: OrderDesk) -> None:
    async with shop.daemon():
        await killed_while_the_order_hangs(shop, desk)
        ran = await shop.run(*BUY)
        assert ran.code == 0, ran.err
        assert f"Order1 {ORDERED_BEFORE}" in ran.out
    assert len(desk.posts()) == len(desk.orders) == 1


async def test_a_daemon_that_is_killed_in_the_middle_leaves_a_doubt_that_names_the_key(
    shop: Home, desk: OrderDesk
) -> None:
    """Told to try again without its key, a person would buy a second time."""
    desk.turns.append(Turn(silence="hang"))
    async with shop.daemon() as daemon, shop.running(*MASS, "--yes") as buying:
        await until(lambda: desk.orders)
        await daemon.end(signal.SIGKILL)
        ran = await buying.result()
    ((_, key),) = desk.orders
    again = await shop.run(*MASS, "--yes", "--idempotency-key", key)
    assert again.code == 0, again.err
    assert ORDERED_BEFORE in again.out
    assert len(desk.posts()) == len(desk.orders) == 1
    assert "Traceback" not in ran.err
    assert ran.code == 3, ran.err
    assert f"--idempotency-key {key}" in ran.err
