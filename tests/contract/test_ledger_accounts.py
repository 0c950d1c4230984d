"""What any ledger must do: accounts, and where their sweeps stand."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import pytest

from harvester.domain.orders import RejectedOrder, Source
from harvester.ledger.accounts import (
    SweepMark,
    begin_sweep,
    due_accounts,
    finish_sweep,
    park_account,
    parked_accounts,
    postpone_sweep,
    read_accounts,
    record_accounts,
    recorded_modes,
)
from harvester.ledger.queries import stream_orders
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


async def due(kept: Kept, now: datetime = NOW) -> set[str]:
    return await due_accounts(kept.database, now, SCHEDULE.horizon(now))


async def swept(kept: Kept, *ids: str, joined: bool = True) -> bool:
    """Sweep a listing of one page; return whether it was known ground."""
    mark = await begin_sweep(kept.database, "acct")
    recorded = await kept.see(*map(order, ids), sweep=mark)
    await finish_sweep(kept.database, "acct", mark, NOW, NOW, joined=joined)
    return recorded.known_ground


# Accounts.


async def test_accounts_are_recorded_once_and_returned_the_default_one_first(kept: Kept) -> None:
    early = replace(CLIENT, id="aaa")
    await record_accounts(kept.database, [early, CLIENT, ACCOUNT], NOW)
    await record_accounts(kept.database, [], NOW)
    assert await read_accounts(kept.database) == [ACCOUNT, early, CLIENT]
    assert await read_accounts(kept.database, ["client", "never"]) == [CLIENT]
    assert await read_accounts(kept.database, []) == []


async def test_an_account_served_anew_is_refreshed_and_keeps_its_sweeps(kept: Kept) -> None:
    await swept(kept, "o1")
    await postpone_sweep(kept.database, "acct", FAR)
    renamed = replace(ACCOUNT, name="New", beneficiary=None, currency=None)
    await record_accounts(kept.database, [renamed], NOW + HOUR)
    assert await read_accounts(kept.database, ["acct"]) == [renamed]
    assert await begin_sweep(kept.database, "acct") == SweepMark(number=2, joined=1)
    assert "acct" not in await due_accounts(kept.database, NOW + HOUR, FAR)


async def test_the_modes_of_all_accounts_are_returned(kept: Kept) -> None:
    assert await recorded_modes(kept.database) == {"live"}
    await record_accounts(kept.database, [replace(CLIENT, id="other", mode="test")], NOW)
    assert await recorded_modes(kept.database) == {"live", "test"}


async def test_a_new_account_is_due_at_once_and_a_swept_one_at_its_date(kept: Kept) -> None:
    assert await due(kept) == {"acct", "client"}
    mark = await begin_sweep(kept.database, "acct")
    await finish_sweep(kept.database, "acct", mark, NOW, NOW + 15 * MINUTE, joined=True)
    assert await due(kept) == {"client"}
    assert await due(kept, NOW + 15 * MINUTE) == {"acct", "client"}


async def test_a_sweep_that_was_begun_and_not_finished_leaves_the_account_due(kept: Kept) -> None:
    await begin_sweep(kept.database, "acct")
    assert "acct" in await due(kept)


async def test_a_sweep_dated_beyond_the_horizon_is_due(kept: Kept) -> None:
    await postpone_sweep(kept.database, "acct", SCHEDULE.horizon(NOW))
    assert await due(kept) == {"client"}
    await postpone_sweep(kept.database, "acct", SCHEDULE.horizon(NOW) + MINUTE)
    assert await due(kept) == {"acct", "client"}


async def test_a_parked_account_is_left_alone_until_its_time_and_lifted_by_a_good_sweep(
    kept: Kept,
) -> None:
    assert await park_account(kept.database, "acct", "suspended", NOW + HOUR, NOW) is True
    assert await due(kept) == {"client"}
    assert await due(kept, NOW + HOUR) == {"acct", "client"}
    assert (
        await park_account(kept.database, "acct", "still suspended", NOW + 2 * HOUR, NOW) is False
    )
    assert await due(kept, NOW + HOUR) == {"client"}
    await swept(kept, "o1")
    assert await park_account(kept.database, "acct", "again", NOW + HOUR, NOW) is True


async def test_parked_accounts_are_returned_until_a_good_sweep(kept: Kept) -> None:
    assert await parked_accounts(kept.database) == set()
    await park_account(kept.database, "client", "suspended", FAR, NOW)
    assert await parked_accounts(kept.database) == {"client"}
    mark = await begin_sweep(kept.database, "client")
    await finish_sweep(kept.database, "client", mark, NOW, FAR, joined=True)
    assert await parked_accounts(kept.database) == set()


async def test_sweeps_are_numbered_for_each_account_of_its_own(kept: Kept) -> None:
    marks = [await begin_sweep(kept.database, "acct") for _ in range(3)]
    assert [mark.number for mark in marks] == [1, 2, 3]
    assert (await begin_sweep(kept.database, "client")).number == 1


async def test_a_sweep_counts_as_joined_only_when_it_says_so(kept: Kept) -> None:
    await swept(kept, "o1", joined=False)
    assert await begin_sweep(kept.database, "acct") == SweepMark(number=2, joined=0)
    await swept(kept, "o1", joined=True)
    await swept(kept, "o1", joined=False)
    assert await begin_sweep(kept.database, "acct") == SweepMark(number=5, joined=3)


# Known ground: what a page has to hold for a sweep to end there.


async def test_before_the_listing_was_once_read_to_its_end_nothing_is_known_ground(
    kept: Kept,
) -> None:
    assert await swept(kept, "o1", joined=False) is False
    assert await swept(kept, "o1", joined=False) is False


async def test_after_a_joined_sweep_its_orders_are_known_ground(kept: Kept) -> None:
    await swept(kept, "o1", "o2")
    assert await swept(kept, "o1", "o2") is True


async def test_one_new_order_on_a_page_makes_it_new_ground(kept: Kept) -> None:
    await swept(kept, "o1", "o2")
    assert await swept(kept, "o1", "o2", "o3") is False
    assert await swept(kept, "o1", "o2", "o3") is True


async def test_known_ground_that_moved_is_still_known_ground(kept: Kept) -> None:
    await swept(kept, "o1")
    mark = await begin_sweep(kept.database, "acct")
    assert (await kept.see(order("o1", "paid"), sweep=mark)).known_ground is True


async def test_orders_of_an_interrupted_sweep_are_not_known_ground(kept: Kept) -> None:
    await swept(kept, "o1")
    interrupted = await begin_sweep(kept.database, "acct")
    await kept.see(order("o9"), sweep=interrupted)
    assert await swept(kept, "o9", joined=False) is False
    assert await swept(kept, "o9", "o5", "o1") is False
    assert await swept(kept, "o9", "o5", "o1") is True


async def test_a_tracked_order_is_not_known_ground_until_a_sweep_has_come_past_it(
    kept: Kept,
) -> None:
    await swept(kept, "o1")
    await kept.see(order("o9"), source=Source.TRACK)
    assert await swept(kept, "o9", "o1") is False
    assert await swept(kept, "o9", "o1") is True


async def test_an_order_tracked_before_the_first_sweep_is_not_known_ground(kept: Kept) -> None:
    await kept.see(order("o9"), source=Source.TRACK)
    assert await swept(kept, "o9") is False


async def test_an_order_tracked_while_a_sweep_runs_is_not_known_ground_for_the_next(
    kept: Kept,
) -> None:
    await swept(kept, "o1")
    running = await begin_sweep(kept.database, "acct")
    await kept.see(order("o9"), source=Source.TRACK)
    await finish_sweep(kept.database, "acct", running, NOW, NOW, joined=True)
    assert await swept(kept, "o9") is False


async def test_an_order_known_from_another_account_is_not_known_ground(kept: Kept) -> None:
    await swept(kept, "o1")
    mark = await begin_sweep(kept.database, "client")
    await kept.see(order("o2"), account=CLIENT, sweep=mark)
    await finish_sweep(kept.database, "client", mark, NOW, NOW, joined=True)
    assert await swept(kept, "o2") is False


async def test_a_page_on_which_nothing_could_be_read_is_not_known_ground(kept: Kept) -> None:
    await swept(kept, "o1")
    mark = await begin_sweep(kept.database, "acct")
    unreadable = [RejectedOrder(f"o{number}", "a reason", "{}") for number in (7, 8, 9)]
    assert (await kept.see(rejected=unreadable, sweep=mark)).known_ground is False


@pytest.mark.parametrize("seed", range(4))
async def test_a_sweep_that_ends_on_known_ground_has_missed_nothing(kept: Kept, seed: int) -> None:
    """Orders come in, sweeps break off, people track: no joined sweep leaves an order unknown."""
    dice = random.Random(seed)
    listing: list[str] = []  # newest first
    for _ in range(40):
        for _ in range(dice.choice([0, 1, 5])):
            listing.insert(0, f"o{len(listing)}")
        if listing and dice.random() < 0.4:
            await kept.see(order(dice.choice(listing)), source=Source.TRACK)
        whole = await sweep_down(kept, listing, breaks_off_after=dice.choice([0, 1, 2, 99, 99]))
        if whole:
            known = {row.id async for row in stream_orders(kept.database)}
            assert known == set(listing)
    assert len(listing) > 20


async def sweep_down(kept: Kept, listing: Sequence[str], breaks_off_after: int) -> bool:
    """Read pages of three until one is known ground; return whether it came that far."""
    mark = await begin_sweep(kept.database, "acct")
    for page in range(breaks_off_after):
        ids = listing[page * 3 : page * 3 + 3]
        recorded = await kept.see(*map(order, ids), sweep=mark)
        if not ids or (mark.joined and recorded.known_ground):
            await finish_sweep(kept.database, "acct", mark, NOW, NOW, joined=True)
            return True
    return False


async def test_a_clock_that_steps_back_does_not_make_new_orders_look_known(kept: Kept) -> None:
    await swept(kept, "o1")
    mark = await begin_sweep(kept.database, "acct")
    assert (await kept.see(order("o2"), at=NOW - 900 * DAY, sweep=mark)).known_ground is False
    again = await begin_sweep(kept.database, "acct")
    assert (await kept.see(order("o2"), at=NOW - 900 * DAY, sweep=again)).known_ground is False
