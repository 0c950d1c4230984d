"""Events in the ledger: written in the transaction of the fact they are about, read in order.

With each event a delivery is written for every receiver that wants it; :mod:`.outbox` has those.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from harvester.domain.events import Event, EventFilter, NewEvent
from harvester.ledger.database import Database
from harvester.ledger.schema import deliveries, events, receivers

EVENT_COLUMNS = (
    events.c.seq,
    events.c.id,
    events.c.type,
    events.c.account_id,
    events.c.order_id,
    events.c.at,
    events.c.data,
)
"""What :func:`to_event` reads, in its order."""


@dataclass(frozen=True, slots=True)
class KeptEvents:
    """Some events, and which numbers the ledger has: those after ``before`` up to ``newest``."""

    events: Sequence[Event]
    before: int
    newest: int


async def write_events(tx: AsyncConnection, new: Sequence[NewEvent]) -> None:
    """Write events within a transaction, numbered in this order, each with an id of its own."""
    if not new:
        return
    rows = [
        {
            "id": str(uuid.uuid4()),
            "type": one.type,
            "account_id": one.account_id,
            "order_id": one.order_id,
            "at": one.at,
            "data": json.dumps(one.data, separators=(",", ":")),
        }
        for one in new
    ]
    wanting = await read_filters(tx)
    if not wanting:
        await tx.execute(events.insert(), rows)
        return
    numbers = await tx.scalars(
        events.insert().returning(events.c.seq, sort_by_parameter_order=True), rows
    )
    due = [
        {"receiver": name, "seq": seq, "attempts": 0}
        for seq, one in zip(numbers, new, strict=True)
        for name, wanted in wanting.items()
        if wanted.wants(one)
    ]
    if due:
        await tx.execute(deliveries.insert(), due)


async def read_filters(connection: AsyncConnection) -> dict[str, EventFilter]:
    """Return which events each registered receiver wants, by name."""
    found = await connection.execute(
        select(receivers.c.name, receivers.c.types, receivers.c.accounts)
    )
    return {name: EventFilter(_names(types), _names(accounts)) for name, types, accounts in found}


async def read_events(database: Database, after: int | None, limit: int) -> KeptEvents:
    """Return events after a number, oldest first; with None, from the oldest that is kept."""
    async with database.read() as connection:
        newest = await newest_event(connection)
        oldest = await connection.scalar(select(func.min(events.c.seq)))
        before = newest if oldest is None else oldest - 1
        rows = await connection.execute(
            select(*EVENT_COLUMNS)
            .where(events.c.seq > (before if after is None else after))
            .order_by(events.c.seq)
            .limit(limit)
        )
        return KeptEvents([to_event(row) for row in rows], before, newest)


async def newest_event(connection: AsyncConnection) -> int:
    """Return the number given last, 0 when none was; also when that event is kept no more."""
    given = text("SELECT seq FROM sqlite_sequence WHERE name = 'events'")
    return await connection.scalar(given) or 0


def to_event(row: Sequence[Any]) -> Event:
    """Return a row of :data:`EVENT_COLUMNS` as what it means."""
    seq, event_id, kind, account_id, order_id, at, data = row
    return Event(seq, event_id, kind, account_id, order_id, at, json.loads(data))


def _names(text: str | None) -> frozenset[str] | None:
    return None if text is None else frozenset(json.loads(text))


def filter_columns(wanted: EventFilter) -> dict[str, str | None]:
    """Return a filter as the columns of a receiver that :func:`read_filters` reads."""
    return {"types": _text(wanted.types), "accounts": _text(wanted.accounts)}


def _text(names: Collection[str] | None) -> str | None:
    return None if names is None else json.dumps(sorted(names))
