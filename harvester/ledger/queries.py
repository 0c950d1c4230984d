"""What people and other programs ask the ledger: orders, one order whole, what went wrong."""

from __future__ import annotations

import json
import zlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import Select, and_, not_, or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from harvester.domain.certificates import Certificate
from harvester.domain.orders import EVERYTHING, OrderFilter
from harvester.ledger.certificates import (
    CERTIFICATE_COLUMNS,
    newest_version,
    to_certificate,
)
from harvester.ledger.conditions import conditions
from harvester.ledger.database import Database
from harvester.ledger.schema import (
    accounts,
    anomalies,
    certificates,
    documents,
    folders,
    moves,
    orders,
    rejected_orders,
    transitions,
)

_CHUNK = 1000

MOST_SHOWN: Final = 100
"""Anomalies and rejected orders that are returned at once, the newest."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a listing of orders goes on: after this one, newest first."""

    created_at: datetime
    account_id: str
    order_id: str


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
    not_found_since: datetime | None
    certificate_state: str | None
    attempts: int
    failure_reason: str | None
    certificate: Certificate | None


@dataclass(frozen=True, slots=True)
class Transition:
    """A step of an order's chain; ``before`` is None for its first."""

    seq: int
    before: str | None
    after: str
    observed_at: datetime
    source: str


@dataclass(frozen=True, slots=True)
class CountedAnomaly:
    """An anomaly of an order, how often it was seen, first and last."""

    account_id: str
    order_id: str
    kind: str
    recorded: str
    served: str
    first_at: datetime
    last_at: datetime
    count: int


@dataclass(frozen=True, slots=True)
class KeptRejection:
    """Something in an account's listing that is no readable order, how often it was seen."""

    account_id: str
    reference: str
    reason: str
    first_at: datetime
    last_at: datetime
    count: int


@dataclass(frozen=True, slots=True)
class OrderDetail:
    """One order whole: its row, its chain, its certificate versions, its anomalies.

    ``document`` is the order as Lune last served it, without the end user's e-mail address.
    """

    order: OrderRow
    transitions: Sequence[Transition]
    certificates: Sequence[Certificate]
    anomalies: Sequence[CountedAnomaly]
    document: Mapping[str, Any]


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
    orders.c.not_found_since,
    orders.c.certificate_state,
    orders.c.attempts,
    orders.c.failure_reason,
    *CERTIFICATE_COLUMNS,
)
_ANOMALIES = (
    select(
        accounts.c.id,
        orders.c.id,
        anomalies.c.kind,
        anomalies.c.recorded,
        anomalies.c.served,
        anomalies.c.first_at,
        anomalies.c.last_at,
        anomalies.c.count,
    )
    .select_from(anomalies.join(orders).join(accounts))
    .order_by(anomalies.c.last_at.desc())
)


async def stream_orders(
    database: Database,
    scope: OrderFilter = EVERYTHING,
    limit: int | None = None,
    after: Cursor | None = None,
) -> AsyncGenerator[OrderRow, None]:
    """Yield orders, newest first, in constant memory; with ``after``, those beyond that order.

    Read a chunk at a time, each from its own short view: a reader that is slow to consume must
    not hold the write-ahead log back.
    """
    left = limit
    while left is None or left > 0:
        size = _CHUNK if left is None else min(_CHUNK, left)
        query = _with_newest_certificate(scope)
        if after is not None:
            # Written so that the index on created_at says where to go on.
            same = and_(
                orders.c.created_at == after.created_at,
                tuple_(accounts.c.id, orders.c.id) <= tuple_(after.account_id, after.order_id),
            )
            query = query.where(orders.c.created_at <= after.created_at, not_(same))
        query = query.order_by(orders.c.created_at.desc(), accounts.c.id, orders.c.id).limit(size)
        async with database.read() as connection:
            rows = (await connection.execute(query)).all()
        for row in rows:
            yield _order_row(row)
        if len(rows) < size:
            return
        after = Cursor(rows[-1].created_at, rows[-1].account_id, rows[-1].id)
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
    async with database.read() as connection:
        return [
            OrderDetail(
                order=_order_row(row),
                transitions=await _transitions(connection, key),
                certificates=await _certificates(connection, key),
                anomalies=await _anomalies(connection, key),
                document=json.loads(zlib.decompress(document)),
            )
            for *row, key, document in (await connection.execute(query)).all()
        ]


async def newest_anomalies(database: Database, limit: int = MOST_SHOWN) -> list[CountedAnomaly]:
    """Return the anomalies that were seen last, of all orders."""
    async with database.read() as connection:
        return [CountedAnomaly(*row) for row in await connection.execute(_ANOMALIES.limit(limit))]


async def newest_rejections(database: Database, limit: int = MOST_SHOWN) -> list[KeptRejection]:
    """Return the rejected orders that were seen last, of all accounts."""
    query = (
        select(
            rejected_orders.c.account_id,
            rejected_orders.c.reference,
            rejected_orders.c.reason,
            rejected_orders.c.first_at,
            rejected_orders.c.last_at,
            rejected_orders.c.count,
        )
        .order_by(rejected_orders.c.last_at.desc())
        .limit(limit)
    )
    async with database.read() as connection:
        return [KeptRejection(*row) for row in await connection.execute(query)]


async def _transitions(connection: AsyncConnection, order_key: int) -> list[Transition]:
    query = (
        select(
            transitions.c.seq,
            moves.c.from_status,
            moves.c.to_status,
            transitions.c.observed_at,
            moves.c.source,
        )
        .join_from(transitions, moves)
        .where(transitions.c.order_key == order_key)
        .order_by(transitions.c.seq)
    )
    return [Transition(*row) for row in await connection.execute(query)]


async def _certificates(connection: AsyncConnection, order_key: int) -> list[Certificate]:
    query = (
        select(*CERTIFICATE_COLUMNS)
        .join_from(certificates, folders)
        .where(certificates.c.order_key == order_key)
        .order_by(certificates.c.version)
    )
    return [to_certificate(row) for row in await connection.execute(query)]


async def _anomalies(connection: AsyncConnection, order_key: int) -> list[CountedAnomaly]:
    query = _ANOMALIES.where(anomalies.c.order_key == order_key)
    oldest_first = query.order_by(None).order_by(anomalies.c.first_at)
    return [CountedAnomaly(*row) for row in await connection.execute(oldest_first)]


def _with_newest_certificate(scope: OrderFilter) -> Select[Any]:
    newest = and_(
        certificates.c.order_key == orders.c.key, certificates.c.version == newest_version()
    )
    joined = orders.join(accounts).outerjoin(certificates, newest).outerjoin(folders)
    return select(*_LISTED).select_from(joined).where(*conditions(scope))


def _order_row(row: Sequence[Any]) -> OrderRow:
    *own, version, kind, path, sha256, size, stored_at = row
    own[_METADATA] = json.loads(own[_METADATA])
    certificate = None
    if version is not None:
        certificate = to_certificate((version, kind, path, sha256, size, stored_at))
    return OrderRow._make((*own, certificate))
