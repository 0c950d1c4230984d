"""What any ledger must do, through its port: certificates that failed, and are tried again."""

from __future__ import annotations

import pytest

from harvester.domain.orders import EVERYTHING, CertificateKind, CertificateState, OrderFilter
from harvester.ledger.certificates import (
    missing_certificates,
    read_certificates,
    reopen_certificate,
    retry_certificates,
)
from tests.contract.ledger_cases import CLIENT, EAGER, FAR, HOUR, MINUTE, NOW, Kept, order, stored

STORED, FAILED = CertificateState.STORED, CertificateState.FAILED


@pytest.mark.parametrize(("spent", "attempts"), [(True, 1), (False, 0)])
async def test_a_failure_is_recorded_with_its_reason_date_and_attempt(
    kept: Kept, spent: bool, attempts: int
) -> None:
    await kept.see(order(status="complete"))
    (one,) = await kept.due()
    await kept.fail(one, state=FAILED, reason="not a PDF", due=NOW + HOUR, spent=spent)
    assert await kept.due_ids(NOW + 59 * MINUTE) == []
    (missing,) = await missing_certificates(kept.database, EVERYTHING)
    assert (missing.account_id, missing.order_id, missing.state) == ("acct", "o1", FAILED)
    assert (missing.reason, missing.attempts) == ("not a PDF", attempts)
    assert missing.next_try_at == NOW + HOUR
    (again,) = await kept.due(NOW + HOUR)
    assert again.attempts == attempts
    assert again.owed_since == NOW


async def test_a_failure_of_an_order_that_completed_meanwhile_is_dropped(kept: Kept) -> None:
    await kept.see(order(status="retiring"), schedule=EAGER)
    (one,) = await kept.due()
    await kept.see(order(status="complete"), schedule=EAGER, at=NOW + HOUR)
    await kept.fail(one, NOW + HOUR, state=FAILED, due=FAR)
    (still,) = await kept.due(NOW + HOUR)
    assert (still.status, still.attempts) == ("complete", 0)


async def test_a_failure_after_it_was_stored_is_dropped(kept: Kept) -> None:
    await kept.see(order(status="complete"))
    (one,) = await kept.due()
    await kept.file(stored())
    await kept.fail(one, state=FAILED, due=NOW)
    assert (await kept.whole()).order.certificate_state == STORED
    assert await kept.due_ids(FAR) == []


async def test_a_stored_certificate_has_no_reason_left(kept: Kept) -> None:
    await kept.see(order(status="complete"))
    await kept.fail((await kept.due())[0], state=FAILED, reason="not a PDF", due=NOW)
    await kept.file(stored())
    assert (await kept.whole()).order.failure_reason is None
    assert await missing_certificates(kept.database, EVERYTHING) == []


@pytest.mark.parametrize("ids", [None, ["o1", "o2", "o3", "never"]])
async def test_retrying_makes_missing_certificates_due_now_and_leaves_the_rest(
    kept: Kept, ids: list[str] | None
) -> None:
    await kept.see(order("o1", "complete"), order("o2", "complete"), order("o3", "paid"))
    o1, o2 = sorted(await kept.due(), key=lambda one: one.id)
    await kept.fail(o1, state=FAILED, due=NOW + 5 * HOUR)
    await kept.file(stored(key="acct/o2.pdf"), o2.id)
    looks = (await kept.whole("o3")).order.next_check_at
    assert await retry_certificates(kept.database, NOW + HOUR, ids) == [("acct", "o1")]
    (one,) = await kept.due(NOW + HOUR)
    assert (one.id, one.attempts) == ("o1", 0)
    assert (await kept.whole("o3")).order.next_check_at == looks


async def test_retrying_only_some_leaves_the_others_at_their_dates(kept: Kept) -> None:
    await kept.see(order("o1", "complete"), order("o2", "complete"))
    for one in await kept.due():
        await kept.fail(one, due=NOW + 5 * HOUR)
    assert await retry_certificates(kept.database, NOW, ["o2"]) == [("acct", "o2")]
    assert await retry_certificates(kept.database, NOW, []) == []
    assert await kept.due_ids() == ["o2"]


async def test_retrying_an_interim_certificate_keeps_the_orders_look(kept: Kept) -> None:
    await kept.see(order(status="retiring"), schedule=EAGER)
    look = (await kept.whole()).order.next_check_at
    await kept.fail((await kept.due())[0], NOW + MINUTE)
    assert await kept.due_ids(NOW + MINUTE) == []
    assert await retry_certificates(kept.database, NOW + MINUTE, None) == [("acct", "o1")]
    assert await kept.due_ids(NOW + MINUTE) == ["o1"]
    assert (await kept.whole()).order.next_check_at == look


async def test_a_certificate_whose_file_is_gone_is_owed_anew_and_its_versions_kept(
    kept: Kept,
) -> None:
    await kept.see(order(status="complete"))
    await kept.file(stored())
    await reopen_certificate(kept.database, "acct", "o1", 1, NOW + HOUR)
    (one,) = await kept.due(NOW + HOUR)
    assert (one.owed_since, one.attempts) == (NOW + HOUR, 0)
    assert await read_certificates(kept.database, "acct", "o1") == [stored()]
    await kept.file(stored(at=NOW + 2 * HOUR))
    assert await kept.due_ids(FAR) == []


async def test_reopening_an_interim_certificate_keeps_the_orders_look(kept: Kept) -> None:
    await kept.see(order(status="retiring"), schedule=EAGER)
    look = (await kept.whole()).order.next_check_at
    await kept.file(stored(1, CertificateKind.INTERIM, at=NOW + MINUTE))
    await reopen_certificate(kept.database, "acct", "o1", 1, NOW + HOUR)
    assert await kept.due_ids(NOW + HOUR) == ["o1"]
    assert (await kept.whole()).order.next_check_at == look


async def test_missing_certificates_are_those_of_complete_orders_in_scope(kept: Kept) -> None:
    await kept.see(order("o1", "complete"), order("o2", "complete"), order("o3", "paid"))
    await kept.see(order("o4", "retiring"), schedule=EAGER)
    await kept.see(order("o5", "complete"), account=CLIENT)
    await kept.file(stored(key="acct/o2.pdf"), "o2")
    missing, count = kept.ledger.missing_certificates, kept.ledger.count_missing_certificates
    assert [one.order_id for one in await missing(EVERYTHING)] == ["o1", "o5"]
    assert await count(EVERYTHING) == 2
    scope = OrderFilter(accounts=frozenset({"client"}))
    assert [one.order_id for one in await missing(scope)] == ["o5"]
    assert await count(scope) == 1
    assert await count(OrderFilter(status="paid")) == 0
