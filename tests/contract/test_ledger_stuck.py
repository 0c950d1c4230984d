"""What any ledger must do: orders that stay in a status for too long, each marked once a status."""

from __future__ import annotations

from datetime import timedelta

import pytest

from harvester.domain.events import Event
from harvester.domain.stuck import Basis, Bound
from harvester.ledger.events import read_events
from harvester.ledger.stuck import find_stuck, mark_stuck
from tests.contract.ledger_cases import CLIENT, DAY, FAR, HOUR, NOW, Kept, order

BOUNDS = {
    "placed": Bound(30 * DAY, Basis.ASSUMED),
    "paid": Bound(2 * DAY, Basis.CONFIGURED),
    "retiring": Bound(10 * DAY, Basis.LEARNED),
}


async def mark(kept: Kept, after: timedelta) -> list[tuple[str, str, str]]:
    """Mark what is stuck so long after the beginning; return account, order and status."""
    marked = await mark_stuck(kept.database, BOUNDS, NOW + after)
    return [(one.account_id, one.order_id, one.status) for one in marked]


async def stuck_events(kept: Kept) -> list[Event]:
    found = (await read_events(kept.database, None, 1000)).events
    return [one for one in found if one.type == "order.stuck"]


async def test_an_order_beyond_its_statuss_bound_is_marked_once_with_an_event(kept: Kept) -> None:
    await kept.see(order(status="paid", key="INV-1", quantity="0.5"))
    assert await mark(kept, 2 * DAY) == []
    assert await mark(kept, 2 * DAY + HOUR) == [("acct", "o1", "paid")]
    assert await mark(kept, 3 * DAY) == []
    (event,) = await stuck_events(kept)
    assert (event.account_id, event.order_id, event.at) == ("acct", "o1", NOW + 2 * DAY + HOUR)
    assert event.data == {
        "idempotency_key": "INV-1",
        "status": "paid",
        "since": "2026-03-01T12:00:00Z",
        "bound_seconds": 2 * 86_400,
        "basis": "configured",
    }


async def test_a_marked_order_is_still_found(kept: Kept) -> None:
    await kept.see(order(status="paid", quantity="0.5"))
    await mark(kept, 3 * DAY)
    (found,) = await find_stuck(kept.database, BOUNDS, NOW + 3 * DAY)
    assert (found.order_id, found.status, found.since) == ("o1", "paid", NOW)
    assert (found.bound, found.document["quantity"]) == (BOUNDS["paid"], "0.5")
    assert await find_stuck(kept.database, BOUNDS, NOW + 3 * DAY, unmarked=True) == []


async def test_an_order_that_moves_is_stuck_no_more(kept: Kept) -> None:
    await kept.see(order(status="paid"))
    await mark(kept, 3 * DAY)
    await kept.see(order(status="retiring"), at=NOW + 4 * DAY)
    assert await find_stuck(kept.database, BOUNDS, NOW + 5 * DAY) == []
    assert await mark(kept, 5 * DAY) == []


@pytest.mark.parametrize(
    "way", [["retiring"], ["pooled", "paid"]], ids=["another status", "the same status again"]
)
async def test_an_order_that_moves_and_gets_stuck_again_is_marked_again(
    kept: Kept, way: list[str]
) -> None:
    await kept.see(order(status="paid"))
    assert await mark(kept, 3 * DAY) == [("acct", "o1", "paid")]
    for number, status in enumerate(way):
        await kept.see(order(status=status), at=NOW + 4 * DAY + number * HOUR)
    assert await mark(kept, 5 * DAY) == []
    for after in (20 * DAY, 21 * DAY):
        again = await mark(kept, after)
        assert again == ([("acct", "o1", way[-1])] if after == 20 * DAY else [])
    first, second = await stuck_events(kept)
    assert (first.data["status"], second.data["status"]) == ("paid", way[-1])
    assert first.data["since"] != second.data["since"]


@pytest.mark.parametrize("served", ["paid", "placed"])
async def test_seeing_an_order_where_it_was_or_cannot_be_does_not_mark_it_again(
    kept: Kept, served: str
) -> None:
    await kept.see(order(status="paid"))
    await mark(kept, 3 * DAY)
    await kept.see(order(status=served, note="changed"), at=NOW + 4 * DAY)
    assert await mark(kept, 5 * DAY) == []
    assert len(await find_stuck(kept.database, BOUNDS, NOW + 5 * DAY)) == 1


async def test_orders_that_ended_or_whose_status_has_no_bound_are_never_stuck(kept: Kept) -> None:
    await kept.see(*(order(one, one) for one in ("complete", "cancelled", "failed", "pooled")))
    assert await find_stuck(kept.database, BOUNDS, FAR) == []
    assert await mark(kept, FAR - NOW) == []


async def test_those_that_are_stuck_longest_come_first_of_every_account(kept: Kept) -> None:
    for days, order_id in ((2, "o2"), (0, "o0"), (1, "o1")):
        await kept.see(order(order_id, "paid"), at=NOW + days * DAY)
    await kept.see(order("o9", "placed"), account=CLIENT, at=NOW - 90 * DAY)
    now = NOW + 9 * DAY
    found = await find_stuck(kept.database, BOUNDS, now)
    assert [one.order_id for one in found] == ["o9", "o0", "o1", "o2"]
    assert [one.order_id for one in await find_stuck(kept.database, BOUNDS, now, most=2)] == [
        "o9",
        "o0",
    ]
    assert await mark(kept, 9 * DAY) == [
        ("client", "o9", "placed"),
        ("acct", "o0", "paid"),
        ("acct", "o1", "paid"),
        ("acct", "o2", "paid"),
    ]
    assert [event.order_id for event in await stuck_events(kept)] == ["o9", "o0", "o1", "o2"]
