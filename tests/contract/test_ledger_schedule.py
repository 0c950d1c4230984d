"""What any ledger must do: when orders are checked, and where they stand in their listings."""

from __future__ import annotations

from datetime import datetime, timedelta

from harvester.domain.orders import (
    EVERYTHING,
    CertificateState,
    Order,
    OrderFilter,
    OrderPage,
    Source,
)
from harvester.domain.schedule import StatusDuration
from harvester.ledger.accounts import begin_sweep, park_account
from harvester.ledger.orders import Recorded, record_orders
from harvester.ledger.schedule import (
    DueCheck,
    OpenOrder,
    due_checks,
    earliest_due,
    newest_positions,
    open_orders,
    order_above,
    postpone_checks,
    set_positions,
    status_durations,
    unseen_open_orders,
)
from tests.contract.ledger_cases import (
    ACCOUNT,
    CLIENT,
    DAY,
    FAR,
    HOUR,
    MINUTE,
    NOW,
    SCHEDULE,
    Kept,
    order,
)

# When to check, and what is left.


async def test_an_open_order_is_due_when_its_date_comes_or_lies_beyond_the_horizon(
    kept: Kept,
) -> None:
    await kept.see(order())
    due = (await kept.whole()).order.next_check_at
    assert due == SCHEDULE.next_check(NOW, [SCHEDULE.chance("placed", timedelta(0))])
    assert await kept.checks(due - MINUTE) == {}
    assert set(await kept.checks(due)) == {"o1"}
    # The clock was a year ahead when the date was set: now it counts as due.
    assert set(await kept.checks(NOW - 365 * DAY)) == {"o1"}


async def test_orders_that_ended_are_not_checked(kept: Kept) -> None:
    await kept.see(*(order(status, status) for status in ("complete", "cancelled", "failed")))
    assert await kept.checks(FAR) == {}
    assert await open_orders(kept.database, EVERYTHING) == []


async def test_open_orders_that_one_answer_shows_are_checked_together(kept: Kept) -> None:
    old = [order(f"o{n}", "paid", created_at=NOW - 300 * DAY - n * DAY) for n in range(9)]
    await kept.see(*old, order("done", "complete"))
    dates = {one.next_check_at for one in await open_orders(kept.database, EVERYTHING)}
    chances = [SCHEDULE.chance("paid", NOW - one.created_at) for one in old]
    assert dates == {SCHEDULE.next_check(NOW, chances)}
    await kept.see(old[0], source=Source.CHECK, at=NOW + HOUR)
    alone = (await kept.whole("o0")).order.next_check_at
    assert alone == SCHEDULE.next_check(
        NOW + HOUR, [SCHEDULE.chance("paid", NOW + HOUR - old[0].created_at)]
    )
    assert alone - NOW > SCHEDULE.next_check(NOW + HOUR, chances) - NOW


async def test_an_order_that_was_seen_to_move_counts_as_still_since_then(kept: Kept) -> None:
    ancient = NOW - 900 * DAY
    await kept.see(order("o1", "paid", created_at=ancient))
    at = NOW + DAY
    await kept.see(order("o1", "retiring", created_at=ancient), at=at)
    due = (await kept.whole()).order.next_check_at
    assert due == SCHEDULE.next_check(at, [SCHEDULE.chance("retiring", timedelta(0))])


async def test_postponed_checks_are_due_at_the_new_date(kept: Kept) -> None:
    await kept.see(order("o1"), order("o2"))
    await postpone_checks(kept.database, "acct", [], NOW)
    await postpone_checks(kept.database, "acct", ["o1", "never"], NOW + MINUTE)
    assert set(await kept.checks(NOW + MINUTE)) == {"o1"}
    assert set(await kept.checks(NOW + HOUR)) == {"o1", "o2"}


async def test_due_checks_are_returned_by_account_of_all_or_of_some(kept: Kept) -> None:
    await kept.see(order("o1", "complete"), order("o2"), order("o3", "retiring"))
    await kept.see(order("o2", "paid"), account=CLIENT)
    late = NOW + HOUR

    async def due(now: datetime, ids: list[str] | None = None) -> dict[str, set[str]]:
        checks = await due_checks(kept.database, now, SCHEDULE.horizon(now), ids)
        return {account: {check.order_id for check in mine} for account, mine in checks.items()}

    assert await due(NOW) == {}
    assert await due(late) == {"acct": {"o2", "o3"}, "client": {"o2"}}
    assert await due(late, ["client", "nobody"]) == {"client": {"o2"}}
    assert await due(late, []) == {}
    await park_account(kept.database, "client", "suspended", FAR, NOW)
    assert await due(late, ["client"]) == {"client": {"o2"}}


async def test_an_owed_certificate_is_no_check(kept: Kept) -> None:
    await kept.see(order("o1", "complete"))
    broken = (await kept.due())[0]
    await kept.fail(broken, state=CertificateState.FAILED, again=NOW)
    assert await due_checks(kept.database, NOW + HOUR, SCHEDULE.horizon(NOW + HOUR)) == {}


async def test_open_orders_not_seen_since_an_instant_are_returned_within_the_scope(
    kept: Kept,
) -> None:
    await kept.see(order("old", created_at=NOW - 30 * DAY), order("o1"), order("o2", "failed"))
    await kept.see(order("o3"), at=NOW + HOUR)
    await kept.see(order("o4"), account=CLIENT)

    async def unseen(before: datetime, scope: OrderFilter = EVERYTHING) -> list[str]:
        return sorted(await unseen_open_orders(kept.database, "acct", before, scope))

    assert await unseen(NOW) == []
    assert await unseen(NOW + HOUR) == ["o1", "old"]
    assert await unseen(NOW + HOUR, OrderFilter(since=NOW - 2 * DAY)) == ["o1"]


async def test_open_orders_are_returned_with_their_next_date(kept: Kept) -> None:
    await kept.see(order("o1", "paid"), order("o2", "complete"))
    await kept.see(order("o3", "odd"), account=CLIENT)
    due = NOW + 15 * MINUTE
    assert await open_orders(kept.database, EVERYTHING) == [
        OpenOrder("acct", "o1", "paid", due),
        OpenOrder("client", "o3", "odd", due),
    ]
    scope = OrderFilter(accounts=frozenset({"client"}))
    assert [one.order_id for one in await open_orders(kept.database, scope)] == ["o3"]


async def test_the_earliest_date_in_scope_is_returned(kept: Kept) -> None:
    assert await earliest_due(kept.database, EVERYTHING) is None
    await kept.see(order("o1", "paid"), order("o2", "cancelled"))
    assert await earliest_due(kept.database, EVERYTHING) == NOW + 15 * MINUTE
    assert await earliest_due(kept.database, OrderFilter(status="cancelled")) is None


# Where orders stand in their listings.


def listing(first: int, last: int) -> list[Order]:
    """Return orders numbered by their age, the newest first."""
    return [order(f"o{n}", created_at=NOW - n * MINUTE) for n in range(first, last)]


async def sweep_page(kept: Kept, *page: Order, position: int | None = None) -> Recorded:
    mark = await begin_sweep(kept.database, "acct")
    return await record_orders(
        kept.database,
        ACCOUNT,
        OrderPage(page),
        Source.SWEEP,
        NOW,
        SCHEDULE,
        sweep=mark,
        position=position,
    )


async def positions(kept: Kept) -> dict[str, int | None]:
    return await kept.checks(NOW + 7 * HOUR)


async def test_the_first_page_ever_gives_positions_and_the_next_goes_on_below(kept: Kept) -> None:
    first = await sweep_page(kept, *listing(0, 3))
    assert first.position == 0
    await sweep_page(kept, *listing(3, 5), position=first.position - 3)
    assert await positions(kept) == {"o0": 0, "o1": -1, "o2": -2, "o3": -3, "o4": -4}
    assert await newest_positions(kept.database, ["acct", "client"]) == {"acct": 0}


async def test_new_orders_get_positions_above_the_known_ones_on_their_page(kept: Kept) -> None:
    await sweep_page(kept, *listing(2, 5))
    again = await sweep_page(kept, *listing(0, 4))
    assert again.position == 2
    assert await positions(kept) == {"o0": 2, "o1": 1, "o2": 0, "o3": -1, "o4": -2}


async def test_a_page_without_known_orders_has_no_position_until_it_is_given(kept: Kept) -> None:
    await sweep_page(kept, *listing(3, 5))
    alone = await sweep_page(kept, *listing(0, 2))
    assert alone.position is None
    assert (await positions(kept))["o0"] is None
    await set_positions(kept.database, "acct", ["o0", "o1", "o3"], 3)
    assert await positions(kept) == {"o0": 3, "o1": 2, "o3": 0, "o4": -1}


async def test_an_order_found_by_itself_gets_its_position_when_a_page_shows_it(kept: Kept) -> None:
    await sweep_page(kept, *listing(0, 1), *listing(2, 3))
    await kept.see(*listing(5, 6), source=Source.TRACK)
    assert (await positions(kept))["o5"] is None
    await sweep_page(kept, *listing(2, 3), *listing(5, 6))
    assert await positions(kept) == {"o0": 0, "o2": -1, "o5": -2}


async def test_the_order_above_is_the_next_newer_one(kept: Kept) -> None:
    await sweep_page(kept, *listing(0, 3))
    await kept.see(*listing(0, 3)[:1], account=CLIENT)
    assert await order_above(kept.database, "acct", "o2") == DueCheck("o1", -1)
    assert await order_above(kept.database, "acct", "o0") is None
    assert await order_above(kept.database, "acct", "never") is None


async def test_the_newest_position_is_the_highest_at_the_top_of_each_listing(kept: Kept) -> None:
    await sweep_page(kept, *listing(1, 12))
    await kept.see(*listing(0, 1), source=Source.TRACK)  # no page has shown it yet
    await kept.see(*listing(0, 3), account=CLIENT)
    assert await newest_positions(kept.database, ["acct", "client", "nobody"]) == {"acct": 0}
    await sweep_page(kept, *listing(0, 4))
    assert await newest_positions(kept.database, ["acct"]) == {"acct": 1}
    assert await newest_positions(kept.database, []) == {}


async def test_neighbours_whose_dates_contradict_the_listing_do_not_lower_its_top(
    kept: Kept,
) -> None:
    older, newer = listing(0, 2)[::-1]
    await sweep_page(kept, older, newer, *listing(2, 9))
    assert await newest_positions(kept.database, ["acct"]) == {"acct": 0}


async def test_recent_durations_are_returned_but_for_those_nobody_saw_begin(kept: Kept) -> None:
    for hours, status in enumerate(("placed", "paid", "retiring")):
        await kept.see(order("o1", status), at=NOW + hours * HOUR)
    await kept.see(order("o2", "paid"), order("o3", "complete"), at=NOW)
    assert await status_durations(kept.database, NOW + 4 * HOUR, 10) == [
        StatusDuration("paid", 3600.0, ended=True),
        StatusDuration("retiring", 7200.0, ended=False),
    ]
    assert len(await status_durations(kept.database, NOW + 4 * HOUR, 1)) == 2
