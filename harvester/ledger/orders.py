"""Orders in the ledger: what each answer of Lune's changes, written down in one transaction.

An answer is held against what is known first and only the differences are written: most pages
change nothing. What an observation means is decided in :mod:`harvester.domain.decisions`.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, func, literal, select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from harvester.domain.decisions import KnownOrder, OrderUpdate, decide, shared_check
from harvester.domain.errors import LedgerDamaged
from harvester.domain.events import status_changed
from harvester.domain.lifecycle import Anomaly, AnomalyKind, Moved
from harvester.domain.orders import (
    Account,
    CertificateState,
    Order,
    OrderPage,
    RejectedOrder,
    Source,
)
from harvester.domain.schedule import Schedule
from harvester.ledger.accounts import SweepMark
from harvester.ledger.conditions import account_key, is_order
from harvester.ledger.database import Database
from harvester.ledger.events import write_events
from harvester.ledger.hints import read_hints, settle_hint
from harvester.ledger.schema import (
    Instant,
    accounts,
    anomalies,
    documents,
    orders,
    rejected_orders,
)
from harvester.ledger.transitions import NewTransition, append_transitions

_DIGEST_BYTES = 8
"""Enough to notice that a document changed; nothing is trusted on it."""

_OWES_NOTHING: dict[str, Any] = {
    "certificate_state": None,
    "owed_since": None,
    "attempts": 0,
    "tried_at": None,
    "failure_reason": None,
}


@dataclass(frozen=True, slots=True)
class ObservedMove:
    """A transition as it was recorded: a webhook is its source where one asked for the order."""

    order_id: str
    move: Moved
    source: Source


@dataclass(frozen=True, slots=True)
class Recorded:
    """What one recorded answer changed.

    ``known_ground`` says that every order on it was known when the listing was last read down to
    its end; ``position`` is the position of its first order, None while that cannot be told.
    """

    seen: int
    new: int
    moves: Sequence[ObservedMove]
    anomalies: Sequence[tuple[str, Anomaly]]
    rejected: Sequence[RejectedOrder]
    known_ground: bool
    oldest_created_at: datetime | None
    position: int | None


@dataclass(frozen=True, slots=True)
class _Row:
    """An order's row, as far as recording needs it."""

    key: int
    known: KnownOrder
    document_digest: bytes
    first_sweep: int


async def record_orders(
    database: Database,
    account: Account,
    page: OrderPage,
    source: Source,
    at: datetime,
    schedule: Schedule,
    *,
    sweep: SweepMark | None = None,
    position: int | None = None,
) -> Recorded:
    """Record one answer: new orders, moves, anomalies, what is owed, when to check next.

    ``position`` is the position of the page's first order, as far as the caller knows. Idempotent:
    the same answer again changes no more than when its orders were seen.
    """
    served = {order.id: order for order in page.orders}  # an id twice on a page is one order
    async with database.transaction() as tx:
        rows = await _read_rows(tx, account, served)
        hints = await read_hints(tx, account.id, served)
        first = await _first_position(tx, account, served, rows, sweep, position)
        answer = [(rows[one.id].known if one.id in rows else None, one) for one in served.values()]
        shared = shared_check(answer, at, schedule)
        updates = [
            decide(
                known,
                order,
                at,
                schedule,
                hint=hints.get(order.id),
                position=None if first is None else first - number,
                shared_check_at=shared,
            )
            for number, (known, order) in enumerate(answer)
        ]
        keys = {order_id: row.key for order_id, row in rows.items()}
        new = [one for one in updates if one.order.id not in rows]
        keys |= await _insert(tx, account, new, at, sweep)
        await _update_known(tx, rows, updates, at)
        for order_id in hints:
            again = next(one.hint_due_at for one in updates if one.order.id == order_id)
            await settle_hint(tx, account.id, order_id, again)
        moved = [
            ObservedMove(
                one.order.id, one.move, Source.WEBHOOK if one.order.id in hints else source
            )
            for one in updates
            if one.move is not None
        ]
        await append_transitions(
            tx, [NewTransition(keys[one.order_id], one.move, one.source) for one in moved]
        )
        found = [(one.order.id, one.anomaly) for one in updates if one.anomaly is not None]
        for order_id, anomaly in found:
            await _count_anomaly(tx, keys[order_id], anomaly)
        await _replace_rejected(tx, account, served, page.rejected, at)
        changed = [status_changed(account.id, served[one.order_id], one.move) for one in moved]
        await write_events(tx, changed)
    joined = 0 if sweep is None else sweep.joined
    return Recorded(
        seen=len(served),
        new=len(new),
        moves=moved,
        anomalies=found,
        rejected=page.rejected,
        # Of a page that cannot be read nothing is known.
        known_ground=bool(served)
        and all(one in rows and rows[one].first_sweep <= joined for one in served),
        oldest_created_at=min((order.created_at for order in served.values()), default=None),
        position=first,
    )


async def record_not_found(
    database: Database, account_id: str, order_id: str, at: datetime, due: datetime
) -> None:
    """Record that Lune answered 404 for a known order; its status stays. Idempotent but counted."""
    this = select(orders.c.key, orders.c.status).where(is_order(account_id, order_id))
    async with database.transaction() as tx:
        known = (await tx.execute(this)).first()
        if known is None:
            return
        since = func.coalesce(orders.c.not_found_since, literal(at, Instant))
        await tx.execute(
            update(orders)
            .where(orders.c.key == known.key)
            .values(not_found_since=since, next_check_at=due)
        )
        anomaly = Anomaly(known.status, "", AnomalyKind.NOT_FOUND, at)
        await _count_anomaly(tx, known.key, anomaly)


async def _read_rows(
    tx: AsyncConnection, account: Account, order_ids: Iterable[str]
) -> dict[str, _Row]:
    found = await tx.execute(
        select(
            orders.c.id,
            orders.c.key,
            orders.c.document_digest,
            orders.c.first_sweep,
            orders.c.status,
            orders.c.changed_at,
            orders.c.first_seen_at,
            orders.c.next_check_at,
            orders.c.certificate_state,
            orders.c.position,
            orders.c.not_found_since,
        ).where(
            orders.c.account_key == account_key(account.id),
            orders.c.id.in_(list(order_ids)),
        )
    )
    rows = {}
    for row in found:
        state = None if row.certificate_state is None else CertificateState(row.certificate_state)
        known = KnownOrder(
            status=row.status,
            changed_at=row.changed_at,
            first_seen_at=row.first_seen_at,
            next_check_at=row.next_check_at,
            certificate_state=state,
            position=row.position,
            not_found_since=row.not_found_since,
        )
        rows[row.id] = _Row(row.key, known, row.document_digest, row.first_sweep)
    return rows


async def _first_position(
    tx: AsyncConnection,
    account: Account,
    order_ids: Iterable[str],
    rows: Mapping[str, _Row],
    sweep: SweepMark | None,
    given: int | None,
) -> int | None:
    """Find the position of the answer's first order by those on it whose position is known."""
    for number, order_id in enumerate(order_ids):
        if order_id in rows and (known := rows[order_id].known.position) is not None:
            return known + number
    if given is None and sweep is not None:
        placed = select(orders.c.key).where(
            orders.c.account_key == account_key(account.id), orders.c.position.is_not(None)
        )
        if await tx.scalar(placed.limit(1)) is None:
            return 0  # the first page ever: older orders get positions below
    return given


async def _insert(
    tx: AsyncConnection,
    account: Account,
    new: Sequence[OrderUpdate],
    at: datetime,
    sweep: SweepMark | None,
) -> dict[str, int]:
    """Insert orders that were not seen before; return their keys by id."""
    if not new:
        return {}
    this = select(accounts.c.key, accounts.c.sweep_number).where(accounts.c.id == account.id)
    # Without an account the ledger's rules refuse its orders.
    owner, number = (await tx.execute(this)).first() or (None, 0)
    shared = {
        "account_key": owner,
        "first_seen_at": at,
        # Found apart from a sweep: no sweep up to now has read the listing down to it.
        "first_sweep": number + 1 if sweep is None else sweep.number,
        "beneficiary": account.beneficiary,
    }
    rows = [
        shared
        | _OWES_NOTHING
        | {"id": one.order.id, "created_at": one.order.created_at}
        | _columns(one, at)
        for one in new
    ]
    made = await tx.execute(orders.insert().returning(orders.c.id, orders.c.key), rows)
    keys = {row.id: row.key for row in made}
    deflated = [{"order_key": keys[one.order.id], "document": _deflated(one.order)} for one in new]
    await tx.execute(documents.insert(), deflated)
    return keys


async def _update_known(
    tx: AsyncConnection, rows: Mapping[str, _Row], updates: Iterable[OrderUpdate], at: datetime
) -> None:
    still = []
    for one in updates:
        row = rows.get(one.order.id)
        if row is None:
            continue
        if one.differs or row.document_digest != _digest(one.order):
            await _update(tx, row, one, at)
        else:
            still.append({"b_key": row.key, "b_due": one.next_check_at})
    if still:
        await tx.execute(
            update(orders)
            .where(orders.c.key == bindparam("b_key"))
            .values(last_seen_at=at, next_check_at=bindparam("b_due")),
            still,
        )


async def _update(tx: AsyncConnection, row: _Row, one: OrderUpdate, at: datetime) -> None:
    # Guarded by the status that was judged: a row that moved in between is not overwritten.
    result = await tx.execute(
        update(orders)
        .where(orders.c.key == row.key, orders.c.status == row.known.status)
        .values(**_columns(one, at))
    )
    if result.rowcount != 1:
        raise LedgerDamaged(f"order {one.order.id} changed while it was being recorded")
    await tx.execute(
        update(documents)
        .where(documents.c.order_key == row.key)
        .values(document=_deflated(one.order))
    )


def _columns(one: OrderUpdate, at: datetime) -> dict[str, Any]:
    """Return the columns of the orders table that an update sets."""
    order = one.order
    columns: dict[str, Any] = {
        "idempotency_key": order.idempotency_key,
        "quantity": order.quantity,
        "metadata": _as_json(order.metadata).decode(),
        "document_digest": _digest(order),
        "status": one.status,
        "changed_at": one.changed_at,
        "last_seen_at": at,
        "next_check_at": one.next_check_at,
        "not_found_since": None,
        "position": one.position,
    }
    if one.move is not None:
        columns["stuck_at"] = None  # in its new status it may get stuck again
    if one.certificate is not None:
        columns |= _OWES_NOTHING | {
            "certificate_state": one.certificate.state,
            "owed_since": one.certificate.owed_since,
        }
    return columns


async def _count_anomaly(tx: AsyncConnection, order_key: int, anomaly: Anomaly) -> None:
    """Record an anomaly, or count it once more: a status served wrongly for a year is one row."""
    statement = insert(anomalies).values(
        order_key=order_key,
        kind=anomaly.kind,
        recorded=anomaly.recorded,
        served=anomaly.served,
        first_at=anomaly.at,
        last_at=anomaly.at,
        count=1,
    )
    await tx.execute(
        statement.on_conflict_do_update(
            index_elements=["order_key", "kind", "recorded", "served"],
            set_={"last_at": anomaly.at, "count": anomalies.c.count + 1},
        )
    )


async def _replace_rejected(
    tx: AsyncConnection,
    account: Account,
    readable: Collection[str],
    rejected: Sequence[RejectedOrder],
    at: datetime,
) -> None:
    """Keep what could not be read, until it can be."""
    mine = rejected_orders.c.account_id == account.id
    await tx.execute(
        rejected_orders.delete().where(mine, rejected_orders.c.reference.in_(list(readable)))
    )
    for one in rejected:
        latest = {"reason": one.reason, "document": one.document, "last_at": at}
        statement = insert(rejected_orders).values(
            account_id=account.id, reference=one.reference, first_at=at, count=1, **latest
        )
        await tx.execute(
            statement.on_conflict_do_update(
                index_elements=["account_id", "reference"],
                set_={**latest, "count": rejected_orders.c.count + 1},
            )
        )


def _deflated(order: Order) -> bytes:
    return zlib.compress(_as_json(order.document))


def _digest(order: Order) -> bytes:
    return hashlib.sha256(_as_json(order.document)).digest()[:_DIGEST_BYTES]


def _as_json(value: Mapping[str, Any]) -> bytes:
    # Decimal values (numbers Lune documents as strings) keep their digits.
    return json.dumps(value, default=str, ensure_ascii=False, separators=(",", ":")).encode()
