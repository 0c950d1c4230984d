"""What any ledger must do, through its port: orders, their chains, what was odd, when to look."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from harvester.domain.lifecycle import STATUSES, Anomaly, AnomalyKind, Moved, observe
from harvester.domain.orders import EVERYTHING, CertificateState, OrderFilter, RejectedOrder, Source
from harvester.ledger.accounts import (
    begin_sweep,
    finish_sweep,
    park_account,
    parked_accounts,
    record_accounts,
)
from harvester.ledger.orders import record_not_found
from harvester.ledger.queries import summarise
from harvester.ledger.schedule import (
    OpenOrder,
    due_checks,
    earliest_due,
    open_orders,
    postpone_checks,
)
from tests.contract.ledger_cases import (
    ACCOUNT,
    SCHEDULE,
    CLIENT,
    DAY,
    FAR,
    HOUR,
    MINUTE,
    NOW,
    Kept,
    order,
)

# First sight, and moves.


async def test_an_order_seen_for_the_first_time_has_one_transition_from_nothing(
    kept: Kept,
) -> None:
    recorded = await kept.see(order(status="paid"), source=Source.TRACK)
    assert (recorded.seen, recorded.new) == (1, 1)
    assert recorded.moves == [("o1", Moved(None, "paid", NOW))]
    (step,) = (await kept.whole()).transitions
    assert (step.seq, step.from_status, step.to_status) == (1, None, "paid")
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


async def test_a_move_is_told_once(kept: Kept) -> None:
    await kept.see(order(status="placed"))
    again = await kept.see(order(status="paid"), at=NOW + HOUR)
    assert again.moves == [("o1", Moved("placed", "paid", NOW + HOUR))]
    assert again.new == 0
    assert (await kept.see(order(status="paid"), at=NOW + 2 * HOUR)).moves == []


async def test_what_any_run_of_answers_leaves_is_what_the_rules_say(kept: Kept) -> None:
    dice = random.Random(2026)
    ids = [f"o{number}" for number in range(40)]
    status: dict[str, str | None] = dict.fromkeys(ids)
    chains: dict[str, list[tuple[str | None, str]]] = {one: [] for one in ids}
    for look in range(15):
        at = NOW + look * HOUR
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


# What was odd.


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


async def test_an_order_that_went_backward_is_looked_at_again_soon_and_can_go_on(
    kept: Kept,
) -> None:
    await kept.see(order(status="paid"), at=NOW - 300 * DAY)
    await kept.see(order(status="placed"))
    assert set(await kept.looks(NOW + 15 * MINUTE)) == {"o1"}
    await kept.see(order(status="retiring"), at=NOW + HOUR)
    assert await kept.chain() == [(None, "paid"), ("paid", "retiring")]


async def test_an_order_that_rose_after_its_end_is_looked_at_once_more(kept: Kept) -> None:
    await kept.see(order(status="cancelled"))
    assert await kept.looks(FAR) == {}
    await kept.see(order(status="paid"), at=NOW + HOUR)
    confirmation = SCHEDULE.next_confirmation(NOW + HOUR)
    assert set(await kept.looks(confirmation)) == {"o1"}
    await kept.see(order(status="cancelled"), at=confirmation)
    assert await kept.looks(FAR) == {}


async def test_an_unknown_status_is_kept_followed_and_counted(kept: Kept) -> None:
    first = await kept.see(order(status="pooled"))
    assert first.anomalies == [("o1", Anomaly("", "pooled", AnomalyKind.UNKNOWN, NOW))]
    assert (await kept.see(order(status="pooled"), at=NOW + HOUR)).anomalies == []
    later = await kept.see(order(status="sorted"), at=NOW + 2 * HOUR)
    assert [odd.kind for _, odd in later.anomalies] == [AnomalyKind.UNKNOWN]
    assert set(await kept.looks(NOW + DAY)) == {"o1"}
    await kept.see(order(status="complete"), at=NOW + 3 * HOUR)
    assert await kept.chain() == [(None, "pooled"), ("pooled", "sorted"), ("sorted", "complete")]
    assert len((await kept.whole()).anomalies) == 2


async def test_an_order_lune_does_not_find_keeps_its_status(kept: Kept) -> None:
    await kept.see(order(status="paid"))
    for hours in (1, 2):
        at = NOW + hours * HOUR
        await record_not_found(kept.database, "acct", "o1", at, at + 6 * HOUR)
    found = await kept.whole()
    assert (found.order.status, found.order.missing_since) == ("paid", NOW + HOUR)
    assert found.order.next_check_at == NOW + 8 * HOUR
    (anomaly,) = found.anomalies
    assert (anomaly.kind, anomaly.recorded, anomaly.count) == ("not_found", "paid", 2)
    await kept.see(order(status="paid"), at=NOW + 3 * HOUR)
    assert (await kept.whole()).order.missing_since is None


async def test_an_order_nobody_knows_cannot_go_missing(kept: Kept) -> None:
    await record_not_found(kept.database, "acct", "never", NOW, NOW)
    assert (await summarise(kept.database, NOW)).anomalies == []


# What could not be read.


async def test_what_was_set_aside_is_recorded_and_counted_not_repeated(kept: Kept) -> None:
    odd = RejectedOrder("o9", "status: not printable text", '{"id": "o9"}')
    worse = replace(odd, reason="created_at: not an instant", document="{}")
    assert (await kept.see(rejected=[odd])).rejected == [odd]
    await kept.see(rejected=[worse], at=NOW + HOUR)
    await kept.see(rejected=[odd], account=CLIENT)
    rows = (await summarise(kept.database, NOW)).rejected
    seen = [(row.account_id, row.reference, row.reason, row.document, row.count) for row in rows]
    assert seen == [
        ("acct", "o9", worse.reason, "{}", 2),
        ("client", "o9", odd.reason, odd.document, 1),
    ]
    assert (rows[0].first_at, rows[0].last_at) == (NOW, NOW + HOUR)


async def test_what_was_set_aside_is_forgotten_when_it_can_be_read(kept: Kept) -> None:
    things = [RejectedOrder(one, "a reason", "{}") for one in ("o1", "o2")]
    await kept.see(rejected=things)
    await kept.see(order("o1"), account=CLIENT)
    assert len((await summarise(kept.database, NOW)).rejected) == 2
    await kept.see(order("o1"), at=NOW + HOUR)
    assert [row.reference for row in (await summarise(kept.database, NOW)).rejected] == ["o2"]


# When to look, and what is left.


async def test_an_open_order_is_due_when_its_date_comes_or_lies_beyond_the_horizon(
    kept: Kept,
) -> None:
    await kept.see(order())
    due = (await kept.whole()).order.next_check_at
    assert due == SCHEDULE.next_look(NOW, [SCHEDULE.chance("placed", timedelta(0))])
    assert await kept.looks(due - MINUTE) == {}
    assert set(await kept.looks(due)) == {"o1"}
    # The clock was a year ahead when the date was set: now it counts as due.
    assert set(await kept.looks(NOW - 365 * DAY)) == {"o1"}


async def test_orders_that_ended_are_not_looked_at(kept: Kept) -> None:
    await kept.see(*(order(status, status) for status in ("complete", "cancelled", "failed")))
    assert await kept.looks(FAR) == {}
    assert await open_orders(kept.database, EVERYTHING) == []


async def test_open_orders_that_one_answer_shows_are_looked_at_together(kept: Kept) -> None:
    old = [order(f"o{n}", "paid", created_at=NOW - 300 * DAY - n * DAY) for n in range(9)]
    await kept.see(*old, order("done", "complete"))
    dates = {one.next_check_at for one in await open_orders(kept.database, EVERYTHING)}
    chances = [SCHEDULE.chance("paid", NOW - one.created_at) for one in old]
    assert dates == {SCHEDULE.next_look(NOW, chances)}
    await kept.see(old[0], source=Source.CHECK, at=NOW + HOUR)
    alone = (await kept.whole("o0")).order.next_check_at
    assert alone == SCHEDULE.next_look(
        NOW + HOUR, [SCHEDULE.chance("paid", NOW + HOUR - old[0].created_at)]
    )
    assert alone - NOW > SCHEDULE.next_look(NOW + HOUR, chances) - NOW


async def test_an_order_that_was_seen_to_move_counts_as_still_since_then(kept: Kept) -> None:
    ancient = NOW - 900 * DAY
    await kept.see(order("o1", "paid", created_at=ancient))
    at = NOW + DAY
    await kept.see(order("o1", "retiring", created_at=ancient), at=at)
    due = (await kept.whole()).order.next_check_at
    assert due == SCHEDULE.next_look(at, [SCHEDULE.chance("retiring", timedelta(0))])


async def test_postponed_looks_are_due_at_the_new_date(kept: Kept) -> None:
    await kept.see(order("o1"), order("o2"))
    await postpone_checks(kept.database, "acct", [], NOW)
    await postpone_checks(kept.database, "acct", ["o1", "never"], NOW + MINUTE)
    assert set(await kept.looks(NOW + MINUTE)) == {"o1"}
    assert set(await kept.looks(NOW + HOUR)) == {"o1", "o2"}


async def test_due_looks_are_told_by_account_of_all_or_of_some(kept: Kept) -> None:
    await kept.see(order("o1", "complete"), order("o2"), order("o3", "retiring"))
    await kept.see(order("o2", "paid"), account=CLIENT)
    late = NOW + HOUR

    async def due(now: datetime, ids: list[str] | None = None) -> dict[str, set[str]]:
        looks = await due_checks(kept.database, now, SCHEDULE.horizon(now), ids)
        return {account: {look.order_id for look in mine} for account, mine in looks.items()}

    assert await due(NOW) == {}
    assert await due(late) == {"acct": {"o2", "o3"}, "client": {"o2"}}
    assert await due(late, ["client", "nobody"]) == {"client": {"o2"}}
    assert await due(late, []) == {}
    await park_account(kept.database, "client", "suspended", FAR, NOW)
    assert await due(late, ["client"]) == {"client": {"o2"}}


async def test_an_owed_certificate_is_no_look(kept: Kept) -> None:
    await kept.see(order("o1", "complete"))
    broken = (await kept.due())[0]
    await kept.fail(broken, state=CertificateState.FAILED, due=NOW)
    assert await due_checks(kept.database, NOW + HOUR, SCHEDULE.horizon(NOW + HOUR)) == {}


async def test_parked_accounts_are_told_until_a_good_sweep(kept: Kept) -> None:
    assert await parked_accounts(kept.database) == set()
    await park_account(kept.database, "client", "suspended", FAR, NOW)
    assert await parked_accounts(kept.database) == {"client"}
    mark = await begin_sweep(kept.database, "client")
    await finish_sweep(kept.database, "client", mark, NOW, FAR, joined=True)
    assert await parked_accounts(kept.database) == set()


async def test_open_orders_not_seen_since_an_instant_are_told_within_the_scope(kept: Kept) -> None:
    await kept.see(order("old", created_at=NOW - 30 * DAY), order("o1"), order("o2", "failed"))
    await kept.see(order("o3"), at=NOW + HOUR)
    await kept.see(order("o4"), account=CLIENT)
    unseen = kept.ledger.unseen_open
    assert sorted(await unseen("acct", NOW, EVERYTHING)) == []
    assert sorted(await unseen("acct", NOW + HOUR, EVERYTHING)) == ["o1", "old"]
    assert await unseen("acct", NOW + HOUR, OrderFilter(since=NOW - 2 * DAY)) == ["o1"]


async def test_open_orders_are_told_with_their_next_date(kept: Kept) -> None:
    await kept.see(order("o1", "paid"), order("o2", "complete"))
    await kept.see(order("o3", "odd"), account=CLIENT)
    due = NOW + 15 * MINUTE
    assert await open_orders(kept.database, EVERYTHING) == [
        OpenOrder("acct", "o1", "paid", due),
        OpenOrder("client", "o3", "odd", due),
    ]
    scope = OrderFilter(accounts=frozenset({"client"}))
    assert [one.order_id for one in await open_orders(kept.database, scope)] == ["o3"]


async def test_the_earliest_date_in_scope_is_told(kept: Kept) -> None:
    assert await earliest_due(kept.database, EVERYTHING) is None
    await kept.see(order("o1", "paid"), order("o2", "cancelled"))
    assert await earliest_due(kept.database, EVERYTHING) == NOW + 15 * MINUTE
    assert await earliest_due(kept.database, OrderFilter(status="cancelled")) is None
