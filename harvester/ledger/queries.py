"""What people and other programs ask the ledger: orders, one order whole, the state of things."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Select, and_, func, not_, or_, select, tuple_

from harvester.domain.orders import CertificateKind, StoredFile
from harvester.domain.records import EVERYTHING, KnownCertificate, OrderFilter
from harvester.ledger.census import take_census
from harvester.ledger.certificates import known_certificate, newest_version
from harvester.ledger.conditions import conditions
from harvester.ledger.database import Database
from harvester.ledger.schema import (
    ARCHIVE_KEY,
    accounts,
    anomalies,
    certificates,
    documents,
    folders,
    moves,
    orders,
    set_aside,
    transitions,
)

_CHUNK = 1000
_MOST_SHOWN = 100


class OrderRow(NamedTuple):
    """An order as the ledger has it, with its newest certificate.

    A tuple, since a list has millions: it is made in a seventh of the time.
    """

    account_id: str
    id: str
    idempotency_key: str | None
    status: str
    quantity: str | None
    metadata: Mapping[str, Any]
    created_at: datetime
    first_seen_at: datetime
    last_seen_at: datetime
    next_check_at: datetime | None
    mode: str
    beneficiary: str | None
    missing_since: datetime | None
    certificate_state: str | None
    attempts: int
    failure_reason: str | None
    certificate: KnownCertificate | None


@dataclass(frozen=True, slots=True)
class OrderDetail:
    """One order whole: its row, its chain, its certificate versions, what was odd."""

    order: OrderRow
    transitions: Sequence[Any]
    certificates: Sequence[KnownCertificate]
    anomalies: Sequence[Any]
    document: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Summary:
    """The state of things; of what is odd, the newest hundred."""

    by_status: Mapping[str, int]
    by_certificate: Mapping[str, int]
    accounts: Sequence[Any]
    anomalies: Sequence[Any]
    set_aside: Sequence[Any]
    overdue: int
    next_wake_at: datetime | None


_METADATA = OrderRow._fields.index("metadata")
_LISTED = (
    # First OrderRow's fields, in their order; its certificate's are the last six.
    accounts.c.id.label("account_id"),
    orders.c.id,
    orders.c.idempotency_key,
    orders.c.status,
    orders.c.quantity,
    orders.c.metadata,
    orders.c.created_at,
    orders.c.first_seen_at,
    orders.c.last_seen_at,
    orders.c.next_check_at,
    accounts.c.mode,
    orders.c.beneficiary,
    orders.c.missing_since,
    orders.c.certificate_state,
    orders.c.attempts,
    orders.c.failure_reason,
    certificates.c.version,
    certificates.c.kind,
    ARCHIVE_KEY,
    certificates.c.sha256,
    certificates.c.size,
    certificates.c.stored_at,
)


_PARTS = (
    (
        select(
            transitions.c.seq,
            moves.c.from_status,
            moves.c.to_status,
            transitions.c.observed_at,
            moves.c.source,
        ).join_from(transitions, moves),
        transitions.c.order_key,
        transitions.c.seq,
    ),
    (
        select(certificates, ARCHIVE_KEY).join_from(certificates, folders),
        certificates.c.order_key,
        certificates.c.version,
    ),
    (select(anomalies), anomalies.c.order_key, anomalies.c.first_at),
)


def _with_newest_certificate(scope: OrderFilter) -> Select[Any]:
    newest = and_(
        certificates.c.order_key == orders.c.key, certificates.c.version == newest_version()
    )
    told = orders.join(accounts).outerjoin(certificates, newest).outerjoin(folders)
    return select(*_LISTED).select_from(told).where(*conditions(scope))


async def stream_orders(
    database: Database, scope: OrderFilter = EVERYTHING, limit: int | None = None
) -> AsyncIterator[OrderRow]:
    """Yield orders, newest first, in constant memory.

    Read a chunk at a time, each from its own short view: a reader that is slow to consume must
    not hold the write-ahead log back.
    """
    place: tuple[datetime, str, str] | None = None
    left = limit
    while left is None or left > 0:
        size = _CHUNK if left is None else min(_CHUNK, left)
        query = _with_newest_certificate(scope)
        if place is not None:
            created_at, account_id, order_id = place
            # Written so that the index on created_at says where to go on.
            same = and_(
                orders.c.created_at == created_at,
                tuple_(accounts.c.id, orders.c.id) <= tuple_(account_id, order_id),
            )
            query = query.where(orders.c.created_at <= created_at, not_(same))
        query = query.order_by(orders.c.created_at.desc(), accounts.c.id, orders.c.id).limit(size)
        async with database.read() as connection:
            rows = (await connection.execute(query)).all()
        for row in rows:
            yield _order_row(row)
        if len(rows) < size:
            return
        place = (rows[-1].created_at, rows[-1].account_id, rows[-1].id)
        left = None if left is None else left - len(rows)


async def find_orders(
    database: Database, reference: str, account_id: str | None = None
) -> list[OrderDetail]:
    """Return the orders with this id or idempotency key, whole; several accounts may have one."""
    query = (
        _with_newest_certificate(EVERYTHING)
        .add_columns(orders.c.key, documents.c.document)
        .join(documents, documents.c.order_key == orders.c.key)
        .where(or_(orders.c.id == reference, orders.c.idempotency_key == reference))
    )
    if account_id is not None:
        query = query.where(accounts.c.id == account_id)
    found = []
    async with database.read() as connection:
        for *row, key, document in await connection.execute(query):
            chain, versions, odd = [
                (await connection.execute(part.where(column == key).order_by(sort))).all()
                for part, column, sort in _PARTS
            ]
            found.append(
                OrderDetail(
                    order=_order_row(row),
                    transitions=chain,
                    certificates=[known_certificate(version) for version in versions],
                    anomalies=odd,
                    document=json.loads(zlib.decompress(document)),
                )
            )
    return found


async def summarise(database: Database, now: datetime) -> Summary:
    """Count what there is and what is due."""
    async with database.read() as connection:
        by_status, by_certificate = Counter[str](), Counter[str]()
        for standing in await take_census(connection):
            by_status[standing.status] += standing.count
            by_certificate[standing.certificate_state or "none"] += standing.count
        next_look = await connection.scalar(
            select(func.min(orders.c.next_check_at)).where(orders.c.next_check_at.is_not(None))
        )
        known = (
            await connection.execute(
                select(accounts).order_by(accounts.c.is_default.desc(), accounts.c.name)
            )
        ).all()
        wakes = [at for at in (next_look, *(row.next_sweep_at for row in known)) if at]
        return Summary(
            by_status=by_status,
            by_certificate=by_certificate,
            accounts=known,
            anomalies=(
                await connection.execute(
                    select(anomalies).order_by(anomalies.c.last_at.desc()).limit(_MOST_SHOWN)
                )
            ).all(),
            set_aside=(
                await connection.execute(
                    select(set_aside).order_by(set_aside.c.last_at.desc()).limit(_MOST_SHOWN)
                )
            ).all(),
            overdue=await connection.scalar(
                select(func.count()).where(orders.c.next_check_at <= now)
            )
            or 0,
            next_wake_at=min(wakes, default=None),
        )


def _order_row(row: Any) -> OrderRow:
    *own, version, kind, key, sha256, size, stored_at = row
    own[_METADATA] = json.loads(own[_METADATA])
    certificate = None
    if version is not None:
        file = StoredFile(key, sha256, size)
        certificate = KnownCertificate(version, CertificateKind(kind), file, stored_at)
    return OrderRow._make((*own, certificate))
