"""What is counted of any ledger: how many there are of what, since when, and what is due."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import pytest

from harvester.domain.orders import CertificateKind, CertificateState, RejectedOrder
from harvester.ledger.accounts import begin_sweep, finish_sweep, park_account, postpone_sweep
from harvester.ledger.certificates import reopen_certificate
from harvester.ledger.queries import newest_anomalies, newest_rejections
from harvester.ledger.statistics import last_event, stored_since
from tests.contract.ledger_cases import (
    CLIENT,
    DAY,
    EAGER,
    FAR,
    HOUR,
    MINUTE,
    NOW,
    Kept,
    order,
    stored,
)


async def test_an_empty_ledger_counts_nothing(kept: Kept) -> None:
    found = await kept.statistics()
    assert (found.by_status, found.entered_at, found.by_certificate) == ({}, {}, {})
    assert (found.followed, found.due, found.owed, found.owed_since) == (0, 0, 0, None)
    assert (found.anomalies, found.rejected_orders, found.parked_accounts) == ({}, 0, 0)
    assert (found.next_check_at, found.next_wake_at) == (None, NOW)
    assert [account.id for account in found.accounts] == ["acct", "client"]
    assert await newest_anomalies(kept.database) == []
    assert await newest_rejections(kept.database) == []


async def test_orders_are_counted_by_status_and_certificate_and_the_longest_in_each_is_returned(
    kept: Kept,
) -> None:
    await kept.see(order("o1", "complete"), order("o2", "paid"), at=NOW)
    await kept.see(order("o3", "complete"), order("o4", "paid"), at=NOW + HOUR)
    await kept.see(order("o5", "pooled"), order("o6", "other"), at=NOW + 2 * HOUR)
    await kept.see(order("o1", "complete"), at=NOW - HOUR, account=CLIENT)
    await kept.store(stored(), "o1")
    late = next(one for one in await kept.due(FAR) if one.order_id == "o3")
    await kept.fail(late, state=CertificateState.FAILED)
    await park_account(kept.database, "client", "suspended", FAR, NOW)

    found = await kept.statistics(NOW + DAY)
    assert found.by_status == {"complete": 3, "paid": 2, "pooled": 1, "other": 1}
    assert found.entered_at == {
        "complete": NOW - HOUR,
        "paid": NOW,
        "pooled": NOW + 2 * HOUR,
        "other": NOW + 2 * HOUR,
    }
    assert found.by_certificate == {"owed": 1, "stored": 1, "failed": 1, "none": 4}
    assert (found.owed, found.owed_since) == (2, NOW - HOUR)
    assert found.parked_accounts == 1
    # All but the order whose certificate is stored.
    assert (found.followed, found.due) == (6, 6)


async def test_the_longest_in_a_status_may_be_one_with_its_certificate(kept: Kept) -> None:
    await kept.see(order("o1", "complete"), at=NOW - DAY)
    await kept.see(order("o2", "complete"), at=NOW)
    await kept.store(stored(), "o1")
    found = await kept.statistics()
    assert found.entered_at == {"complete": NOW - DAY}
    assert found.owed_since == NOW


async def test_what_is_odd_and_what_is_due_is_counted(kept: Kept) -> None:
    await kept.see(order("o1", "paid"), order("o2", "complete"), order("o3", "complete"))
    await kept.see(order("o1", "pooled"), account=CLIENT)
    await kept.see(
        order("o1", "placed"), at=NOW + HOUR, rejected=[RejectedOrder("o9", "why", "{}")]
    )
    await kept.store(stored(path="acct/o3.pdf"), "o3")
    for account in ("acct", "client"):
        await postpone_sweep(kept.database, account, NOW + DAY)
    found = await kept.statistics(NOW + HOUR / 2)
    assert found.by_status == {"paid": 1, "complete": 2, "pooled": 1}
    assert found.by_certificate == {"none": 2, "owed": 1, "stored": 1}
    assert found.anomalies == {"backward": 1, "unknown_status": 1}
    assert len(await newest_anomalies(kept.database)) == 2
    assert found.rejected_orders == 1
    assert [one.reference for one in await newest_rejections(kept.database)] == ["o9"]
    assert found.due == 2  # the owed certificate, and the client's order
    assert found.next_wake_at == found.next_check_at == NOW


async def test_anomalies_are_counted_as_often_as_they_were_seen(kept: Kept) -> None:
    await kept.see(order("o1", "paid"), order("o2", "paid"))
    for hours in (1, 2, 3):
        await kept.see(order("o1", "placed"), order("o2", "received"), at=NOW + hours * HOUR)
    assert (await kept.statistics()).anomalies == {"backward": 6}


async def test_the_next_wake_is_a_sweeps_or_an_orders_whichever_comes_first(kept: Kept) -> None:
    await kept.see(order("o1", "paid"))
    for account, date in (("acct", NOW + DAY), ("client", NOW + 10 * MINUTE)):
        await postpone_sweep(kept.database, account, date)
    assert (await kept.statistics()).next_wake_at == NOW + 10 * MINUTE
    await postpone_sweep(kept.database, "client", NOW + DAY)
    assert (await kept.statistics()).next_wake_at == NOW + 15 * MINUTE


@pytest.mark.parametrize("reason", [None, "suspended"])
async def test_the_accounts_say_who_is_parked(kept: Kept, reason: str | None) -> None:
    if reason is not None:
        await park_account(kept.database, "client", reason, NOW + DAY, NOW)
    found = await kept.statistics()
    accounts = {account.id: account for account in found.accounts}
    assert accounts["client"].parked_reason == reason
    assert accounts["acct"].parked_reason is None
    assert found.parked_accounts == int(reason is not None)


# When the followed account that waits longest was swept.


async def swept(kept: Kept, account: str, at: datetime, again: datetime) -> None:
    mark = await begin_sweep(kept.database, account)
    await finish_sweep(kept.database, account, mark, at, again, joined=True)


async def last_sweep(kept: Kept, now: datetime) -> datetime | None:
    return (await kept.statistics(now)).last_sweep_at(now, HOUR)


async def test_the_last_sweep_is_that_of_the_account_that_waits_longest(kept: Kept) -> None:
    assert await last_sweep(kept, NOW) is None
    await swept(kept, "acct", NOW, NOW + HOUR)
    assert await last_sweep(kept, NOW) is None  # the client's was never swept
    await swept(kept, "client", NOW + MINUTE, NOW + HOUR)
    assert await last_sweep(kept, NOW + 2 * MINUTE) == NOW
    await swept(kept, "acct", NOW + HOUR, NOW + 2 * HOUR)
    assert await last_sweep(kept, NOW + HOUR) == NOW + MINUTE


async def test_parked_accounts_and_those_followed_no_more_have_no_part_in_it(kept: Kept) -> None:
    await swept(kept, "acct", NOW, NOW + DAY)
    await swept(kept, "client", NOW - DAY, NOW - 12 * HOUR)  # not planned anew since
    assert await last_sweep(kept, NOW) == NOW
    await postpone_sweep(kept.database, "client", NOW)
    assert await last_sweep(kept, NOW) == NOW - DAY
    await park_account(kept.database, "client", "suspended", NOW, NOW)
    assert await last_sweep(kept, NOW) == NOW
    # When none is followed the newest good sweep counts.
    assert await last_sweep(kept, NOW + 9 * DAY) == NOW


# How long certificates were owed.


async def test_for_each_final_certificate_it_is_returned_how_long_it_was_owed(kept: Kept) -> None:
    await kept.see(order("o1", "complete"), order("o2", "complete"))
    await kept.see(order("o3", "retiring"), schedule=EAGER)
    before = await last_event(kept.database)
    await kept.store(stored(path="acct/o1.pdf", at=NOW + MINUTE), "o1")
    interim = stored(kind=CertificateKind.INTERIM, path="acct/o3.pdf", at=NOW + MINUTE)
    await kept.store(interim, "o3")
    middle, owed = await stored_since(kept.database, before)
    assert owed == [60.0]
    await kept.store(stored(path="acct/o2.pdf", at=NOW + HOUR), "o2")
    last, owed = await stored_since(kept.database, middle)
    assert (last, owed) == (await last_event(kept.database), [3600.0])
    assert await stored_since(kept.database, last) == (last, [])


async def test_a_lost_file_is_owed_since_it_was_seen_lost(kept: Kept) -> None:
    await kept.see(order(status="complete"))
    await kept.store(stored(at=NOW + MINUTE))
    before = await last_event(kept.database)
    await reopen_certificate(kept.database, "acct", "o1", 1, NOW + DAY)
    await kept.store(replace(stored(), stored_at=NOW + DAY + HOUR))
    assert (await stored_since(kept.database, before))[1] == [3600.0]
