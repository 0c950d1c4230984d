"""The outbox keeps what each receiver lacks, in order for each order, until it is too old."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime

import pytest

from harvester.domain.events import EventFilter, EventType, NewEvent
from harvester.ledger.events import read_events, write_events
from harvester.ledger.outbox import (
    Backlog,
    FailedAttempt,
    Pruned,
    Undelivered,
    due_deliveries,
    hurry_deliveries,
    list_events,
    park_receiver,
    prune_events,
    read_backlogs,
    register_receivers,
    resend_events,
    settle_deliveries,
)
from tests.contract.ledger_cases import CLIENT, DAY, MINUTE, NOW, Kept, order

ANY = EventFilter()
ONLY_STUCK = EventFilter(types=frozenset({"order.stuck"}))
ONLY_CLIENT = EventFilter(accounts=frozenset({"client"}))
STATUSES = ("placed", "paid", "retiring", "complete")


@pytest.fixture
async def outbox(kept: Kept) -> Kept:
    """A ledger with one receiver, which wants everything."""
    await register_receivers(kept.database, {"billing": ANY})
    return kept


async def seqs(kept: Kept, at: datetime = NOW, receiver: str = "billing") -> list[int]:
    """Return the numbers of what can be sent now."""
    return [one.event.seq for one in await due_deliveries(kept.database, receiver, at, 100)]


async def happen(kept: Kept, *order_ids: str) -> None:
    for order_id in order_ids:
        await kept.see(order(order_id))


async def settle(
    kept: Kept,
    *,
    delivered: Collection[int] = (),
    failed: Mapping[int, FailedAttempt] | None = None,
    receiver: str = "billing",
) -> None:
    await settle_deliveries(kept.database, receiver, delivered, failed or {})


def failure(attempts: int = 1, at: datetime = NOW + MINUTE) -> FailedAttempt:
    return FailedAttempt(attempts, at, "status 500")


async def undelivered(kept: Kept) -> dict[int, list[Undelivered]]:
    return {event.seq: lacking async for event, lacking in list_events(kept.database)}


# Who gets what.


async def test_a_new_receiver_gets_what_happens_from_now_on(kept: Kept) -> None:
    await happen(kept, "o1")
    assert await register_receivers(kept.database, {"billing": ANY}) == []
    await happen(kept, "o2")
    await register_receivers(kept.database, {"billing": ANY})  # again: nothing is skipped
    assert await seqs(kept) == [2]


async def test_a_receiver_that_is_no_more_is_removed_with_what_it_lacked(outbox: Kept) -> None:
    await happen(outbox, "o1", "o2")
    await settle(outbox, failed={1: failure()})
    assert await register_receivers(outbox.database, {"other": ANY}) == ["billing"]
    assert await register_receivers(outbox.database, {"other": ANY, "billing": ANY}) == []
    assert await seqs(outbox, NOW + DAY) == []


async def test_a_receiver_gets_only_what_it_wants(kept: Kept) -> None:
    wanting = {"all": ANY, "client": ONLY_CLIENT, "stuck": ONLY_STUCK}
    await register_receivers(kept.database, wanting)
    await happen(kept, "o1")
    await kept.see(order("o2"), account=CLIENT)
    found = {name: await seqs(kept, receiver=name) for name in wanting}
    assert found == {"all": [1, 2], "client": [2], "stuck": []}


async def test_a_receiver_that_wants_other_events_gets_those_from_now_on(outbox: Kept) -> None:
    await happen(outbox, "o1")
    assert await register_receivers(outbox.database, {"billing": ONLY_CLIENT}) == []
    await happen(outbox, "o2")
    await outbox.see(order("o3"), account=CLIENT)
    assert await seqs(outbox) == [1, 3]  # what was undelivered before stays so


async def test_an_event_and_its_deliveries_are_written_together_or_not_at_all(
    outbox: Kept,
) -> None:
    event = NewEvent(EventType.ORDER_STUCK, "acct", "o1", NOW, {})

    async def give_up() -> None:
        async with outbox.database.transaction() as tx:
            await write_events(tx, [event])
            raise RuntimeError("the transaction is given up")

    with pytest.raises(RuntimeError):
        await give_up()
    assert (await undelivered(outbox), await seqs(outbox)) == ({}, [])
    async with outbox.database.transaction() as tx:
        await write_events(tx, [event, event])
    assert (set(await undelivered(outbox)), await seqs(outbox)) == ({1, 2}, [1, 2])


# What was accepted, and what failed.


async def test_what_was_accepted_is_not_due_again(outbox: Kept) -> None:
    await happen(outbox, "o1", "o2", "o3")
    assert await seqs(outbox) == [1, 2, 3]
    await settle(outbox, delivered=[1, 2])
    assert await seqs(outbox) == [3]
    # What was recorded late does not undo it.
    await settle(outbox, delivered=[1], failed={2: failure()})
    assert await seqs(outbox, NOW + DAY) == [3]


async def test_what_failed_is_due_when_its_time_comes(outbox: Kept) -> None:
    await happen(outbox, "o1", "o2")
    await settle(outbox, delivered=[2], failed={1: failure(3)})
    assert await seqs(outbox) == []
    (one,) = await due_deliveries(outbox.database, "billing", NOW + MINUTE, 100)
    assert (one.event.seq, one.attempts) == (1, 3)
    await settle(outbox, delivered=[1])
    assert await seqs(outbox, NOW + MINUTE) == []


async def test_settling_twice_is_settling_once(outbox: Kept) -> None:
    await happen(outbox, "o1", "o2")
    for _ in range(2):
        await settle(outbox, delivered=[2], failed={1: failure(3)})
    (one,) = await due_deliveries(outbox.database, "billing", NOW + MINUTE, 100)
    assert (one.event.seq, one.attempts) == (1, 3)


async def test_a_date_beyond_every_rule_counts_as_due(outbox: Kept) -> None:
    await happen(outbox, "o1")
    # Written under a wrong clock.
    await settle(outbox, failed={1: failure(at=NOW + 300 * DAY)})
    assert await seqs(outbox) == [1]


async def test_an_order_waits_for_its_earlier_event_and_others_do_not(outbox: Kept) -> None:
    for status in STATUSES[:3]:
        await outbox.see(order("o1", status))
    await outbox.see(order("o1"), account=CLIENT)  # the same id, another account
    assert await seqs(outbox) == [1, 2, 3, 4]
    await settle(outbox, failed={1: failure()})
    assert await seqs(outbox) == [4]
    assert await seqs(outbox, NOW + MINUTE) == [4, 1]
    await settle(outbox, delivered=[4, 1])
    assert await seqs(outbox) == [2, 3]
    await settle(outbox, delivered=[2])
    assert await seqs(outbox) == [3]


async def test_never_tried_events_come_before_often_tried_ones(outbox: Kept) -> None:
    await happen(outbox, "o1", "o2", "o3")
    await settle(outbox, failed={1: failure(7), 2: failure(2)})
    assert await seqs(outbox, NOW + MINUTE) == [3, 2, 1]
    due = await due_deliveries(outbox.database, "billing", NOW + MINUTE, 2)
    assert [one.event.seq for one in due] == [3, 2]


async def test_hurrying_makes_due_what_was_not_accepted(outbox: Kept) -> None:
    await happen(outbox, "o1")
    await settle(outbox, failed={1: failure(9, NOW + DAY)})
    assert await seqs(outbox) == []
    await hurry_deliveries(outbox.database, "billing")
    (one,) = await due_deliveries(outbox.database, "billing", NOW, 100)
    assert (one.event.seq, one.attempts) == (1, 9)


# Several receivers.


async def test_one_receivers_success_leaves_the_others_delivery_of_the_same_event(
    kept: Kept,
) -> None:
    await register_receivers(kept.database, {"billing": ANY, "crm": ANY})
    await happen(kept, "o1")
    for receiver in ("billing", "crm"):
        await settle(kept, failed={1: failure()}, receiver=receiver)
    assert await seqs(kept) == await seqs(kept, receiver="crm") == []

    await settle(kept, delivered=[1], receiver="billing")
    assert await seqs(kept, NOW + DAY) == []
    assert await seqs(kept, NOW + MINUTE, "crm") == [1]
    assert await undelivered(kept) == {1: [Undelivered("crm", 1, NOW + MINUTE, "status 500")]}

    await settle(kept, delivered=[1], receiver="crm")
    assert await undelivered(kept) == {1: []}


async def test_one_receivers_failure_holds_back_none_of_anothers_events(kept: Kept) -> None:
    await register_receivers(kept.database, {"billing": ANY, "crm": ANY})
    for status in STATUSES:
        await kept.see(order("o1", status))
    await settle(kept, failed={1: failure(5, NOW + DAY)}, receiver="billing")
    assert await seqs(kept) == []
    assert await seqs(kept, receiver="crm") == [1, 2, 3, 4]
    # Nor does its own failure of another event.
    await settle(kept, delivered=[1, 2], failed={3: failure()}, receiver="crm")
    assert await seqs(kept, NOW + MINUTE, "crm") == [3]
    assert await seqs(kept, NOW + DAY) == [1]


async def test_what_is_done_for_one_receiver_leaves_the_others(kept: Kept) -> None:
    await register_receivers(kept.database, {"billing": ANY, "crm": ANY})
    await happen(kept, "o1", "o2")
    for receiver in ("billing", "crm"):
        await settle(kept, failed={1: failure(5, NOW + DAY)}, receiver=receiver)
    await hurry_deliveries(kept.database, "billing")
    assert await seqs(kept) == [2, 1]
    assert await seqs(kept, receiver="crm") == [2]
    await park_receiver(kept.database, "billing", "status 410")
    assert await seqs(kept) == []
    assert await seqs(kept, NOW + DAY, "crm") == [2, 1]
    assert await resend_events(kept.database, [], ["crm"]) == [(1, "crm"), (2, "crm")]
    assert await seqs(kept, NOW + DAY) == []
    assert await seqs(kept, receiver="crm") == [1, 2]


async def test_the_backlog_of_each_receiver_is_counted(kept: Kept) -> None:
    await register_receivers(kept.database, {"billing": ANY, "crm": ANY, "stuck": ONLY_STUCK})
    for number in range(3):
        await kept.see(order(f"o{number}"), at=NOW + number * DAY)
    await settle(kept, delivered=[1], failed={2: failure()}, receiver="billing")
    assert await read_backlogs(kept.database) == {
        "billing": Backlog(2, NOW + DAY),
        "crm": Backlog(3, NOW),
        "stuck": Backlog(0, None),
    }


# A person's word.


async def test_a_parked_receiver_is_sent_nothing_until_a_person_says_so(outbox: Kept) -> None:
    await happen(outbox, "o1")
    await settle(outbox, failed={1: failure(5)})
    await park_receiver(outbox.database, "billing", "status 410")
    await happen(outbox, "o2")
    assert await seqs(outbox, NOW + DAY) == []
    lacking = await undelivered(outbox)
    assert [one.failure for one in lacking[1] + lacking[2]] == ["status 410"] * 2
    assert await resend_events(outbox.database, [], ["billing"]) == [
        (1, "billing"),
        (2, "billing"),
    ]
    assert await seqs(outbox) == [1, 2]


async def test_resending_is_for_those_who_want_the_event(kept: Kept) -> None:
    await register_receivers(kept.database, {"billing": ANY, "other": ANY, "stuck": ONLY_STUCK})
    await happen(kept, "o1", "o2")
    await settle(kept, delivered=[1], failed={2: failure(9, NOW + DAY)})
    await settle(kept, delivered=[1, 2], receiver="other")
    again = await resend_events(kept.database, [1, 2, 99], ["billing", "stuck", "nobody"])
    assert again == [(1, "billing"), (2, "billing")]
    due = await due_deliveries(kept.database, "billing", NOW, 100)
    assert [(one.event.seq, one.attempts) for one in due] == [(1, 0), (2, 0)]
    assert await seqs(kept, receiver="stuck") == await seqs(kept, receiver="other") == []


# How long events are kept.


async def test_events_are_kept_a_week_and_a_month_while_somebody_lacks_them(
    outbox: Kept,
) -> None:
    for number in range(3):
        await outbox.see(order(f"o{number}"), at=NOW + number * DAY)
    await settle(outbox, delivered=[1, 3], failed={2: failure()})
    assert await prune_events(outbox.database, NOW + 6 * DAY) == Pruned(0, 0)
    # The one before the lacking one.
    assert await prune_events(outbox.database, NOW + 20 * DAY) == Pruned(1, 0)
    assert await prune_events(outbox.database, NOW + 33 * DAY) == Pruned(2, 1)
    kept_events = await read_events(outbox.database, None, 10)
    assert (kept_events.before, kept_events.newest) == (3, 3)
    await happen(outbox, "o9")
    assert [one.seq for one in (await read_events(outbox.database, 3, 10)).events] == [4]


async def test_without_receivers_events_are_kept_a_week(kept: Kept) -> None:
    await happen(kept, "o1")
    assert await prune_events(kept.database, NOW + 6 * DAY) == Pruned(0, 0)
    assert await prune_events(kept.database, NOW + 8 * DAY) == Pruned(1, 0)


async def test_what_is_too_old_to_be_kept_is_not_delivered(outbox: Kept) -> None:
    await happen(outbox, "o1")
    await prune_events(outbox.database, NOW + 40 * DAY)
    await settle(outbox, failed={1: failure()})
    assert await seqs(outbox, NOW + DAY) == []
    assert await resend_events(outbox.database, [1], ["billing"]) == []


async def test_the_list_names_who_lacks_what_and_why(outbox: Kept) -> None:
    await happen(outbox, "o1", "o2", "o3")
    await settle(outbox, delivered=[2], failed={1: failure(4)})
    assert await undelivered(outbox) == {
        1: [Undelivered("billing", 4, NOW + MINUTE, "status 500")],
        2: [],
        3: [Undelivered("billing", 0, None, None)],
    }
    assert [event.seq async for event, _ in list_events(outbox.database, 2)] == [3]
