"""The outbox: for each receiver, the events that are still to be delivered to it.

A delivery is a row from the moment its event is written until the receiver accepts it. Writing
calls are one transaction each, durable when they return.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import (
    ColumnElement,
    and_,
    bindparam,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import insert

from harvester.domain.deliveries import HORIZON
from harvester.domain.events import Event, EventFilter
from harvester.ledger.conditions import is_due
from harvester.ledger.database import Database
from harvester.ledger.events import (
    EVENT_COLUMNS,
    filter_columns,
    read_events,
    read_filters,
    to_event,
)
from harvester.ledger.schema import deliveries, events, receivers

KEPT: Final = timedelta(days=30)
"""How long an event is kept that some receiver did not accept."""

KEPT_WHEN_DELIVERED: Final = timedelta(days=7)
"""How long one is kept that every receiver accepted, for those who read the feed."""

_CHUNK: Final = 500


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event on its way to a receiver; ``attempts`` is 0 when it was never sent to it."""

    event: Event
    attempts: int


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """How an attempt to deliver an event failed, and when the next one is due."""

    attempts: int
    next_attempt_at: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many events a receiver has not accepted yet, and when the oldest of them happened."""

    depth: int
    since: datetime | None


@dataclass(frozen=True, slots=True)
class Undelivered:
    """A receiver that has not accepted an event; ``next_attempt_at`` is None for at once.

    A parked receiver's reason stands in for the failure.
    """

    receiver: str
    attempts: int
    next_attempt_at: datetime | None
    failure: str | None


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many old events were deleted, and how many of them somebody had never accepted."""

    events: int
    undelivered: int


async def register_receivers(database: Database, wanting: Mapping[str, EventFilter]) -> list[str]:
    """Make these the receivers; return those that were removed with all that was undelivered.

    A new one, or one that wants other events than before, gets what happens from now on; what was
    undelivered to it stays so. Idempotent.
    """
    async with database.read() as connection:
        known = await read_filters(connection)
    if known == dict(wanting):
        return []
    async with database.transaction() as tx:
        gone = receivers.c.name.not_in(list(wanting))
        removed = await tx.scalars(delete(receivers).where(gone).returning(receivers.c.name))
        for name, wanted in wanting.items():
            columns = filter_columns(wanted)
            statement = insert(receivers).values(name=name, **columns)
            await tx.execute(statement.on_conflict_do_update(index_elements=["name"], set_=columns))
        return sorted(removed)


async def due_deliveries(
    database: Database, receiver: str, now: datetime, limit: int
) -> list[Delivery]:
    """Return what can be sent to a receiver now, never tried events first.

    Of each order nothing is in it that has to wait for an earlier event which failed. Nothing for
    a parked receiver.
    """
    query = (
        select(*EVENT_COLUMNS, deliveries.c.attempts)
        .select_from(deliveries)
        .join(events, events.c.seq == deliveries.c.seq)
        .join(receivers, receivers.c.name == deliveries.c.receiver)
        .where(
            deliveries.c.receiver == receiver,
            receivers.c.parked_reason.is_(None),
            or_(
                deliveries.c.next_attempt_at.is_(None),
                is_due(deliveries.c.next_attempt_at, now, now + HORIZON),
            ),
            ~_waits_for_earlier(receiver),
        )
        # Never tried before tried often: what is rejected must not stand before what is not.
        .order_by(deliveries.c.attempts, events.c.seq)
        .limit(limit)
    )
    async with database.read() as connection:
        found = (await connection.execute(query)).all()
    return [Delivery(to_event(row[:-1]), row.attempts) for row in found]


async def settle_deliveries(
    database: Database,
    receiver: str,
    delivered: Collection[int],
    failed: Mapping[int, FailedAttempt],
) -> None:
    """Record by number which events a receiver accepted, and which attempts failed. Idempotent."""
    if not delivered and not failed:
        return
    mine = deliveries.c.receiver == receiver
    async with database.transaction() as tx:
        if delivered:
            await tx.execute(delete(deliveries).where(mine, deliveries.c.seq.in_(list(delivered))))
        if failed:
            await tx.execute(
                update(deliveries)
                .where(mine, deliveries.c.seq == bindparam("b_seq"))
                .values(
                    attempts=bindparam("b_attempts"),
                    next_attempt_at=bindparam("b_due"),
                    failure=bindparam("b_failure"),
                ),
                [
                    {
                        "b_seq": seq,
                        "b_attempts": one.attempts,
                        "b_due": one.next_attempt_at,
                        "b_failure": one.reason,
                    }
                    for seq, one in failed.items()
                ],
            )


async def hurry_deliveries(database: Database, receiver: str) -> None:
    """Make everything due that is undelivered to a receiver. Idempotent."""
    mine = update(deliveries).where(deliveries.c.receiver == receiver)
    async with database.transaction() as tx:
        await tx.execute(mine.values(next_attempt_at=None))


async def park_receiver(database: Database, receiver: str, reason: str) -> None:
    """Send the receiver nothing until a person says so. Idempotent."""
    this = update(receivers).where(receivers.c.name == receiver)
    async with database.transaction() as tx:
        await tx.execute(this.values(parked_reason=reason))


async def resend_events(
    database: Database, seqs: Collection[int], names: Collection[str]
) -> list[tuple[int, str]]:
    """Deliver these events again to those of the receivers that want them; return both.

    With no numbers, make due now what is undelivered to these receivers; parked ones are parked no
    more, either way. Idempotent.
    """
    fresh = {"attempts": 0, "next_attempt_at": None, "failure": None}
    async with database.transaction() as tx:
        chosen = receivers.c.name.in_(list(names))
        await tx.execute(update(receivers).where(chosen).values(parked_reason=None))
        if not seqs:
            due = await tx.execute(
                update(deliveries)
                .where(deliveries.c.receiver.in_(list(names)))
                .values(**fresh)
                .returning(deliveries.c.seq, deliveries.c.receiver)
            )
            return sorted((row.seq, row.receiver) for row in due)
        rows = await tx.execute(select(*EVENT_COLUMNS).where(events.c.seq.in_(list(seqs))))
        kept = [to_event(row) for row in rows]
        again = [
            (event.seq, name)
            for name, wanted in (await read_filters(tx)).items()
            if name in names
            for event in kept
            if wanted.wants(event)
        ]
        if again:
            statement = insert(deliveries).on_conflict_do_update(
                index_elements=["receiver", "seq"], set_=fresh
            )
            await tx.execute(
                statement, [{"receiver": name, "seq": seq, **fresh} for seq, name in again]
            )
        return sorted(again)


async def prune_events(database: Database, at: datetime) -> Pruned:
    """Delete events that are older than they are kept. Idempotent."""
    async with database.transaction() as tx:
        undelivered = await tx.scalar(select(func.min(deliveries.c.seq)))
        delivered = events.c.at < at - KEPT_WHEN_DELIVERED
        if undelivered is not None:
            delivered = and_(delivered, events.c.seq < undelivered)
        old = or_(events.c.at < at - KEPT, delivered)
        # Up to a number, so that what is kept has no gaps whatever the clock did meanwhile.
        last = await tx.scalar(select(func.max(events.c.seq)).where(old)) or 0
        missed = await tx.scalar(
            select(func.count(deliveries.c.seq.distinct())).where(deliveries.c.seq <= last)
        )
        gone = await tx.execute(delete(events).where(events.c.seq <= last))
        return Pruned(gone.rowcount, missed or 0)


async def read_backlogs(database: Database) -> Mapping[str, Backlog]:
    """Return the backlog of each registered receiver."""
    query = (
        select(receivers.c.name, func.count(deliveries.c.seq), func.min(events.c.at))
        .select_from(receivers)
        .outerjoin(deliveries, deliveries.c.receiver == receivers.c.name)
        .outerjoin(events, events.c.seq == deliveries.c.seq)
        .group_by(receivers.c.name)
    )
    async with database.read() as connection:
        found = await connection.execute(query)
        return {name: Backlog(depth, since) for name, depth, since in found}


async def list_events(
    database: Database, after: int = 0
) -> AsyncGenerator[tuple[Event, list[Undelivered]], None]:
    """Yield the kept events after a number, oldest first, each with who has not accepted it yet.

    Read a chunk at a time.
    """
    while True:
        found = (await read_events(database, after, _CHUNK)).events
        if not found:
            return
        query = (
            select(
                deliveries.c.seq,
                deliveries.c.receiver,
                deliveries.c.attempts,
                deliveries.c.next_attempt_at,
                func.coalesce(receivers.c.parked_reason, deliveries.c.failure),
            )
            .join(receivers, receivers.c.name == deliveries.c.receiver)
            .where(deliveries.c.seq.between(found[0].seq, found[-1].seq))
            .order_by(deliveries.c.receiver)
        )
        undelivered: dict[int, list[Undelivered]] = {}
        async with database.read() as connection:
            for seq, *columns in await connection.execute(query):
                undelivered.setdefault(seq, []).append(Undelivered(*columns))
        for event in found:
            yield event, undelivered.get(event.seq, [])
        after = found[-1].seq


def _waits_for_earlier(receiver: str) -> ColumnElement[bool]:
    """Tell whether an earlier event of the same order failed and is still undelivered."""
    earlier, failed = events.alias(), deliveries.alias()
    return (
        exists(literal(1))
        .where(
            earlier.c.account_id == events.c.account_id,
            earlier.c.order_id.is_not_distinct_from(events.c.order_id),
            earlier.c.seq < events.c.seq,
            failed.c.seq == earlier.c.seq,
            failed.c.receiver == receiver,
            failed.c.attempts > 0,
        )
        .correlate(events)
    )
