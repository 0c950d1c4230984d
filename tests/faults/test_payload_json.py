"""JSON that is none, or too much, or not what its fields promise."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.faults.catalogue import fault
from tests.faults.instant_harvest import chain, detail, instant_harvest, statistics
from tests.faults.proxy import changed
from tests.faults.scene import HASTY, Scene

DEEP = b"[" * 100_000 + b"]" * 100_000

Row = dict[str, Any]


def noted(value: bytes) -> Callable[[bytes], bytes]:
    """Change the first order of a page: JSON text in the place of its note."""
    return lambda body: body.replace(b'"canary-customer-d41c"', value, 1)


def spoiled(change: Callable[[Row], object]) -> Callable[[bytes], bytes]:
    """Change the first order of a page; what ``change`` returns, if anything, is there instead."""

    def rewrite(body: bytes) -> bytes:
        page = json.loads(body)
        page["data"][0] = change(page["data"][0]) or page["data"][0]
        return json.dumps(page).encode()

    return rewrite


PAGES: dict[str, Callable[[bytes], bytes]] = {
    "P1 deep page": lambda _: DEEP,
    "P1 deep field": noted(DEEP),
    "P2 NaN": noted(b"NaN"),
    "P2 infinity": noted(b"-Infinity"),
    "P2 a key twice": noted(b'1, "note": 2'),
    "P2 an exponent without end": noted(b"1e99999999999999999999"),
    "P3 5000 digits": noted(b"9" * 5000),
    "P8 not UTF-8": noted(b'"\xff\xfe"'),
    "P8 a surrogate in UTF-8": noted(b'"\xed\xa0\x80"'),
    "P8 a byte order mark": lambda body: b"\xef\xbb\xbf" + body,
    "P8 UTF-16": lambda body: body.decode().encode("utf-16"),
}

ROWS: dict[str, Callable[[Row], object]] = {
    "P1 nested 200 deep": lambda row: row.update(metadata=json.loads("[" * 200 + "]" * 200)),
    "P2 1e999": lambda row: row.update(quantity=10**999),
    "P4 half a surrogate pair": lambda row: row.update(metadata={"note": "\ud800"}),
    "P4 in a key": lambda row: row.update(metadata={"\udfff": "note"}),
    "P4 in the idempotency key": lambda row: row.update(idempotency_key="\ud800"),
    "P4 NUL": lambda row: row.update(metadata={"note": "a\0b"}),
    "P5 no object": lambda row: row["id"],
    "P5 a list": lambda row: [row],
    "P5 status a number": lambda row: row.update(status=5),
    "P5 status null": lambda row: row.update(status=None),
    "P5 no status": lambda row: row.pop("status") and None,
    "P5 bundles an object": lambda row: row.update(bundles={}),
    "P5 projects a text": lambda row: row.update(projects="none"),
    "P5 metadata a list": lambda row: row.update(metadata=["note"]),
    "P5 created at a number": lambda row: row.update(created_at=1_672_844_427),
    "P5 created at some time": lambda row: row.update(created_at="yesterday"),
    "P5 no created_at": lambda row: row.pop("created_at") and None,
    "P6 1000 digits": lambda row: row.update(quantity="7" * 1000 + ".00"),
    "P6 digits nobody else reads": lambda row: row.update(total_cost="\u0667\u0661.\u0660"),
    "P6 signed": lambda row: row.update(quantity="-1.5"),
    "P6 grouped": lambda row: row.update(quantity="1,000.00"),
    "P6 no number": lambda row: row.update(commission="NaN"),
}


@fault("P1", "P2", "P3", "P8")
@pytest.mark.parametrize("spoil", PAGES.values(), ids=PAGES.keys())
@pytest.mark.parametrize("endpoint", ["orders", "order"])
async def test_what_two_readers_could_read_differently_moves_no_order(
    scene: Scene, spoil: Callable[[bytes], bytes], endpoint: str
) -> None:
    scene.home.configure(lune__accounts=["default"])
    order = scene.order("placed")
    await scene.drain()
    scene.lune.move_order(order.id, "paid")
    scene.proxy.script(changed(spoil), endpoint, times=math.inf)
    async with instant_harvest(scene) as harvest:
        if endpoint == "orders":
            harvest.later(timedelta(minutes=20))
            assert len((await harvest.sweep()).failed) == 1
        else:
            assert (await harvest.track(order.id)).problem is not None
    assert scene.proxy.count(endpoint) >= 2
    assert await chain(scene, order.id) == [(None, "placed")]
    scene.proxy.clear()
    assert (await scene.drain()).unfinished == []
    assert await chain(scene, order.id) == [(None, "placed"), ("placed", "paid")]


@fault("P1", "P2", "P4", "P5", "P6")
@pytest.mark.parametrize("spoil", ROWS.values(), ids=ROWS.keys())
async def test_an_order_that_cannot_be_kept_is_rejected_alone(
    scene: Scene, spoil: Callable[[Row], object]
) -> None:
    scene.home.configure(lune__accounts=["default"])
    for _ in range(3):
        scene.order("placed")
    scene.proxy.script(changed(spoiled(spoil)), "orders", times=math.inf)
    report = await scene.drain()
    assert report.swept.new == 2
    [line] = report.unfinished
    assert " rejected: " in line
    assert (await statistics(scene)).rejected_orders == 1
    scene.proxy.clear()
    assert (await scene.drain()).unfinished == []
    assert (await statistics(scene)).by_status == {"placed": 3}


@fault("P6")
@pytest.mark.parametrize(
    "served", ['"7176.00"', '"0.100000000000000000000000000001"', "0.30000000000000000001", "12"]
)
async def test_an_amount_is_kept_to_the_last_digit(scene: Scene, served: str) -> None:
    order = scene.order("placed")
    before = json.dumps(scene.lune.document(order.id)["quantity"]).encode()
    scene.proxy.script(
        changed(
            lambda body: body.replace(b'"quantity":' + before, f'"quantity":{served}'.encode())
        ),
        "orders",
        times=math.inf,
    )
    await scene.drain()
    found = await detail(scene, order.id)
    assert found.order.quantity == served.strip('"')
    assert str(found.document["quantity"]) == served.strip('"')


@fault("P7")
async def test_a_page_over_eight_megabytes_is_read_in_smaller_pieces(scene: Scene) -> None:
    scene.home.configure(lune__accounts=["default"])
    for number in range(120):
        scene.order("placed", metadata={"note": f"{number} " * 40_000})
    report = await scene.drain()
    assert (report.swept.new, report.unfinished) == (120, [])
    limits = [seen.target.partition("limit=")[2].partition("&")[0] for seen in scene.proxy.requests]
    assert [limit for limit in limits if limit] == ["100", "50", "100", "50", "100"]


@fault("P7")
async def test_a_single_order_over_the_cap_is_reported_and_leaves_what_was_read(
    scene: Scene,
) -> None:
    scene.home.configure(lune__accounts=["default"])
    orders = [scene.order("placed", metadata={"note": "x" * 9_000})]
    scene.lune.clock.advance(100 * 86_400)
    orders += [scene.order("placed") for _ in range(2)]
    async with instant_harvest(scene, replace(HASTY, largest_json=8_000)) as harvest:
        [reason] = (await harvest.sweep()).failed.values()
        assert "too large: over 8000 bytes" in reason
        known = (await statistics(scene)).by_status
    assert known == {"placed": 2}
    assert (await scene.drain()).unfinished == []
    assert [await chain(scene, order.id) for order in orders] == [[(None, "placed")]] * 3
