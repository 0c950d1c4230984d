"""What any ledger must do: certificates owed, stored, failed and owed anew."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harvester.domain.certificates import NewCertificate
from harvester.domain.orders import EVERYTHING, CertificateKind, CertificateState, OrderFilter
from harvester.ledger.accounts import begin_sweep, finish_sweep, park_account
from harvester.ledger.certificates import (
    DueCertificate,
    RecordedCertificate,
    due_certificates,
    read_certificates,
    record_certificates,
    recorded_certificates,
    recorded_paths,
)
from tests.contract.ledger_cases import (
    CLIENT,
    DAY,
    EAGER,
    FAR,
    HOUR,
    MINUTE,
    NOW,
    SCHEDULE,
    Kept,
    order,
    stored,
)

OWED, STORED, FAILED = CertificateState.OWED, CertificateState.STORED, CertificateState.FAILED
INTERIM, FINAL = CertificateKind.INTERIM, CertificateKind.FINAL


async def state(kept: Kept, order_id: str = "o1") -> str | None:
    return (await kept.whole(order_id)).order.certificate_state


# When one is owed.


@pytest.mark.parametrize("before", [None, "received", "paid", "retiring", "pooled"])
async def test_a_certificate_is_owed_and_due_once_an_order_is_complete(
    kept: Kept, before: str | None
) -> None:
    if before is not None:
        await kept.see(order(status=before), at=NOW - HOUR)
        assert await kept.due_ids(FAR) == []
    await kept.see(order(status="complete"))
    assert await kept.due() == [DueCertificate("acct", "o1", "complete", NOW - DAY, NOW, 0, 0)]


@pytest.mark.parametrize("status", ["received", "placed", "paid", "cancelled", "failed", "pooled"])
async def test_no_certificate_is_owed_in_any_other_status(kept: Kept, status: str) -> None:
    await kept.see(order(status=status), schedule=EAGER)
    assert await state(kept) is None
    assert await kept.due_ids(FAR) == []


async def test_a_retiring_order_owes_one_only_when_interim_ones_are_wanted(kept: Kept) -> None:
    await kept.see(order(status="retiring"))
    assert await state(kept) is None
    await kept.see(order(status="retiring"), schedule=EAGER, at=NOW + HOUR)
    assert await kept.due_ids(NOW + HOUR) == ["o1"]
    await kept.see(order(status="retiring"), at=NOW + 2 * HOUR)
    assert await state(kept) is None


async def test_an_interim_certificate_is_asked_for_once_per_check(kept: Kept) -> None:
    await kept.see(order(status="retiring"), schedule=EAGER)
    (one,) = await kept.due()
    await kept.fail(one, NOW + MINUTE, counts=False)
    assert await kept.due_ids(NOW + 5 * HOUR) == []
    await kept.see(order(status="retiring"), schedule=EAGER, at=NOW + HOUR)
    assert await kept.due_ids(NOW + HOUR) == ["o1"]


async def test_an_order_that_is_cancelled_while_retiring_owes_nothing_more(kept: Kept) -> None:
    await kept.see(order(status="retiring"), schedule=EAGER)
    await kept.see(order(status="cancelled"), schedule=EAGER, at=NOW + HOUR)
    assert await state(kept) is None
    assert await kept.due_ids(FAR) == []


async def test_checking_a_complete_order_leaves_its_certificates_date_alone(kept: Kept) -> None:
    await kept.see(order(status="complete"))
    await kept.fail((await kept.due())[0], again=NOW + 2 * HOUR)
    for served in ("complete", "paid"):  # again, and once more with what cannot be
        await kept.see(order(status=served), at=NOW + HOUR)
        assert await kept.due_ids(NOW + HOUR) == []
        assert await kept.checks(FAR) == {}
    assert await kept.due_ids(NOW + 2 * HOUR) == ["o1"]


# Which are due.


async def test_due_certificates_come_the_longest_due_first_and_no_more_than_asked_for(
    kept: Kept,
) -> None:
    for hours in (2, 0, 1):
        await kept.see(order(f"o{hours}", "complete"), at=NOW + hours * HOUR)
    now = NOW + DAY
    assert await kept.due_ids(now) == ["o0", "o1", "o2"]
    first = await due_certificates(kept.database, now, SCHEDULE.horizon(now), 2)
    assert [one.order_id for one in first] == ["o0", "o1"]


async def test_a_certificate_dated_beyond_the_horizon_is_due(kept: Kept) -> None:
    await kept.see(order(status="complete"))
    one = (await kept.due())[0]
    await kept.fail(one, again=SCHEDULE.horizon(NOW))
    assert await kept.due_ids() == []
    await kept.fail(one, again=SCHEDULE.horizon(NOW) + MINUTE)
    assert await kept.due_ids() == ["o1"]


async def test_with_untried_since_what_was_not_asked_for_since_is_due_whatever_its_date(
    kept: Kept,
) -> None:
    await kept.see(*(order(f"o{number}", "complete") for number in (1, 2, 3)))
    due = {one.order_id: one for one in await kept.due()}
    await kept.fail(due["o1"], NOW, again=NOW + HOUR, state=FAILED)
    await kept.fail(due["o2"], NOW + MINUTE, again=NOW + HOUR)
    now = NOW + 2 * MINUTE
    assert await kept.due_ids(now) == ["o3"]
    assert sorted(await kept.due_ids(now, untried_since=NOW + MINUTE)) == ["o1", "o3"]
    assert sorted(await kept.due_ids(now, untried_since=now)) == ["o1", "o2", "o3"]


async def test_due_certificates_are_returned_within_the_scope(kept: Kept) -> None:
    await kept.see(order("o1", "complete", created_at=NOW - 9 * DAY), order("o2", "complete"))
    await kept.see(order("o3", "complete"), account=CLIENT)
    for scope, ids in (
        (OrderFilter(accounts=frozenset({"client"})), ["o3"]),
        (OrderFilter(since=NOW - 2 * DAY), ["o2", "o3"]),
        (OrderFilter(until=NOW - 2 * DAY), ["o1"]),
        (OrderFilter(status="paid"), []),
        (OrderFilter(certificate="owed"), ["o1", "o2", "o3"]),
        (EVERYTHING, ["o1", "o2", "o3"]),
    ):
        assert sorted(await kept.due_ids(scope=scope)) == ids


async def test_certificates_of_parked_accounts_are_not_due(kept: Kept) -> None:
    await kept.see(order("o1", "complete"))
    await kept.see(order("o2", "complete"), account=CLIENT)
    await park_account(kept.database, "acct", "suspended", FAR, NOW)
    assert await kept.due_ids() == ["o2"]
    assert await kept.due_ids(untried_since=NOW + DAY) == ["o2"]
    mark = await begin_sweep(kept.database, "acct")
    await finish_sweep(kept.database, "acct", mark, NOW, NOW, joined=False)
    assert sorted(await kept.due_ids()) == ["o1", "o2"]


# What is stored.


async def test_a_stored_certificate_is_returned_whole_and_no_longer_owed(kept: Kept) -> None:
    await kept.see(order(status="complete"))
    await kept.store(stored())
    assert await read_certificates(kept.database, "acct", "o1") == [stored()]
    row = (await kept.whole()).order
    assert (row.certificate_state, row.next_check_at, row.certificate) == (STORED, None, stored())
    assert await kept.due_ids(FAR, untried_since=FAR) == []
    await kept.see(order(status="complete"), at=NOW + DAY)
    assert (await kept.whole()).order.certificate_state == STORED


async def test_recording_the_same_certificate_again_changes_nothing(kept: Kept) -> None:
    await kept.see(order(status="complete"))
    await kept.store(stored())
    await kept.store(stored(at=NOW + HOUR))
    assert await read_certificates(kept.database, "acct", "o1") == [stored()]


async def test_other_bytes_never_replace_a_recorded_version(kept: Kept) -> None:
    await kept.see(order(status="complete"))
    await kept.store(stored())
    await kept.store(stored(kind=INTERIM, path="acct/other.pdf", sha256="b" * 64))
    assert await read_certificates(kept.database, "acct", "o1") == [stored()]


async def test_an_interim_certificate_is_followed_by_the_final_one(kept: Kept) -> None:
    interim = stored(1, INTERIM, path="acct/o1.interim.pdf")
    final = stored(2, path="acct/o1.v2.pdf", sha256="b" * 64, at=NOW + DAY)
    await kept.see(order(status="retiring"), schedule=EAGER)
    await kept.store(interim)
    assert await kept.due_ids() == []
    assert set(await kept.checks(NOW + HOUR)) == {"o1"}
    await kept.see(order(status="complete"), schedule=EAGER, at=NOW + DAY)
    (one,) = await kept.due(NOW + DAY)
    assert (one.status, one.owed_since, one.attempts) == ("complete", NOW + DAY, 0)
    await kept.store(final)
    assert await read_certificates(kept.database, "acct", "o1") == [interim, final]
    assert (await kept.whole()).order.certificate == final
    assert await kept.due_ids(FAR) == []


async def test_an_interim_certificate_that_turns_out_final_stays_one_version(kept: Kept) -> None:
    interim = stored(1, INTERIM, path="acct/o1.interim.pdf")
    await kept.see(order(status="retiring"), schedule=EAGER)
    await kept.store(interim)
    await kept.see(order(status="complete"), schedule=EAGER, at=NOW + DAY)
    await kept.store(replace(interim, kind=FINAL, stored_at=NOW + DAY))
    assert await read_certificates(kept.database, "acct", "o1") == [replace(interim, kind=FINAL)]
    assert await kept.due_ids(FAR) == []


async def test_an_interim_certificate_stored_after_completion_does_not_pay_the_final_one(
    kept: Kept,
) -> None:
    # It was fetched while the order was retiring; the sweep saw completion before it was recorded.
    await kept.see(order(status="retiring"), schedule=EAGER)
    await kept.see(order(status="complete"), schedule=EAGER, at=NOW + HOUR)
    await kept.store(stored(1, INTERIM, path="acct/o1.interim.pdf", at=NOW + HOUR))
    assert await state(kept) == OWED
    assert await kept.due_ids(NOW + HOUR) == ["o1"]


async def test_certificates_of_two_accounts_with_one_order_id_do_not_mix(kept: Kept) -> None:
    await kept.see(order(status="complete"))
    await kept.see(order(status="complete"), account=CLIENT)
    await kept.store(stored(path="client/o1.pdf"), account=CLIENT)
    assert [one.account_id for one in await kept.due()] == ["acct"]
    assert await read_certificates(kept.database, "acct", "o1") == []


async def test_known_files_are_told_from_others(kept: Kept) -> None:
    await kept.see(order(status="complete"))
    await kept.store(stored())
    asked = [f"acct/{number}.pdf" for number in range(2000)]
    asked += ["acct/o1.pdf", "client/o1.pdf", "o1.pdf", "acct/x/o1.pdf"]
    assert await recorded_paths(kept.database, asked) == {"acct/o1.pdf"}
    assert await recorded_paths(kept.database, []) == set()


@pytest.mark.parametrize("count", [0, 1, 500, 501, 1000, 1203])
async def test_all_stored_certificates_are_returned_each_once(kept: Kept, count: int) -> None:
    numbers = range(count)
    paths = {f"o{number}": f"acct/{number * 7919 % 10007:05}.pdf" for number in numbers}
    for first in range(0, count, 100):
        await kept.see(*(order(f"o{n}", "complete") for n in numbers[first : first + 100]))
    new = [NewCertificate("acct", one, stored(path=path), None) for one, path in paths.items()]
    if new:
        await record_certificates(kept.database, new)
    found = [one async for one in recorded_certificates(kept.database)]
    assert len(found) == count
    assert {one.order_id: one.certificate.file.path for one in found} == paths


async def test_every_version_of_every_order_is_returned(kept: Kept) -> None:
    await kept.see(order(status="retiring"), schedule=EAGER)
    first = stored(1, INTERIM, path="acct/o1.interim.pdf")
    second = stored(2, path="acct/o1.v2.pdf", sha256="b" * 64)
    await kept.store(first)
    await kept.store(second)
    assert [one async for one in recorded_certificates(kept.database)] == [
        RecordedCertificate("acct", "o1", first, is_replaced=False),
        RecordedCertificate("acct", "o1", second, is_replaced=False),
    ]
