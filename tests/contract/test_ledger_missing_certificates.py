"""What any ledger must do: certificates that failed, and are tried again."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from harvester.domain.orders import EVERYTHING, CertificateKind, CertificateState, OrderFilter
from harvester.ledger.certificates import (
    count_missing_certificates,
    missing_certificates,
    read_certificates,
    recorded_certificates,
    reopen_certificate,
    retry_certificates,
)
from harvester.ledger.schema import certificates
from tests.contract.ledger_cases import CLIENT, EAGER, FAR, HOUR, MINUTE, NOW, Kept, order, stored

STORED, FAILED = CertificateState.STORED, CertificateState.FAILED


@pytest.mark.parametrize(("counts", "attempts"), [(True, 1), (False, 0)])
async def test_a_failure_is_recorded_with_its_reason_date_and_attempt(
    kept: Kept, counts: bool, attempts: int
) -> None:
    await kept.see(order(status="complete"))
    (one,) = await kept.due()
    await kept.fail(one, state=FAILED, reason="not a PDF", again=NOW + HOUR, counts=counts)
    assert await kept.due_ids(NOW + 59 * MINUTE) == []
    (missing,) = await missing_certificates(kept.database, EVERYTHING)
    assert (missing.account_id, missing.order_id, missing.state) == ("acct", "o1", FAILED)
    assert (missing.reason, missing.attempts) == ("not a PDF", attempts)
    assert missing.next_attempt_at == NOW + HOUR
    (again,) = await kept.due(NOW + HOUR)
    assert again.attempts == attempts
    assert again.owed_since == NOW


async def test_a_failure_of_an_order_that_completed_meanwhile_is_dropped(kept: Kept) -> None:
    await kept.see(order(status="retiring"), schedule=EAGER)
    (one,) = await kept.due()
    await kept.see(order(status="complete"), schedule=EAGER, at=NOW + HOUR)
    await kept.fail(one, NOW + HOUR, state=FAILED, again=FAR)
    (still,) = await kept.due(NOW + HOUR)
    assert (still.status, still.attempts) == ("complete", 0)


async def test_a_failure_after_it_was_stored_is_dropped(kept: Kept) -> None:
    await kept.see(order(status="complete"))
    (one,) = await kept.due()
    await kept.store(stored())
    await kept.fail(one, state=FAILED, again=NOW)
    assert (await kept.whole()).order.certificate_state == STORED
    assert await kept.due_ids(FAR) == []


async def test_a_stored_certificate_has_no_reason_left(kept: Kept) -> None:
    await kept.see(order(status="complete"))
    await kept.fail((await kept.due())[0], state=FAILED, reason="not a PDF", again=NOW)
    await kept.store(stored())
    assert (await kept.whole()).order.failure_reason is None
    assert await missing_certificates(kept.database, EVERYTHING) == []


@pytest.mark.parametrize("ids", [None, ["o1", "o2", "o3", "never"]])
async def test_retrying_makes_missing_certificates_due_now_and_leaves_the_rest(
    kept: Kept, ids: list[str] | None
) -> None:
    await kept.see(order("o1", "complete"), order("o2", "complete"), order("o3", "paid"))
    o1, o2 = sorted(await kept.due(), key=lambda one: one.order_id)
    await kept.fail(o1, state=FAILED, again=NOW + 5 * HOUR)
    await kept.store(stored(path="acct/o2.pdf"), o2.order_id)
    check = (await kept.whole("o3")).order.next_check_at
    assert await retry_certificates(kept.database, NOW + HOUR, ids) == [("acct", "o1")]
    (one,) = await kept.due(NOW + HOUR)
    assert (one.order_id, one.attempts) == ("o1", 0)
    assert (await kept.whole("o3")).order.next_check_at == check


async def test_retrying_only_some_leaves_the_others_at_their_dates(kept: Kept) -> None:
    await kept.see(order("o1", "complete"), order("o2", "complete"))
    for one in await kept.due():
        await kept.fail(one, again=NOW + 5 * HOUR)
    assert await retry_certificates(kept.database, NOW, ["o2"]) == [("acct", "o2")]
    assert await retry_certificates(kept.database, NOW, []) == []
    assert await kept.due_ids() == ["o2"]


async def test_retrying_an_interim_certificate_keeps_the_orders_check(kept: Kept) -> None:
    await kept.see(order(status="retiring"), schedule=EAGER)
    check = (await kept.whole()).order.next_check_at
    await kept.fail((await kept.due())[0], NOW + MINUTE)
    assert await kept.due_ids(NOW + MINUTE) == []
    assert await retry_certificates(kept.database, NOW + MINUTE, None) == [("acct", "o1")]
    assert await kept.due_ids(NOW + MINUTE) == ["o1"]
    assert (await kept.whole()).order.next_check_at == check


async def test_a_certificate_whose_file_is_gone_is_owed_anew_and_its_versions_kept(
    kept: Kept,
) -> None:
    await kept.see(order(status="complete"))
    await kept.store(stored())
    await reopen_certificate(kept.database, "acct", "o1", 1, NOW + HOUR)
    (one,) = await kept.due(NOW + HOUR)
    assert (one.owed_since, one.attempts) == (NOW + HOUR, 0)
    assert await read_certificates(kept.database, "acct", "o1") == [stored()]
    await kept.store(stored(at=NOW + 2 * HOUR))
    assert await kept.due_ids(FAR) == []


@pytest.mark.parametrize("lost", [1, 2, 3])
async def test_of_several_versions_only_the_lost_one_is_marked(kept: Kept, lost: int) -> None:
    versions = [
        stored(1, path="acct/o1.pdf"),
        stored(2, path="acct/o1.v2.pdf", sha256="b" * 64),
        stored(3, path="acct/o1.v3.pdf", sha256="c" * 64),
    ]

    async def lost_versions() -> list[int]:
        async with kept.database.read() as connection:
            marked = select(certificates.c.version).where(certificates.c.lost_at.is_not(None))
            return list(await connection.scalars(marked))

    async def replaced_versions() -> list[int]:
        found = [one async for one in recorded_certificates(kept.database)]
        return [one.certificate.version for one in found if one.is_replaced]

    await kept.see(order(status="complete"))
    for one in versions:
        await kept.store(one)
    for _ in range(2):
        await reopen_certificate(kept.database, "acct", "o1", lost, NOW + HOUR)
        assert await lost_versions() == [lost]
    # A later one stands in for it, if there is one.
    assert await replaced_versions() == ([lost] if lost < 3 else [])
    assert await kept.due_ids(NOW + HOUR) == ["o1"]
    # Another version's file says nothing about this one's; its own does.
    await kept.store(versions[lost % 3])
    assert await lost_versions() == [lost]
    await kept.store(versions[lost - 1])
    assert await lost_versions() == []
    assert await read_certificates(kept.database, "acct", "o1") == versions


async def test_reopening_an_interim_certificate_keeps_the_orders_check(kept: Kept) -> None:
    await kept.see(order(status="retiring"), schedule=EAGER)
    check = (await kept.whole()).order.next_check_at
    await kept.store(stored(1, CertificateKind.INTERIM, at=NOW + MINUTE))
    await reopen_certificate(kept.database, "acct", "o1", 1, NOW + HOUR)
    assert await kept.due_ids(NOW + HOUR) == ["o1"]
    assert (await kept.whole()).order.next_check_at == check


async def test_missing_certificates_are_those_of_complete_orders_in_scope(kept: Kept) -> None:
    await kept.see(order("o1", "complete"), order("o2", "complete"), order("o3", "paid"))
    await kept.see(order("o4", "retiring"), schedule=EAGER)
    await kept.see(order("o5", "complete"), account=CLIENT)
    await kept.store(stored(path="acct/o2.pdf"), "o2")
    missing = await missing_certificates(kept.database, EVERYTHING)
    assert [one.order_id for one in missing] == ["o1", "o5"]
    assert await count_missing_certificates(kept.database, EVERYTHING) == 2
    scope = OrderFilter(accounts=frozenset({"client"}))
    assert [one.order_id for one in await missing_certificates(kept.database, scope)] == ["o5"]
    assert await count_missing_certificates(kept.database, scope) == 1
    assert await count_missing_certificates(kept.database, OrderFilter(status="paid")) == 0
