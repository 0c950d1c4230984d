"""Orders deep in a listing are looked at by the fewest requests, as the server counts them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from harvester.app import Harvest, now
from harvester.domain.records import EVERYTHING
from harvester.sandbox import Sandbox
from harvester.sandbox.world import Order
from tests.integration.conftest import OpenHarvest

PAGES, SINGLES = "GET /orders", "GET /orders/{id}"
DEPTH = 450


@pytest.fixture
def listing(sandbox: Sandbox) -> list[Order]:
    """Ended orders, newest first, three of which are open: two side by side, and one alone."""
    for _ in range(DEPTH):
        sandbox.create_order("cancelled", hold=True)
    made = sandbox.orders()
    for place in (150, 230, 420):
        sandbox.move_order(made[place].id, "paid")
    return made


async def look(harvest: Harvest, sandbox: Sandbox) -> tuple[int, int]:
    """Let everything open fall due; return how many pages and single orders were asked for."""
    open_orders = await harvest.ledger.open_orders(EVERYTHING)
    for account in await harvest.ledger.accounts():
        mine = [one.order_id for one in open_orders if one.account_id == account.id]
        await harvest.ledger.postpone_looks(account.id, mine, now())
    followed = await harvest.book.accounts()
    sandbox.journal.clear()
    report = await harvest.sweep.run_once(followed)
    assert not report.failed
    return sandbox.journal.count(PAGES), sandbox.journal.count(SINGLES)


async def known(harvest: Harvest) -> dict[str, str]:
    return {one.order_id: one.status for one in await harvest.ledger.open_orders(EVERYTHING)}


async def test_one_page_shows_neighbours_and_a_lone_order_is_asked_for_itself(
    sandbox: Sandbox, opened: OpenHarvest, listing: list[Order]
) -> None:
    async with opened() as harvest:
        await harvest.drain().run()
        for place in (150, 230, 420):
            sandbox.move_order(listing[place].id, "retiring")
        assert await look(harvest, sandbox) == (1, 1)
        assert set((await known(harvest)).values()) == {"retiring"}


async def test_a_stretch_is_found_again_after_new_orders_came(
    sandbox: Sandbox, opened: OpenHarvest, listing: list[Order]
) -> None:
    async with opened() as harvest:
        await harvest.drain().run()
        for _ in range(130):
            new = sandbox.create_order("received", hold=True)
            sandbox.move_order(new.id, "cancelled")
        for account in await harvest.ledger.accounts():
            await harvest.ledger.postpone_sweep(account.id, now())
        await harvest.sweep.run_once(await harvest.book.accounts())
        own = sandbox.accounts[0].id
        assert await harvest.ledger.newest_places([own]) == {own: 130}
        assert await look(harvest, sandbox) == (1, 1)


async def test_where_ids_are_no_cursors_the_listing_is_read_from_the_top_from_then_on(
    sandbox: Sandbox, opened: OpenHarvest, listing: list[Order]
) -> None:
    async with opened() as harvest:
        await harvest.drain().run()
        sandbox.faults.add("strict-cursor")
        sandbox.move_order(listing[230].id, "complete")
        assert await look(harvest, sandbox) == (1, 0)  # the cursor was refused
        pages, singles = await look(harvest, sandbox)
        assert (pages, singles) == (0, 3)
        assert listing[230].id not in await known(harvest)


async def test_the_ledger_knows_where_in_the_listing_its_open_orders_are(
    sandbox: Sandbox, opened: OpenHarvest, listing: list[Order]
) -> None:
    async with opened() as harvest:
        await harvest.drain().run()
        account = sandbox.accounts[0].id
        later = now() + timedelta(hours=7)
        due = await harvest.ledger.due_looks(later, harvest.cadence.horizon(later), [account])
        depths = {one.order_id: -(one.place or 0) for one in due[account]}
        assert depths == {listing[place].id: place for place in (150, 230, 420)}
        above = await harvest.ledger.order_above(account, listing[150].id)
        assert above is not None
        assert above.order_id == listing[149].id
