"""Events in the ledger: written in the transaction of the fact they tell of, read in order."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import and_, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from harvester.domain.events import Event, EventType, NewEvent
from harvester.domain.orders import CertificateKind, CertificateState
from harvester.domain.records import KnownOrder, NewCertificate
from harvester.ledger.database import Database
from harvester.ledger.keys import is_order
from harvester.ledger.schema import (
    ARCHIVE_KEY,
    accounts,
    certificates,
    events,
    folders,
    orders,
)


async def write_events(connection: AsyncConnection, new: Sequence[NewEvent]) -> None:
    """Write events within a transaction, numbered in this order, each with an id of its own."""
    if not new:
        return
    await connection.execute(
        events.insert(),
        [
            {
                "id": str(uuid.uuid4()),
                "type": one.type,
                "account_id": one.account_id,
                "order_id": one.order_id,
                "at": one.at,
                "data": json.dumps(one.data, separators=(",", ":")),
            }
            for one in new
        ],
    )


async def note_certificates(connection: AsyncConnection, filed: Sequence[NewCertificate]) -> None:
    """Write the events of certificates that are about to be recorded in this transaction.

    What is recorded already, in the same way, is no event.
    """
    found = await connection.execute(
        select(
            accounts.c.id.label("account"),
            orders.c.id,
            orders.c.idempotency_key,
            certificates,
            ARCHIVE_KEY,
        )
        .select_from(orders.join(accounts).outerjoin(certificates).outerjoin(folders))
        # Some of them may be other accounts' orders of the same id.
        .where(orders.c.id.in_({one.order_id for one in filed}))
    )
    keys: dict[tuple[str, str], str | None] = {}
    known: dict[tuple[str, str], dict[int, Any]] = {}
    for row in found:
        this = row.account, row.id
        keys[this] = row.idempotency_key
        versions = known.setdefault(this, {})
        if row.version is not None:
            versions[row.version] = row
    told: list[NewEvent] = []
    for one in filed:
        this = one.account_id, one.order_id
        told += _of_certificate(one, keys.get(this), known.get(this, {}))
    await write_events(connection, told)


def _of_certificate(
    one: NewCertificate, key: str | None, versions: dict[int, Any]
) -> list[NewEvent]:
    certificate, file = one.certificate, one.certificate.file
    before = versions.get(certificate.version)
    if before is not None and (
        before.sha256 != file.sha256 or (before.kind == certificate.kind and before.lost_at is None)
    ):
        return []
    stored = {
        "idempotency_key": key,
        "version": certificate.version,
        "kind": certificate.kind,
        "sha256": file.sha256,
        "size": file.size,
        "key": file.key,
    }
    made = [(EventType.CERTIFICATE_STORED, stored)]
    earlier = [
        row
        for version, row in sorted(versions.items())
        if version < certificate.version and row.kind == CertificateKind.FINAL
    ]
    if before is None and earlier:
        replaced = earlier[-1]
        superseded = {
            "idempotency_key": key,
            "version": replaced.version,
            "sha256": replaced.sha256,
            "key": replaced.key,
            "superseded_by": certificate.version,
        }
        made.append((EventType.CERTIFICATE_SUPERSEDED, superseded))
    return [
        NewEvent(kind, one.account_id, one.order_id, certificate.stored_at, data)
        for kind, data in made
    ]


async def note_failure(
    connection: AsyncConnection, order: KnownOrder, at: datetime, reason: str
) -> None:
    """Write that a certificate is about to fail, unless it had failed or is no longer owed."""
    this = is_order(order.account_id, order.id)
    owed = and_(
        orders.c.status == order.status, orders.c.certificate_state == CertificateState.OWED
    )
    found = (await connection.execute(select(orders.c.idempotency_key).where(this, owed))).first()
    if found is None:
        return
    data = {"idempotency_key": found.idempotency_key, "status": order.status, "reason": reason}
    failed = NewEvent(EventType.CERTIFICATE_FAILED, order.account_id, order.id, at, data)
    await write_events(connection, [failed])


@dataclass(frozen=True, slots=True)
class KeptEvents:
    """Some events, and which numbers the ledger has: those after ``before`` up to ``newest``."""

    events: Sequence[Event]
    before: int
    newest: int


async def read_events(database: Database, after: int | None, limit: int) -> KeptEvents:
    """Return events after a number, oldest first; with None, from the oldest that is kept."""
    async with database.read() as connection:
        newest = await newest_event(connection)
        oldest = await connection.scalar(select(func.min(events.c.seq)))
        before = newest if oldest is None else oldest - 1
        rows = await connection.execute(
            select(events)
            .where(events.c.seq > (before if after is None else after))
            .order_by(events.c.seq)
            .limit(limit)
        )
        return KeptEvents([known_event(row) for row in rows], before, newest)


async def newest_event(connection: AsyncConnection) -> int:
    """Return the number given last, 0 when none was; also when that event is kept no more."""
    given = text("SELECT seq FROM sqlite_sequence WHERE name = 'events'")
    return await connection.scalar(given) or 0


def known_event(row: Any) -> Event:
    """Return a row of the events table as what it means."""
    return Event(
        seq=row.seq,
        id=row.id,
        type=row.type,
        account_id=row.account_id,
        order_id=row.order_id,
        at=row.at,
        data=json.loads(row.data),
    )
