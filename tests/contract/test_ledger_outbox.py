"""The outbox keeps what each receiver lacks, in order for each order, until it is too old."""

from __future__ import annotations

from datetime import datetime

import pytest

from harvester.domain.deliveries import Pending, Settlement
from harvester.domain.events import EventFilter
from harvester.ledger.events import read_events
from harvester.ledger.outbox import FailedAttempt, Pruned, SqlOutbox, list_events
from tests.contract.ledger_cases import CLIENT, DAY, MINUTE, NOW, Kept, order

ANY = EventFilter()
STATUSES = ("placed", "paid", "retiring", "complete")


@pytest.fixture
async def outbox(kept: Kept) -> SqlOutbox:
    one = SqlOutbox(kept.database)
    await one.register_receivers(["billing"])
    return one


async def pending(outbox: SqlOutbox, at: datetime = NOW, wanted: EventFilter = ANY) -> Pending:
    found = await outbox.pending("billing", wanted, at, 100)
    assert found is not None
    return found


async def seqs(outbox: SqlOutbox, at: datetime = NOW, wanted: EventFilter = ANY) -> list[int]:
    """Return the numbers of what may be sent now."""
    waiting = (await pending(outbox, at, wanted)).waiting
    return [one.event.seq for one in waiting if not one.blocked]


async def happen(kept: Kept, *order_ids: str) -> None:
    for order_id in order_ids:
        await kept.see(order(order_id))


def failed(attempts: int = 1, at: datetime = NOW + MINUTE) -> FailedAttempt:
    return FailedAttempt(attempts, at, "status 500")


async def test_a_new_receiver_is_told_what_happens_from_now_on(kept: Kept) -> None:
    outbox = SqlOutbox(kept.database)
    await happen(kept, "o1")
    assert await outbox.register_receivers(["billing"]) == []
    await happen(kept, "o2")
    await outbox.register_receivers(["billing"])  # again: nothing is skipped
    assert await seqs(outbox) == [2]


async def test_a_receiver_that_is_no_more_is_dropped_with_what_it_lacked(
    kept: Kept, outbox: SqlOutbox
) -> None:
    await happen(kept, "o1")
    await outbox.settle("billing", Settlement(1, failed={1: failed()}), NOW)
    assert await outbox.register_receivers(["other"]) == ["billing"]
    await outbox.register_receivers(["other", "billing"])
    assert await seqs(outbox, NOW + DAY) == []


async def test_what_was_taken_is_not_pending_again(kept: Kept, outbox: SqlOutbox) -> None:
    await happen(kept, "o1", "o2", "o3")
    assert await seqs(outbox) == [1, 2, 3]
    await outbox.settle("billing", Settlement(2), NOW)
    assert await seqs(outbox) == [3]
    await outbox.settle("billing", Settlement(1), NOW)  # an older word does not undo a newer one
    assert await seqs(outbox) == [3]


async def test_what_failed_is_pending_when_its_time_comes(kept: Kept, outbox: SqlOutbox) -> None:
    await happen(kept, "o1", "o2")
    await outbox.settle("billing", Settlement(2, failed={1: failed(3)}), NOW)
    assert await seqs(outbox) == []
    (one,) = (await pending(outbox, NOW + MINUTE)).waiting
    assert (one.event.seq, one.attempts, one.queued) == (1, 3, True)
    await outbox.settle("billing", Settlement(2, taken=[1]), NOW)
    assert await seqs(outbox, NOW + MINUTE) == []


async def test_a_date_beyond_every_rule_counts_as_due(kept: Kept, outbox: SqlOutbox) -> None:
    await happen(kept, "o1")
    late = failed(at=NOW + 300 * DAY)  # written under a wrong clock
    await outbox.settle("billing", Settlement(1, failed={1: late}), NOW)
    assert await seqs(outbox) == [1]


async def test_an_order_waits_for_its_earlier_event_and_others_do_not(
    kept: Kept, outbox: SqlOutbox
) -> None:
    for status in STATUSES[:3]:
        await kept.see(order("o1", status))
    await kept.see(order("o1"), account=CLIENT)  # the same id, another account
    await outbox.settle("billing", Settlement(2, failed={1: failed()}, queued=[2]), NOW)
    assert await seqs(outbox) == [4]
    found = {one.event.seq: one.blocked for one in (await pending(outbox)).waiting}
    assert found == {3: True, 4: False}
    await outbox.settle("billing", Settlement(4, queued=[3]), NOW)
    assert await seqs(outbox, NOW + MINUTE) == [1]
    await outbox.settle("billing", Settlement(4, taken=[1]), NOW)
    assert await seqs(outbox) == [2]
    await outbox.settle("billing", Settlement(4, taken=[2]), NOW)
    assert await seqs(outbox) == [3]


async def test_never_tried_events_come_before_often_tried_ones(
    kept: Kept, outbox: SqlOutbox
) -> None:
    await happen(kept, "o1", "o2", "o3")
    settled = Settlement(2, failed={1: failed(7), 2: failed(2)})
    await outbox.settle("billing", settled, NOW)
    assert await seqs(outbox, NOW + MINUTE) == [3, 2, 1]


async def test_only_what_is_wanted_is_pending(kept: Kept, outbox: SqlOutbox) -> None:
    await happen(kept, "o1")
    await kept.see(order("o2"), account=CLIENT)
    assert await seqs(outbox, wanted=EventFilter(accounts=frozenset({"client"}))) == [2]
    unwanted = await pending(outbox, wanted=EventFilter(types=frozenset({"order.stuck"})))
    assert (unwanted.waiting, unwanted.reached) == ([], 2)


async def test_a_parked_receiver_is_sent_nothing_until_a_person_says_so(
    kept: Kept, outbox: SqlOutbox
) -> None:
    await happen(kept, "o1")
    await outbox.settle("billing", Settlement(1, failed={1: failed(5)}), NOW)
    await outbox.park_receiver("billing", "status 410")
    assert await outbox.pending("billing", ANY, NOW + DAY, 10) is None
    assert await outbox.resend([], {"billing": ANY}, NOW) == [(1, "billing")]
    assert await seqs(outbox) == [1]


async def test_resending_is_for_those_who_want_the_event_and_had_it(
    kept: Kept, outbox: SqlOutbox
) -> None:
    await outbox.register_receivers(["billing", "stuck"])
    await happen(kept, "o1", "o2")
    await outbox.settle("billing", Settlement(1), NOW)
    await outbox.settle("stuck", Settlement(2), NOW)
    wanting = {"billing": ANY, "stuck": EventFilter(types=frozenset({"order.stuck"}))}
    assert await outbox.resend([1, 2, 99], wanting, NOW) == [(1, "billing")]
    assert await seqs(outbox) == [1, 2]


async def test_hurrying_makes_due_what_was_not_taken(kept: Kept, outbox: SqlOutbox) -> None:
    await happen(kept, "o1")
    await outbox.settle("billing", Settlement(1, failed={1: failed(9, NOW + DAY)}), NOW)
    await outbox.hurry("billing", NOW)
    assert await seqs(outbox) == [1]


async def test_events_are_kept_a_week_and_a_month_while_somebody_lacks_them(
    kept: Kept, outbox: SqlOutbox
) -> None:
    for number in range(3):
        await kept.see(order(f"o{number}"), at=NOW + number * DAY)
    await outbox.settle("billing", Settlement(3, failed={2: failed()}), NOW)
    assert await outbox.prune(NOW + 6 * DAY) == Pruned(0, 0)
    assert await outbox.prune(NOW + 20 * DAY) == Pruned(1, 0)  # the one before the lacking one
    assert await outbox.prune(NOW + 33 * DAY) == Pruned(2, 1)
    kept_events = await read_events(kept.database, None, 10)
    assert (kept_events.before, kept_events.newest) == (3, 3)
    await happen(kept, "o9")
    assert [one.seq for one in (await read_events(kept.database, 3, 10)).events] == [4]


async def test_without_receivers_events_are_kept_a_week(kept: Kept) -> None:
    outbox = SqlOutbox(kept.database)
    await happen(kept, "o1")
    assert await outbox.prune(NOW + 6 * DAY) == Pruned(0, 0)
    assert await outbox.prune(NOW + 8 * DAY) == Pruned(1, 0)


async def test_what_is_too_old_to_be_kept_is_not_queued(kept: Kept, outbox: SqlOutbox) -> None:
    await happen(kept, "o1")
    await outbox.prune(NOW + 40 * DAY)
    await outbox.settle("billing", Settlement(1, failed={1: failed()}), NOW)
    assert await seqs(outbox, NOW + DAY) == []


async def test_the_list_names_who_lacks_what_and_why(kept: Kept, outbox: SqlOutbox) -> None:
    await happen(kept, "o1", "o2", "o3")
    await outbox.settle("billing", Settlement(2, failed={1: failed(4)}), NOW)
    found = {
        event.seq: [(one.receiver, one.attempts, one.failure) for one in lacking]
        async for event, lacking in list_events(kept.database, 0, {"billing": ANY})
    }
    assert found == {1: [("billing", 4, "status 500")], 2: [], 3: [("billing", 0, None)]}
