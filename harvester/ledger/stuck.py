"""Orders that stay in a status for too long: found by the date they entered it, marked once."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import and_, or_, select, update

from harvester.domain.events import EventType, NewEvent
from harvester.domain.instants import rfc3339
from harvester.domain.stuck import Bound, StuckOrder
from harvester.ledger.conditions import is_order
from harvester.ledger.database import Database
from harvester.ledger.events import write_events
from harvester.ledger.schema import accounts, documents, orders

MOST_STUCK: Final = 500
"""Orders that are found at once."""


async def find_stuck(
    database: Database,
    bounds: Mapping[str, Bound],
    now: datetime,
    *,
    unmarked: bool = False,
    most: int = MOST_STUCK,
) -> list[StuckOrder]:
    """Return orders that stay beyond their status's bound, the longest first, ``most`` of them.

    With ``unmarked`` only those that :func:`mark_stuck` has not marked in this status.
    """
    late = [
        and_(orders.c.status == status, orders.c.changed_at < now - bound.after)
        for status, bound in bounds.items()
    ]
    query = (
        select(
            accounts.c.id,
            orders.c.id,
            orders.c.idempotency_key,
            orders.c.status,
            orders.c.changed_at,
            documents.c.document,
        )
        .select_from(orders.join(accounts).join(documents))
        # As every open order has a date, those that ended need not be read.
        .where(orders.c.next_check_at.is_not(None), or_(*late))
        .order_by(orders.c.changed_at)
        .limit(most)
    )
    if unmarked:
        query = query.where(orders.c.stuck_at.is_(None))
    async with database.read() as connection:
        return [
            StuckOrder(*row[:-1], bounds[row.status], json.loads(zlib.decompress(row.document)))
            for row in await connection.execute(query)
        ]


async def mark_stuck(
    database: Database, bounds: Mapping[str, Bound], now: datetime
) -> Sequence[StuckOrder]:
    """Mark open orders beyond their status's bound, each once a status, and write the event.

    Returns those that are newly marked.
    """
    new = await find_stuck(database, bounds, now, unmarked=True)
    if not new:
        return ()
    marked = []
    async with database.transaction() as tx:
        for one in new:
            this = is_order(one.account_id, one.order_id)
            # It may have moved since it was found.
            still = and_(this, orders.c.status == one.status, orders.c.stuck_at.is_(None))
            done = await tx.execute(update(orders).where(still).values(stuck_at=now))
            if done.rowcount:
                marked.append(one)
        await write_events(tx, [_event(one, now) for one in marked])
    return marked


def _event(one: StuckOrder, now: datetime) -> NewEvent:
    data = {
        "idempotency_key": one.idempotency_key,
        "status": one.status,
        "since": rfc3339(one.since),
        "bound_seconds": round(one.bound.after.total_seconds()),
        "basis": one.bound.basis,
    }
    return NewEvent(EventType.ORDER_STUCK, one.account_id, one.order_id, now, data)
