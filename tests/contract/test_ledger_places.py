"""What any ledger must do with the places of orders in their accounts' listings."""

from __future__ import annotations

from harvester.domain.orders import Order, OrderPage, Source
from harvester.domain.schedule import StatusDuration
from harvester.ledger.accounts import begin_sweep
from harvester.ledger.orders import Recorded, record_orders
from harvester.ledger.schedule import (
    DueCheck,
    newest_positions,
    order_above,
    set_positions,
    status_durations,
)
from tests.contract.ledger_cases import ACCOUNT, SCHEDULE, CLIENT, HOUR, MINUTE, NOW, Kept, order


def listing(first: int, last: int) -> list[Order]:
    """Return orders numbered by their age, the newest first."""
    return [order(f"o{n}", created_at=NOW - n * MINUTE) for n in range(first, last)]


async def sweep_page(kept: Kept, *page: Order, place: int | None = None) -> Recorded:
    mark = await begin_sweep(kept.database, "acct")
    return await record_orders(
        kept.database, ACCOUNT, OrderPage(page, (), None), Source.SWEEP, NOW, SCHEDULE, mark, place
    )


async def places(kept: Kept) -> dict[str, int | None]:
    return await kept.looks(NOW + 7 * HOUR)


async def test_the_first_page_ever_gives_places_and_the_next_goes_on_below(kept: Kept) -> None:
    first = await sweep_page(kept, *listing(0, 3))
    assert first.place == 0
    await sweep_page(kept, *listing(3, 5), place=first.place - 3)
    assert await places(kept) == {"o0": 0, "o1": -1, "o2": -2, "o3": -3, "o4": -4}
    assert await newest_positions(kept.database, ["acct", "client"]) == {"acct": 0}


async def test_new_orders_get_places_above_the_known_ones_on_their_page(kept: Kept) -> None:
    await sweep_page(kept, *listing(2, 5))
    again = await sweep_page(kept, *listing(0, 4))
    assert again.place == 2
    assert await places(kept) == {"o0": 2, "o1": 1, "o2": 0, "o3": -1, "o4": -2}


async def test_a_page_without_known_orders_has_no_place_until_it_is_given(kept: Kept) -> None:
    await sweep_page(kept, *listing(3, 5))
    alone = await sweep_page(kept, *listing(0, 2))
    assert alone.place is None
    assert (await places(kept))["o0"] is None
    await set_positions(kept.database, "acct", ["o0", "o1", "o3"], 3)
    assert await places(kept) == {"o0": 3, "o1": 2, "o3": 0, "o4": -1}


async def test_an_order_found_by_itself_gets_its_place_when_a_page_shows_it(kept: Kept) -> None:
    await sweep_page(kept, *listing(0, 1), *listing(2, 3))
    await kept.see(*listing(5, 6), source=Source.TRACK)
    assert (await places(kept))["o5"] is None
    await sweep_page(kept, *listing(2, 3), *listing(5, 6))
    assert await places(kept) == {"o0": 0, "o2": -1, "o5": -2}


async def test_the_order_above_is_the_next_newer_one(kept: Kept) -> None:
    await sweep_page(kept, *listing(0, 3))
    await kept.see(*listing(0, 3)[:1], account=CLIENT)
    assert await order_above(kept.database, "acct", "o2") == DueCheck("o1", -1)
    assert await order_above(kept.database, "acct", "o0") is None
    assert await order_above(kept.database, "acct", "never") is None


async def test_the_newest_place_is_the_highest_at_the_top_of_each_listing(kept: Kept) -> None:
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


async def test_recent_stays_are_told_but_for_those_nobody_saw_begin(kept: Kept) -> None:
    for hours, status in enumerate(("placed", "paid", "retiring")):
        await kept.see(order("o1", status), at=NOW + hours * HOUR)
    await kept.see(order("o2", "paid"), order("o3", "complete"), at=NOW)
    assert await status_durations(kept.database, 10, NOW + 4 * HOUR) == [
        StatusDuration("paid", 3600.0, left=True),
        StatusDuration("retiring", 7200.0, left=False),
    ]
    assert len(await status_durations(kept.database, 1, NOW + 4 * HOUR)) == 2
