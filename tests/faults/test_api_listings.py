"""Listings that shift while they are read, lie about their end, or hold what is no order."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from harvester.sandbox.world import cursor
from tests.faults.catalogue import fault
from tests.faults.instant_harvest import (
    chain,
    detail,
    details,
    instant_harvest,
    rejections,
    statistics,
)
from tests.faults.proxy import Answer, Exchange, changed, response, saying, through
from tests.faults.scene import Scene

INTERVAL = timedelta(minutes=16)

Page = dict[str, Any]


def page(change: Callable[[Page], None]) -> Answer:
    """Answer with the real page, changed."""

    def rewrite(body: bytes) -> bytes:
        document = json.loads(body)
        change(document)
        return json.dumps(document).encode()

    return changed(rewrite)


def below(answer: Answer) -> Answer:
    """Answer so for every page but the first."""

    async def choose(exchange: Exchange) -> None:
        await (answer if "after=" in exchange.seen.target else through)(exchange)

    return choose


async def known(scene: Scene) -> int:
    """Count the orders in the ledger."""
    return sum((await statistics(scene)).by_status.values())


@fault("A17")
async def test_orders_placed_while_the_listing_is_read_hide_none(scene: Scene) -> None:
    scene.home.configure(lune__accounts=["default"])
    for _ in range(120):
        scene.order("received", tonnes="1")

    async def meanwhile(exchange: Exchange) -> None:
        for _ in range(15):
            scene.order("received", tonnes="1")
        await through(exchange)

    scene.proxy.script(below(meanwhile), "orders", times=math.inf)
    async with instant_harvest(scene) as harvest:
        await harvest.drain()
        assert await known(scene) == 120
        scene.proxy.clear()
        harvest.later(INTERVAL)
        await harvest.sweep()
        assert await known(scene) == 120 + 15
    await scene.drain()


@fault("A17", "A22")
async def test_a_row_that_comes_again_is_the_same_order(scene: Scene) -> None:
    orders = [scene.order("placed") for _ in range(3)]

    def twice(document: Page) -> None:
        document["data"] = document["data"] * 2

    scene.proxy.script(page(twice), "orders", times=2)
    assert (await scene.drain()).swept.new == 3
    assert [await chain(scene, order.id) for order in orders] == [[(None, "placed")]] * 3


def _same(document: Page, _: list[str]) -> None:
    document |= {"has_more": True, "next_cursor": "same"}


def _circle(document: Page, ids: list[str]) -> None:
    # The second page leads back to the top, and from there to just below it, and back.
    leads_to = ids[1] if document["data"][0]["id"] == ids[1] else ids[0]
    document |= {"has_more": True, "next_cursor": cursor(leads_to)}


def _empty(document: Page, _: list[str]) -> None:
    document |= {"has_more": True, "next_cursor": ""}


def _nothing(document: Page, _: list[str]) -> None:
    document |= {"has_more": True, "next_cursor": "more", "data": []}


@fault("A18")
@pytest.mark.parametrize("lie", [_same, _circle, _empty, _nothing])
async def test_a_listing_without_an_end_is_left_and_reported(
    scene: Scene, lie: Callable[[Page, list[str]], None]
) -> None:
    scene.home.configure(lune__accounts=["default"])
    for _ in range(150):
        scene.order("received", tonnes="1")
    ids = [order.id for order in scene.lune.orders()]
    scene.proxy.script(below(page(lambda row: lie(row, ids))), "orders", times=math.inf)
    async with instant_harvest(scene) as harvest:
        swept = await harvest.sweep()
        assert list(swept.failed) == [scene.lune.accounts[0].id]
        assert scene.proxy.count("orders") < 10
        assert await known(scene) >= 100
        asked = scene.proxy.count("orders")
        await harvest.sweep()
        assert scene.proxy.count("orders") == asked
    scene.proxy.clear()
    await scene.drain()
    assert await known(scene) == 150


@fault("A19")
@pytest.mark.parametrize("times", [1, math.inf])
async def test_a_cursor_that_lost_its_meaning_restarts_the_listing_once(
    scene: Scene, times: float
) -> None:
    scene.home.configure(lune__accounts=["default"])
    for _ in range(150):
        scene.order("received", tonnes="1")
    body = b'{"error": {"error_code": "validation_error", "message": "after: not a cursor"}}'
    left = times

    async def forget(exchange: Exchange) -> None:
        nonlocal left
        left -= 1
        await (through if left < 0 else saying(response(400, body)))(exchange)

    scene.proxy.script(below(forget), "orders", times=math.inf)
    async with instant_harvest(scene) as harvest:
        failed = (await harvest.sweep()).failed
    assert bool(failed) == math.isinf(times)
    assert scene.proxy.count("orders") == 4  # the first page, a cursor, and both again
    assert await known(scene) == (100 if failed else 150)
    scene.proxy.clear()
    assert (await scene.drain()).unfinished == []
    assert await known(scene) == 150


@fault("A20")
async def test_an_open_order_far_down_the_listing_is_found_again_by_its_id(scene: Scene) -> None:
    scene.home.configure(lune__accounts=["default"])
    old = scene.order("paid")
    scene.lune.clock.advance(100 * 86_400)
    for _ in range(350):
        scene.order("cancelled", tonnes="1")
    await scene.drain()
    scene.lune.move_order(old.id, "complete")
    asked = scene.proxy.count()
    async with instant_harvest(scene) as harvest:
        harvest.later(timedelta(hours=7))
        await harvest.sweep()
        assert (await detail(scene, old.id)).order.status == "complete"
    assert scene.proxy.count("order") == 1
    assert scene.proxy.count() - asked == 3  # the account, the newest page, the order
    await scene.drain()


@fault("A21")
async def test_one_malformed_order_costs_the_other_99_nothing(scene: Scene) -> None:
    scene.home.configure(lune__accounts=["default"])
    for _ in range(100):
        scene.order("placed", tonnes="1")

    def spoil(document: Page) -> None:
        document["data"][50]["quantity"] = "a lot"

    scene.proxy.script(page(spoil), "orders")
    report = await scene.drain()
    assert report.swept.new == 99
    [line] = report.unfinished
    assert "rejected: quantity: not a decimal" in line
    assert (await statistics(scene)).rejected_orders == 1
    [rejected] = await rejections(scene)
    assert rejected.reason.startswith("quantity")
    assert (await scene.drain()).unfinished == []
    assert await known(scene) == 100
    assert await rejections(scene) == []
    assert (await statistics(scene)).rejected_orders == 0


@fault("A22")
async def test_the_same_id_in_two_accounts_is_two_orders(scene: Scene) -> None:
    own, other = scene.lune.accounts
    order = scene.order("placed", account_id=own.id)
    document = scene.lune.document(order.id)

    async def also_there(exchange: Exchange) -> None:
        if exchange.seen.headers.get("lune-account") != other.id:
            return await through(exchange)
        copy = {"has_more": False, "next_cursor": None, "data": [document]}
        return await exchange.say(response(200, json.dumps(copy).encode()))

    scene.proxy.script(also_there, "orders", times=math.inf)
    await scene.drain()
    scene.lune.move_order(order.id, "paid")
    await scene.drain()
    assert {one.order.account_id: one.order.status for one in await details(scene, order.id)} == {
        own.id: "paid",
        other.id: "placed",
    }
