"""What people and programs ask any ledger: lists, one order whole."""

from __future__ import annotations

from datetime import timedelta

from harvester.domain.orders import (
    EVERYTHING,
    CertificateKind,
    CertificateState,
    OrderFilter,
)
from harvester.ledger.queries import find_orders, stream_orders
from tests.contract.ledger_cases import CLIENT, DAY, EAGER, HOUR, NOW, Kept, order, stored

MICROSECOND = timedelta(microseconds=1)


async def listed(
    kept: Kept, scope: OrderFilter = EVERYTHING, limit: int | None = None
) -> list[tuple[str, str]]:
    """Return (account, id) as they are listed; a listing that does not end is cut off."""
    rows: list[tuple[str, str]] = []
    async for row in stream_orders(kept.database, scope, limit):
        rows.append((row.account_id, row.id))
        assert len(rows) < 5000
    return rows


async def streamed(kept: Kept, limit: int | None = None, **scope: object) -> list[str]:
    filters = OrderFilter(**scope)  # type: ignore[arg-type] # as each test names them
    return [order_id for _, order_id in await listed(kept, filters, limit)]


async def fill(kept: Kept, count: int) -> list[tuple[str, str]]:
    """Record orders of one instant under two accounts; return (account, id) as they are sorted."""
    ids = [f"o{number * 7919 % 10007:05}" for number in range(count)]
    for account in (CLIENT, None):
        for first in range(0, count, 100):
            page = [order(one) for one in ids[first : first + 100]]
            await (kept.see(*page, account=account) if account else kept.see(*page))
    return [(account, one) for account in ("acct", "client") for one in sorted(ids)]


# Lists.


async def test_orders_of_one_instant_are_all_listed_once_over_many_chunks(kept: Kept) -> None:
    expected = await fill(kept, 620)
    assert await listed(kept) == expected
    for limit in (0, 1, 999, 1000, 1001, 1239, 1240, 5000):
        assert await listed(kept, limit=limit) == expected[:limit]


async def test_orders_are_listed_newest_first_to_the_microsecond(kept: Kept) -> None:
    await kept.see(*(order(f"o{n}", created_at=NOW + n * MICROSECOND) for n in (1, 3, 2, 0)))
    assert await streamed(kept) == ["o3", "o2", "o1", "o0"]


async def test_what_arrives_while_orders_are_listed_repeats_none(kept: Kept) -> None:
    expected = await fill(kept, 300)
    seen = []
    async for row in stream_orders(kept.database):
        seen.append((row.account_id, row.id))
        if len(seen) % 100 == 0:
            await kept.see(order(f"new{len(seen)}", created_at=NOW + HOUR))
    assert seen == expected


async def test_an_empty_ledger_lists_nothing(kept: Kept) -> None:
    assert await streamed(kept) == []
    assert await find_orders(kept.database, "o1") == []


async def test_each_filter_chooses_and_all_of_them_have_to_hold(kept: Kept) -> None:
    await kept.see(order("placed", "placed", created_at=NOW - 3 * DAY))
    await kept.see(order("owed", "complete", created_at=NOW - 2 * DAY))
    await kept.see(order("stored", "complete", created_at=NOW - DAY))
    await kept.see(order("failed", "complete", created_at=NOW), account=CLIENT)
    await kept.store(stored(), "stored")
    broken = next(one for one in await kept.due() if one.order_id == "failed")
    await kept.fail(broken, state=CertificateState.FAILED)

    assert await streamed(kept, accounts=frozenset({"client"})) == ["failed"]
    assert await streamed(kept, accounts=frozenset({"acct", "client", "x"}), limit=1) == ["failed"]
    assert await streamed(kept, accounts=frozenset()) == []
    assert await streamed(kept, status="complete") == ["failed", "stored", "owed"]
    assert await streamed(kept, status="Complete") == []
    assert await streamed(kept, certificate="none") == ["placed"]
    for state in ("owed", "stored", "failed"):
        assert await streamed(kept, certificate=state) == [state]
    assert await streamed(kept, since=NOW - DAY) == ["failed", "stored"]
    assert await streamed(kept, until=NOW - DAY) == ["owed", "placed"]
    assert await streamed(kept, since=NOW - 2 * DAY, until=NOW - DAY) == ["owed"]
    assert await streamed(kept, status="complete", certificate="owed", until=NOW) == ["owed"]
    assert await streamed(kept, status="placed", certificate="owed") == []


async def test_filters_hold_beyond_the_first_chunk(kept: Kept) -> None:
    await fill(kept, 1100)
    await kept.see(order("late", created_at=NOW - 9 * DAY))
    mine = await streamed(kept, accounts=frozenset({"acct"}))
    assert len(mine) == len(set(mine)) == 1101
    assert mine[-1] == "late"


async def test_a_listed_order_has_its_newest_certificate(kept: Kept) -> None:
    newest = stored(10, path="acct/o1.v10.pdf", sha256="b" * 64, at=NOW + HOUR)
    await kept.see(order("o1", "complete"), order("o2", "complete"))
    for version in (9, 2):
        await kept.store(stored(version, CertificateKind.INTERIM, path=f"acct/o1.v{version}.pdf"))
    await kept.store(newest)
    rows = {row.id: row async for row in stream_orders(kept.database)}
    assert rows["o1"].certificate == newest
    assert rows["o2"].certificate is None


# One order whole.


async def test_an_order_is_found_by_its_id_or_its_key_in_any_account(kept: Kept) -> None:
    await kept.see(order("o1", key="INV-1"), order("o2", key="o1"))
    await kept.see(order("o3", key="INV-1"), account=CLIENT)

    async def found(reference: str, account_id: str | None = None) -> set[str]:
        details = await find_orders(kept.database, reference, account_id)
        return {detail.order.id for detail in details}

    assert await found("INV-1") == {"o1", "o3"}
    assert await found("INV-1", "client") == {"o3"}
    assert await found("o1") == {"o1", "o2"}
    assert await found("o3", "acct") == set()
    assert await found("inv-1") == set()
    assert await found("%") == set()


async def test_an_order_is_shown_with_its_chain_versions_anomalies_and_document(kept: Kept) -> None:
    await kept.see(order(status="retiring", email_free="yes"), schedule=EAGER)
    await kept.see(order(status="paid"), at=NOW + HOUR)
    await kept.see(order(status="complete", projects=[{"status": "retired"}]), at=NOW + 2 * HOUR)
    interim, final = stored(1, CertificateKind.INTERIM), stored(2, path="acct/o1.v2.pdf")
    await kept.store(final)
    await kept.store(interim)
    detail = await kept.whole()
    assert await kept.chain() == [(None, "retiring"), ("retiring", "complete")]
    assert list(detail.certificates) == [interim, final]
    assert [(odd.recorded, odd.served) for odd in detail.anomalies] == [("retiring", "paid")]
    assert detail.document["projects"] == [{"status": "retired"}]
    assert "email_free" not in detail.document
