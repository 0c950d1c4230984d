"""Orders that stay in a status for too long: found by the date they entered it, told once."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import and_, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from harvester.domain.events import EventType, NewEvent
from harvester.domain.stuck import Bound, StuckOrder
from harvester.ledger.database import Database
from harvester.ledger.events import write_events
from harvester.ledger.keys import is_order
from harvester.ledger.schema import accounts, documents, orders

MOST = 500
"""Orders that are told of at once."""


class StuckRecords:
    """The part of :class:`harvester.domain.ledger.Ledger` about orders that do not move."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def announce_stuck(
        self, bounds: Mapping[str, Bound], now: datetime
    ) -> Sequence[StuckOrder]:
        """See the port."""
        new = await find_stuck(self._database, bounds, now, untold=True)
        if not new:
            return ()

        async def work(connection: AsyncConnection) -> Sequence[StuckOrder]:
            told = []
            for one in new:
                this = is_order(one.account_id, one.order_id)
                # It may have moved since it was found.
                still = and_(this, orders.c.status == one.status, orders.c.stuck_at.is_(None))
                done = await connection.execute(update(orders).where(still).values(stuck_at=now))
                if done.rowcount:
                    told.append(one)
            await write_events(connection, [_event(one, now) for one in told])
            return told

        return await self._database.write(work)


async def find_stuck(
    database: Database,
    bounds: Mapping[str, Bound],
    now: datetime,
    *,
    untold: bool = False,
    most: int = MOST,
) -> list[StuckOrder]:
    """Return orders that stay beyond their status's bound, the longest first, ``most`` of them."""
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
    if untold:
        query = query.where(orders.c.stuck_at.is_(None))
    async with database.read() as connection:
        return [
            StuckOrder(*row[:-1], bounds[row.status], json.loads(zlib.decompress(row.document)))
            for row in await connection.execute(query)
        ]


def _event(one: StuckOrder, now: datetime) -> NewEvent:
    data = {
        "idempotency_key": one.idempotency_key,
        "status": one.status,
        "since": one.since.isoformat().replace("+00:00", "Z"),
        "bound_seconds": round(one.bound.after.total_seconds()),
        "basis": one.bound.basis,
    }
    return NewEvent(EventType.ORDER_STUCK, one.account_id, one.order_id, now, data)
