"""Events are written with the facts they are about, once each, and hold nothing personal."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from harvester.domain.events import Event, EventType, NewEvent, cloud_event, event_text
from harvester.domain.orders import CertificateKind, CertificateState
from harvester.ledger.accounts import park_account
from harvester.ledger.certificates import reopen_certificate
from harvester.ledger.events import read_events, write_events
from tests.contract.ledger_cases import ACCOUNT, CLIENT, DAY, EAGER, FAR, NOW, Kept, order, stored

INTERIM, FINAL = CertificateKind.INTERIM, CertificateKind.FINAL


async def written(kept: Kept, *, about: str = "") -> list[Event]:
    """Return the events so far whose type begins so, having seen that numbers rise without gap."""
    found = (await read_events(kept.database, None, 1000)).events
    assert [one.seq for one in found] == list(range(1, len(found) + 1))
    assert len({one.id for one in found}) == len(found)
    return [one for one in found if one.type.startswith(about)]


def shown(events: list[Event], *members: str) -> list[tuple[Any, ...]]:
    return [(one.type, *(one.data[name] for name in members)) for one in events]


async def test_each_transition_is_an_event_and_nothing_else_of_an_order_is(kept: Kept) -> None:
    await kept.see(order(key="INV-1"))
    await kept.see(order(key="INV-1"), at=NOW + DAY)  # unchanged
    await kept.see(order(status="paid", key="INV-1"), at=NOW + 2 * DAY)
    await kept.see(order(status="placed", key="INV-1"), at=NOW + 3 * DAY)  # an anomaly
    first, second = await written(kept)
    assert (first.account_id, first.order_id, first.at) == ("acct", "o1", NOW)
    assert first.data == {"idempotency_key": "INV-1", "status": "placed", "previous_status": None}
    assert second.at == NOW + 2 * DAY
    assert (second.data["previous_status"], second.data["status"]) == ("placed", "paid")


async def test_an_event_holds_no_metadata_and_no_address_of_a_person(kept: Kept) -> None:
    private = order(metadata={"customer": "CANARY"}, email="jo@canary.example")
    await kept.see(private)
    (event,) = await written(kept)
    assert "canary" not in event_text(event).lower()


async def test_what_was_not_recorded_has_no_event(kept: Kept) -> None:
    event = NewEvent(EventType.ORDER_STUCK, "acct", "o1", NOW, {})

    async def give_up() -> None:
        async with kept.database.transaction() as tx:
            await write_events(tx, [event])
            raise RuntimeError("the transaction is given up")

    with pytest.raises(RuntimeError):
        await give_up()
    assert await written(kept) == []


async def test_any_part_of_the_ledger_can_write_an_event(kept: Kept) -> None:
    event = NewEvent(EventType.ORDER_STUCK, "acct", "o1", NOW, {"status": "retiring"})
    async with kept.database.transaction() as tx:
        await write_events(tx, [event])
    (found,) = await written(kept)
    assert (found.type, found.order_id, found.data) == ("order.stuck", "o1", event.data)


async def test_a_stored_certificate_has_one_event_however_often_it_is_recorded(kept: Kept) -> None:
    await kept.see(order(status="complete", key="INV-1"))
    await kept.store(stored())
    await kept.store(stored())
    (event,) = await written(kept, about="certificate")
    assert event.type == "certificate.stored"
    assert event.data == {
        "idempotency_key": "INV-1",
        "version": 1,
        "kind": "final",
        "sha256": "a" * 64,
        "size": 61_440,
        "path": "acct/o1.pdf",
    }


async def test_a_certificate_that_turns_out_final_has_another_event(kept: Kept) -> None:
    await kept.see(order(status="retiring"), schedule=EAGER)
    await kept.store(stored(kind=INTERIM))
    await kept.see(order(status="complete"), schedule=EAGER)
    await kept.store(stored(kind=FINAL))
    events = await written(kept, about="certificate")
    assert shown(events, "version", "kind") == [
        ("certificate.stored", 1, "interim"),
        ("certificate.stored", 1, "final"),
    ]


async def test_only_a_final_certificate_is_superseded_by_a_later_one(kept: Kept) -> None:
    await kept.see(order(status="retiring"), schedule=EAGER)
    await kept.store(stored(kind=INTERIM))
    await kept.see(order(status="complete"), schedule=EAGER)
    await kept.store(stored(2, path="acct/o1.v2.pdf", sha256="b" * 64))
    assert shown(await written(kept, about="certificate"), "version") == [
        ("certificate.stored", 1),
        ("certificate.stored", 2),
    ]
    await kept.store(stored(3, path="acct/o1.v3.pdf", sha256="c" * 64))
    *_, last, superseded = await written(kept, about="certificate")
    assert (last.type, last.data["version"]) == ("certificate.stored", 3)
    assert superseded.type == "certificate.superseded"
    assert superseded.data == {
        "idempotency_key": None,
        "version": 2,
        "sha256": "b" * 64,
        "path": "acct/o1.v2.pdf",
        "superseded_by": 3,
    }


async def test_bytes_that_are_not_recorded_under_a_version_have_no_event(kept: Kept) -> None:
    await kept.see(order(status="complete"))
    await kept.store(stored())
    await kept.store(stored(sha256="f" * 64))  # refused by the ledger, which keeps what it has
    assert len(await written(kept, about="certificate")) == 1


async def test_a_lost_file_that_was_had_again_has_another_event(kept: Kept) -> None:
    await kept.see(order(status="complete"))
    await kept.store(stored())
    await reopen_certificate(kept.database, "acct", "o1", 1, NOW)
    await kept.store(stored())
    assert len(await written(kept, about="certificate.stored")) == 2


async def test_a_later_version_supersedes_once_even_if_its_file_was_lost(kept: Kept) -> None:
    await kept.see(order(status="complete"))
    await kept.store(stored())
    later = stored(2, path="acct/o1.v2.pdf", sha256="b" * 64)
    await kept.store(later)
    await reopen_certificate(kept.database, "acct", "o1", 2, NOW)
    await kept.store(later)
    assert len(await written(kept, about="certificate.superseded")) == 1


async def test_a_certificate_fails_once_until_it_was_had(kept: Kept) -> None:
    await kept.see(order(status="complete"))
    (due,) = await kept.due()
    await kept.fail(due)
    assert await written(kept, about="certificate") == []
    for number in range(3):
        at = NOW + number * DAY
        await kept.fail(due, at, state=CertificateState.FAILED, reason="no PDF", again=at)
    (event,) = await written(kept, about="certificate")
    assert (event.type, event.at) == ("certificate.failed", NOW)
    assert event.data["reason"] == "no PDF"
    await kept.store(stored())
    await kept.fail(due, state=CertificateState.FAILED, reason="a late answer")
    assert len(await written(kept, about="certificate.failed")) == 1


async def test_an_account_that_stays_parked_has_one_event(kept: Kept) -> None:
    for number in range(2):
        await park_account(kept.database, "acct", "suspended", FAR, NOW + number * DAY)
    (event,) = await written(kept)
    assert (event.type, event.account_id, event.order_id) == ("account.parked", "acct", None)
    assert event.data["reason"] == "suspended"
    assert "subject" not in cloud_event(event)


async def test_events_written_at_once_are_numbered_one_after_the_other(kept: Kept) -> None:
    await asyncio.gather(
        *(
            kept.see(order(f"o{n}"), account=account)
            for n in range(20)
            for account in (ACCOUNT, CLIENT)
        )
    )
    assert len(await written(kept)) == 40


def test_an_event_is_a_cloud_event_in_the_same_bytes_each_time() -> None:
    data = {"status": "paid", "idempotency_key": "INV-\udce9\u00e9"}
    event = Event(7, "an-id", "order.status_changed", "acct", "o1", NOW, data)
    assert cloud_event(event) == {
        "specversion": "1.0",
        "id": "an-id",
        "source": "/lune/accounts/acct",
        "type": "order.status_changed",
        "subject": "o1",
        "time": "2026-03-01T12:00:00Z",
        "sequence": "00000000000000000007",
        "datacontenttype": "application/json",
        "data": {"account_id": "acct", "order_id": "o1", **data},
    }
    assert event_text(event) == event_text(event)
    assert event_text(event).isascii()


async def test_reading_says_what_is_kept_and_what_came_last(kept: Kept) -> None:
    empty = await read_events(kept.database, None, 10)
    assert (empty.events, empty.before, empty.newest) == ([], 0, 0)
    for number in range(5):
        await kept.see(order(f"o{number}"), at=NOW + timedelta(minutes=number))
    some = await read_events(kept.database, 1, 2)
    assert ([one.seq for one in some.events], some.before, some.newest) == ([2, 3], 0, 5)
