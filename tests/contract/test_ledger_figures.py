"""What watchers are told of any ledger: how many there are of what, and since when."""

from __future__ import annotations

from harvester.domain.orders import CertificateState
from harvester.ledger.accounts import park_account
from harvester.ledger.statistics import measure
from harvester.web.metrics import OTHER
from tests.contract.ledger_cases import CLIENT, DAY, FAR, HOUR, NOW, Kept, order, stored


async def test_an_empty_ledger_counts_nothing_and_names_every_place(kept: Kept) -> None:
    figures = await measure(kept.database, NOW)
    assert set(figures.by_status.values()) == {0}
    assert {"received", "complete", "failed", OTHER} < set(figures.by_status)
    assert figures.by_certificate == {"owed": 0, "stored": 0, "failed": 0, "none": 0}
    assert figures.since_by_status == {}
    assert (figures.missing_since, figures.overdue, figures.parked_accounts) == (None, 0, 0)


async def test_orders_are_counted_by_status_and_certificate_and_the_longest_stay_is_told(
    kept: Kept,
) -> None:
    await kept.see(order("o1", "complete"), order("o2", "paid"), at=NOW)
    await kept.see(order("o3", "complete"), order("o4", "paid"), at=NOW + HOUR)
    await kept.see(order("o5", "pooled"), order("o6", "other"), at=NOW + 2 * HOUR)
    await kept.see(order("o1", "complete"), at=NOW - HOUR, account=CLIENT)
    await kept.file(stored(), "o1")
    late = next(one for one in await kept.due(FAR) if one.id == "o3")
    await kept.fail(late, state=CertificateState.FAILED)
    await park_account(kept.database, "client", "suspended", FAR, NOW)

    figures = await measure(kept.database, NOW + DAY)
    counted = {status: count for status, count in figures.by_status.items() if count}
    assert counted == {"complete": 3, "paid": 2, OTHER: 2}
    assert figures.since_by_status == {
        "complete": NOW - HOUR,
        "paid": NOW,
        OTHER: NOW + 2 * HOUR,
    }
    assert figures.by_certificate == {"owed": 1, "stored": 1, "failed": 1, "none": 4}
    assert figures.missing_since == NOW - HOUR
    assert figures.parked_accounts == 1
    assert figures.overdue == 6  # all but the order whose certificate is stored
