"""What any ledger must do: orders, their chains, anomalies, what could not be read."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import datetime

import pytest
from sqlalchemy import select

from harvester.domain.lifecycle import STATUSES, Anomaly, AnomalyKind, Moved, observe
from harvester.domain.orders import RejectedOrder, Source
from harvester.ledger.accounts import record_accounts
from harvester.ledger.orders import ObservedMove, record_not_found
from harvester.ledger.queries import KeptRejection, newest_anomalies, newest_rejections
from harvester.ledger.schedule import postpone_checks
from harvester.ledger.schema import rejected_orders
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

# First sight, and moves.


async def test_an_order_seen_for_the_first_time_has_one_transition_from_nothing(
    kept: Kept,
) -> None:
    recorded = await kept.see(order(status="paid"), source=Source.TRACK)
    assert (recorded.seen, recorded.new) == (1, 1)
    assert recorded.moves == [ObservedMove("o1", Moved(None, "paid", NOW), Source.TRACK)]
    (step,) = (await kept.whole()).transitions
    assert (step.seq, step.before, step.after) == (1, None, "paid")
    assert (step.observed_at, step.source) == (NOW, "track")


async def test_an_order_is_kept_as_it_was_served(kept: Kept) -> None:
    served = order(
        key="INV-1",
        metadata={"unité": "ж 🌳", "nested": {"a": [1, None, True]}},
        offset_cost="12.30",
        created_at=datetime.fromisoformat("2026-01-02T03:04:05.678901+00:00"),
    )
    await kept.see(served)
    found = await kept.whole()
    row = found.order
    assert (row.idempotency_key, row.quantity, row.status) == ("INV-1", "1.250", "placed")
    assert row.metadata == served.metadata
    assert row.created_at == served.created_at
    assert (row.mode, row.beneficiary) == ("live", "Acme Ltd")
    assert found.document == served.document


async def test_moves_and_jumps_make_a_chain_in_the_order_they_were_served(kept: Kept) -> None:
    for number, status in enumerate(["received", "received", "paid", "complete"]):
        await kept.see(order(status=status), at=NOW + number * HOUR)
    assert await kept.chain() == [(None, "received"), ("received", "paid"), ("paid", "complete")]
    steps = (await kept.whole()).transitions
    assert [step.observed_at for step in steps] == [NOW, NOW + 2 * HOUR, NOW + 3 * HOUR]


async def test_a_move_is_returned_once(kept: Kept) -> None:
    await kept.see(order(status="placed"))
    again = await kept.see(order(status="paid"), at=NOW + HOUR)
    moved = Moved("placed", "paid", NOW + HOUR)
    assert again.moves == [ObservedMove("o1", moved, Source.SWEEP)]
    assert again.new == 0
    assert (await kept.see(order(status="paid"), at=NOW + 2 * HOUR)).moves == []


async def test_what_any_run_of_answers_leaves_is_what_the_rules_say(kept: Kept) -> None:
    dice = random.Random(2026)
    ids = [f"o{number}" for number in range(40)]
    status: dict[str, str | None] = dict.fromkeys(ids)
    chains: dict[str, list[tuple[str | None, str]]] = {one: [] for one in ids}
    for number in range(15):
        at = NOW + number * HOUR
        served = {one: dice.choice([*STATUSES[:4], *STATUSES, "pending"]) for one in ids}
        await kept.see(*(order(one, status) for one, status in served.items()), at=at)
        for one in ids:
            judged = observe(status[one], served[one], at)
            if isinstance(judged, Moved):
                status[one] = judged.after
                chains[one].append((judged.before, judged.after))
    for one in ids:
        assert await kept.chain(one) == chains[one]
        assert (await kept.whole(one)).order.status == status[one]


async def test_an_unchanged_page_writes_no_transitions_but_when_it_was_seen(kept: Kept) -> None:
    page = [order(f"o{number}") for number in range(100)]
    await kept.see(*page)
    again = await kept.see(*page, at=NOW + HOUR)
    assert (again.seen, again.new, again.moves, again.anomalies) == (100, 0, [], [])
    for one in ("o0", "o99"):
        assert await kept.chain(one) == [(None, "placed")]
        row = (await kept.whole(one)).order
        assert (row.first_seen_at, row.last_seen_at) == (NOW, NOW + HOUR)


async def test_changed_details_are_kept_without_a_transition(kept: Kept) -> None:
    await kept.see(order(metadata={"invoice": "1"}))
    await kept.see(order(metadata={"invoice": "2"}, total_cost="9"), at=NOW + HOUR)
    found = await kept.whole()
    assert found.order.metadata == {"invoice": "2"}
    assert found.document["total_cost"] == "9"
    assert await kept.chain() == [(None, "placed")]


async def test_an_id_twice_on_a_page_is_one_order(kept: Kept) -> None:
    recorded = await kept.see(order(status="placed"), order(status="placed"))
    assert (recorded.seen, recorded.new) == (1, 1)
    assert await kept.chain() == [(None, "placed")]


async def test_the_same_id_under_two_accounts_is_two_orders(kept: Kept) -> None:
    await kept.see(order(status="placed"))
    await kept.see(order(status="paid"), account=CLIENT)
    await kept.see(order(status="retiring"), account=CLIENT, at=NOW + HOUR)
    assert await kept.chain() == [(None, "placed")]
    assert await kept.chain(account=CLIENT) == [(None, "paid"), ("paid", "retiring")]
    await postpone_checks(kept.database, "client", ["o1"], FAR)
    assert (await kept.whole()).order.next_check_at == NOW + 15 * MINUTE


async def test_the_beneficiary_is_the_one_an_order_was_first_seen_with(kept: Kept) -> None:
    await kept.see(order())
    renamed = replace(ACCOUNT, beneficiary="Another Ltd")
    await record_accounts(kept.database, [renamed], NOW + HOUR)
    await kept.see(order(status="paid"), order("o2"), account=renamed, at=NOW + HOUR)
    assert (await kept.whole("o1")).order.beneficiary == "Acme Ltd"
    assert (await kept.whole("o2")).order.beneficiary == "Another Ltd"


async def test_an_empty_page_changes_nothing(kept: Kept) -> None:
    recorded = await kept.see()
    assert (recorded.seen, recorded.new, recorded.oldest_created_at) == (0, 0, None)


async def test_a_page_tells_its_oldest_order(kept: Kept) -> None:
    recorded = await kept.see(*(order(f"o{day}", created_at=NOW - day * DAY) for day in (1, 3, 2)))
    assert recorded.oldest_created_at == NOW - 3 * DAY


# Anomalies.


@pytest.mark.parametrize(
    ("recorded", "served", "kind"),
    [
        ("paid", "placed", AnomalyKind.BACKWARD),
        ("complete", "retiring", AnomalyKind.AFTER_THE_END),
        ("cancelled", "paid", AnomalyKind.AFTER_THE_END),
    ],
)
async def test_a_status_that_cannot_be_is_counted_and_the_recorded_one_kept(
    kept: Kept, recorded: str, served: str, kind: AnomalyKind
) -> None:
    await kept.see(order(status=recorded))
    for hours in (1, 2, 3):
        at = NOW + hours * HOUR
        odd = await kept.see(order(status=served), at=at)
        assert odd.anomalies == [("o1", Anomaly(recorded, served, kind, at))]
        assert odd.moves == []
    found = await kept.whole()
    assert found.order.status == recorded
    assert await kept.chain() == [(None, recorded)]
    (anomaly,) = found.anomalies
    assert (anomaly.kind, anomaly.recorded, anomaly.served) == (kind, recorded, served)
    assert (anomaly.first_at, anomaly.last_at, anomaly.count) == (NOW + HOUR, NOW + 3 * HOUR, 3)


async def test_an_order_that_went_backward_is_checked_again_soon_and_can_go_on(
    kept: Kept,
) -> None:
    await kept.see(order(status="paid"), at=NOW - 300 * DAY)
    await kept.see(order(status="placed"))
    assert set(await kept.checks(NOW + 15 * MINUTE)) == {"o1"}
    await kept.see(order(status="retiring"), at=NOW + HOUR)
    assert await kept.chain() == [(None, "paid"), ("paid", "retiring")]


async def test_an_order_that_rose_after_its_end_is_checked_once_more(kept: Kept) -> None:
    await kept.see(order(status="cancelled"))
    assert await kept.checks(FAR) == {}
    await kept.see(order(status="paid"), at=NOW + HOUR)
    confirmation = SCHEDULE.next_confirmation(NOW + HOUR)
    assert set(await kept.checks(confirmation)) == {"o1"}
    await kept.see(order(status="cancelled"), at=confirmation)
    assert await kept.checks(FAR) == {}


async def test_an_unknown_status_is_kept_followed_and_counted(kept: Kept) -> None:
    first = await kept.see(order(status="pooled"))
    assert first.anomalies == [("o1", Anomaly("", "pooled", AnomalyKind.UNKNOWN, NOW))]
    assert (await kept.see(order(status="pooled"), at=NOW + HOUR)).anomalies == []
    later = await kept.see(order(status="sorted"), at=NOW + 2 * HOUR)
    assert [odd.kind for _, odd in later.anomalies] == [AnomalyKind.UNKNOWN]
    assert set(await kept.checks(NOW + DAY)) == {"o1"}
    await kept.see(order(status="complete"), at=NOW + 3 * HOUR)
    assert await kept.chain() == [(None, "pooled"), ("pooled", "sorted"), ("sorted", "complete")]
    assert len((await kept.whole()).anomalies) == 2


async def test_an_order_lune_does_not_find_keeps_its_status(kept: Kept) -> None:
    await kept.see(order(status="paid"))
    for hours in (1, 2):
        at = NOW + hours * HOUR
        await record_not_found(kept.database, "acct", "o1", at, at + 6 * HOUR)
    found = await kept.whole()
    assert (found.order.status, found.order.not_found_since) == ("paid", NOW + HOUR)
    assert found.order.next_check_at == NOW + 8 * HOUR
    (anomaly,) = found.anomalies
    assert (anomaly.kind, anomaly.recorded, anomaly.count) == ("not_found", "paid", 2)
    await kept.see(order(status="paid"), at=NOW + 3 * HOUR)
    assert (await kept.whole()).order.not_found_since is None


async def test_an_order_nobody_knows_cannot_go_missing(kept: Kept) -> None:
    await record_not_found(kept.database, "acct", "never", NOW, NOW)
    assert await newest_anomalies(kept.database) == []
    assert (await kept.statistics()).anomalies == {}


# What could not be read.


async def rejected_documents(kept: Kept) -> dict[str, str]:
    async with kept.database.read() as connection:
        rows = await connection.execute(
            select(rejected_orders.c.account_id, rejected_orders.c.document)
        )
        return {row.account_id: row.document for row in rows}


async def test_what_was_rejected_is_recorded_and_counted_not_repeated(kept: Kept) -> None:
    odd = RejectedOrder("o9", "status: not printable text", '{"id": "o9"}')
    worse = replace(odd, reason="created_at: not an instant", document="{}")
    assert (await kept.see(rejected=[odd])).rejected == (odd,)
    await kept.see(rejected=[worse], at=NOW + HOUR)
    await kept.see(rejected=[odd], account=CLIENT)
    assert await newest_rejections(kept.database) == [
        KeptRejection("acct", "o9", worse.reason, NOW, NOW + HOUR, 2),
        KeptRejection("client", "o9", odd.reason, NOW, NOW, 1),
    ]
    assert await rejected_documents(kept) == {"acct": "{}", "client": odd.document}
    assert (await kept.statistics()).rejected_orders == 2


async def test_what_was_rejected_is_forgotten_when_it_can_be_read(kept: Kept) -> None:
    things = [RejectedOrder(one, "a reason", "{}") for one in ("o1", "o2")]
    await kept.see(rejected=things)
    await kept.see(order("o1"), account=CLIENT)
    assert len(await newest_rejections(kept.database)) == 2
    await kept.see(order("o1"), at=NOW + HOUR)
    assert [row.reference for row in await newest_rejections(kept.database)] == ["o2"]
