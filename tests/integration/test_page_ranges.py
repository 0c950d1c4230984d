"""Orders deep in a listing are checked by the fewest requests, as the server counts them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from harvester.app import App
from harvester.context import utc_now
from harvester.domain.orders import EVERYTHING
from harvester.ledger.accounts import postpone_sweep, read_accounts
from harvester.ledger.schedule import (
    due_checks,
    newest_positions,
    open_orders,
    order_above,
    postpone_checks,
)
from harvester.runtime.drain import Drain
from harvester.sandbox import Sandbox
from harvester.sandbox.world import Order
from tests.integration.conftest import OpenApp

PAGES, SINGLES = "GET /orders", "GET /orders/{id}"
DEPTH = 450


@pytest.fixture
def listing(sandbox: Sandbox) -> list[Order]:
    """Ended orders, newest first, three of which are open: two side by side, and one alone."""
    for _ in range(DEPTH):
        sandbox.create_order("cancelled", hold=True)
    made = sandbox.orders()
    for position in (150, 230, 420):
        sandbox.move_order(made[position].id, "paid")
    return made


async def check(app: App, sandbox: Sandbox) -> tuple[int, int]:
    """Let everything open fall due; return how many pages and single orders were asked for."""
    followed_orders = await open_orders(app.database, EVERYTHING)
    for account in await read_accounts(app.database):
        mine = [one.order_id for one in followed_orders if one.account_id == account.id]
        await postpone_checks(app.database, account.id, mine, utc_now())
    followed = await app.accounts.accounts()
    sandbox.journal.clear()
    report = await app.sweep.run_once(followed)
    assert not report.failed
    return sandbox.journal.count(PAGES), sandbox.journal.count(SINGLES)


async def known(app: App) -> dict[str, str]:
    return {one.order_id: one.status for one in await open_orders(app.database, EVERYTHING)}


async def test_one_page_shows_neighbours_and_a_lone_order_is_asked_for_itself(
    sandbox: Sandbox, opened: OpenApp, listing: list[Order]
) -> None:
    async with opened() as app:
        await Drain(app).run()
        for position in (150, 230, 420):
            sandbox.move_order(listing[position].id, "retiring")
        assert await check(app, sandbox) == (1, 1)
        assert set((await known(app)).values()) == {"retiring"}


async def test_a_page_range_is_found_again_after_new_orders_came(
    sandbox: Sandbox, opened: OpenApp, listing: list[Order]
) -> None:
    async with opened() as app:
        await Drain(app).run()
        for _ in range(130):
            new = sandbox.create_order("received", hold=True)
            sandbox.move_order(new.id, "cancelled")
        for account in await read_accounts(app.database):
            await postpone_sweep(app.database, account.id, utc_now())
        await app.sweep.run_once(await app.accounts.accounts())
        own = sandbox.accounts[0].id
        assert await newest_positions(app.database, [own]) == {own: 130}
        assert await check(app, sandbox) == (1, 1)


async def test_where_ids_are_no_cursors_the_listing_is_read_from_the_top_from_then_on(
    sandbox: Sandbox, opened: OpenApp, listing: list[Order]
) -> None:
    async with opened() as app:
        await Drain(app).run()
        sandbox.faults.add("strict-cursor")
        sandbox.move_order(listing[230].id, "complete")
        assert await check(app, sandbox) == (1, 0)  # the cursor was refused
        pages, singles = await check(app, sandbox)
        assert (pages, singles) == (0, 3)
        assert listing[230].id not in await known(app)


async def test_the_ledger_knows_where_in_the_listing_its_open_orders_are(
    sandbox: Sandbox, opened: OpenApp, listing: list[Order]
) -> None:
    async with opened() as app:
        await Drain(app).run()
        account = sandbox.accounts[0].id
        later = utc_now() + timedelta(hours=7)
        due = await due_checks(app.database, later, app.context.schedule.horizon(later), [account])
        depths = {one.order_id: -(one.position or 0) for one in due[account]}
        assert depths == {listing[position].id: position for position in (150, 230, 420)}
        above = await order_above(app.database, account, listing[150].id)
        assert above is not None
        assert above.order_id == listing[149].id
