"""The outbox: where each receiver stands in the events, and what it did not take."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, delete, exists, func, literal, or_, select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from harvester.domain.deliveries import HORIZON, Pending, Pruned, Settlement, Waiting
from harvester.domain.events import Event, EventFilter
from harvester.ledger.conditions import is_due
from harvester.ledger.database import Database
from harvester.ledger.events import known_event, newest_event, read_events
from harvester.ledger.schema import deliveries, events, receivers

KEPT: Final = timedelta(days=30)
"""How long an event is kept that somebody did not take."""

KEPT_WHEN_TAKEN: Final = timedelta(days=7)
"""How long one is kept that every receiver took, for those who read the feed."""

_CHUNK: Final = 500


class SqlOutbox:
    """The :class:`harvester.domain.deliveries.Outbox` on one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def register_receivers(self, names: Collection[str]) -> list[str]:
        """See the port."""
        async with self._database.read() as connection:
            known = set(await connection.scalars(select(receivers.c.name)))
        if known == set(names):
            return []

        async def work(connection: AsyncConnection) -> list[str]:
            gone = receivers.c.name.not_in(list(names))
            dropped = await connection.scalars(delete(receivers).where(gone).returning(receivers))
            newest = await newest_event(connection)
            for name in names:
                statement = insert(receivers).values(name=name, cursor=newest)
                await connection.execute(statement.on_conflict_do_nothing())
            return sorted(dropped)

        return await self._database.write(work)

    async def pending(
        self, receiver: str, wanted: EventFilter, now: datetime, limit: int
    ) -> Pending | None:
        """See the port."""
        async with self._database.read() as connection:
            this = select(receivers).where(receivers.c.name == receiver)
            row = (await connection.execute(this)).first()
            if row is None or row.parked_reason is not None:
                return None
            newest = await newest_event(connection)
            fresh = await connection.execute(
                select(events, _is_blocked(receiver).label("blocked"))
                .where(events.c.seq > row.cursor, *_wanted(wanted))
                .order_by(events.c.seq)
                .limit(limit)
            )
            beyond = [Waiting(known_event(one), blocked=bool(one.blocked)) for one in fresh]
            queued = await connection.execute(
                select(events, deliveries.c.attempts)
                .join(deliveries, deliveries.c.seq == events.c.seq)
                .where(
                    deliveries.c.receiver == receiver,
                    is_due(deliveries.c.next_try_at, now, now + HORIZON),
                    ~_is_blocked(receiver),
                )
                .order_by(deliveries.c.attempts, events.c.seq)
                .limit(limit)
            )
            waiting = [Waiting(known_event(one), one.attempts, queued=True) for one in queued]
        reached = beyond[-1].event.seq if len(beyond) == limit else newest
        # Never tried before tried often: what cannot be taken must not stand before what can.
        first = sorted([*beyond, *waiting], key=lambda one: (one.attempts, one.event.seq))
        return Pending(first, row.cursor, reached)

    async def settle(self, receiver: str, settlement: Settlement, at: datetime) -> None:
        """See the port."""
        rows: list[dict[str, Any]] = [
            {"receiver": receiver, "seq": seq, "attempts": 0, "next_try_at": at, "failure": None}
            for seq in settlement.queued
        ]
        rows += [
            {
                "receiver": receiver,
                "seq": seq,
                "attempts": failure.attempts,
                "next_try_at": failure.next_try_at,
                "failure": failure.reason,
            }
            for seq, failure in settlement.failed.items()
        ]
        mine = deliveries.c.receiver == receiver

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(
                update(receivers)
                .where(receivers.c.name == receiver, receivers.c.cursor < settlement.cursor)
                .values(cursor=settlement.cursor)
            )
            if settlement.taken:
                await connection.execute(
                    delete(deliveries).where(mine, deliveries.c.seq.in_(settlement.taken))
                )
            await _queue(connection, rows)

        await self._database.write(work)

    async def hurry(self, receiver: str, at: datetime) -> None:
        """See the port."""

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(
                update(deliveries).where(deliveries.c.receiver == receiver).values(next_try_at=at)
            )

        await self._database.write(work)

    async def park_receiver(self, receiver: str, reason: str) -> None:
        """See the port."""
        this = update(receivers).where(receivers.c.name == receiver)

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(this.values(parked_reason=reason))

        await self._database.write(work)

    async def resend(
        self, seqs: Sequence[int], wanting: Mapping[str, EventFilter], at: datetime
    ) -> list[tuple[int, str]]:
        """See the port."""

        async def work(connection: AsyncConnection) -> list[tuple[int, str]]:
            these = select(receivers).where(receivers.c.name.in_(list(wanting)))
            found = (await connection.execute(these)).all()
            wake = update(receivers).where(receivers.c.name.in_([row.name for row in found]))
            await connection.execute(wake.values(parked_reason=None))
            if not seqs:
                mine = deliveries.c.receiver.in_([row.name for row in found])
                due = await connection.execute(
                    update(deliveries)
                    .where(mine)
                    .values(next_try_at=at, attempts=0)
                    .returning(deliveries.c.seq, deliveries.c.receiver)
                )
                return sorted((row.seq, row.receiver) for row in due)
            again = [
                (event.seq, row.name)
                for row in found
                for event in await _chosen(connection, seqs, row.cursor)
                if wanting[row.name].wants(event)
            ]
            fresh = {"attempts": 0, "next_try_at": at, "failure": None}
            await _queue(
                connection, [{"receiver": name, "seq": seq} | fresh for seq, name in again]
            )
            return sorted(again)

        return await self._database.write(work)

    async def prune(self, at: datetime) -> Pruned:
        """See the port."""

        async def work(connection: AsyncConnection) -> Pruned:
            waiting = await connection.scalar(select(func.min(deliveries.c.seq)))
            cursor = await connection.scalar(select(func.min(receivers.c.cursor)))
            newest = await newest_event(connection)
            taken = min(
                newest if cursor is None else cursor, newest if waiting is None else waiting - 1
            )
            old = or_(
                events.c.at < at - KEPT,
                and_(events.c.at < at - KEPT_WHEN_TAKEN, events.c.seq <= taken),
            )
            # Up to a number, so that what is kept has no gaps whatever the clock did meanwhile.
            last = await connection.scalar(select(func.max(events.c.seq)).where(old)) or 0
            missed = await connection.scalar(
                select(func.count(deliveries.c.seq.distinct())).where(deliveries.c.seq <= last)
            )
            if cursor is not None and cursor < last:
                beyond = select(func.count()).where(events.c.seq > cursor, events.c.seq <= last)
                missed = (missed or 0) + (await connection.scalar(beyond) or 0)
            gone = await connection.execute(delete(events).where(events.c.seq <= last))
            return Pruned(gone.rowcount, missed or 0)

        return await self._database.write(work)


async def _queue(connection: AsyncConnection, rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        return
    # An event may have been deleted meanwhile: it is too old to be told.
    kept = set(
        await connection.scalars(
            select(events.c.seq).where(events.c.seq.in_([row["seq"] for row in rows]))
        )
    )
    statement = insert(deliveries)
    changed = {name: statement.excluded[name] for name in ("attempts", "next_try_at", "failure")}
    rows = [row for row in rows if row["seq"] in kept]
    if rows:
        await connection.execute(
            statement.on_conflict_do_update(index_elements=["receiver", "seq"], set_=changed), rows
        )


async def _chosen(connection: AsyncConnection, seqs: Sequence[int], cursor: int) -> list[Event]:
    """Return these events up to a cursor; those beyond it are sent anyway."""
    rows = await connection.execute(
        select(events).where(events.c.seq.in_(list(seqs)), events.c.seq <= cursor)
    )
    return [known_event(row) for row in rows]


def _wanted(wanted: EventFilter) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if wanted.types is not None:
        found.append(events.c.type.in_(wanted.types))
    if wanted.accounts is not None:
        found.append(events.c.account_id.in_(wanted.accounts))
    return found


def _is_blocked(receiver: str) -> ColumnElement[bool]:
    """Tell whether the receiver still lacks an earlier event of the same order."""
    earlier, lacking = events.alias(), deliveries.alias()
    return (
        exists(literal(1))
        .where(
            earlier.c.account_id == events.c.account_id,
            earlier.c.order_id.is_not_distinct_from(events.c.order_id),
            earlier.c.seq < events.c.seq,
            lacking.c.seq == earlier.c.seq,
            lacking.c.receiver == receiver,
        )
        .correlate(events)
    )


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many events a receiver wants and has not taken, and when the oldest of them happened."""

    depth: int
    since: datetime | None


async def backlogs(database: Database, wanting: Mapping[str, EventFilter]) -> Mapping[str, Backlog]:
    """Return the backlog of each of these receivers; one that is not known yet is absent."""
    found = {}
    figures = func.count().label("depth"), func.min(events.c.at).label("since")
    async with database.read() as connection:
        known = (await connection.execute(select(receivers.c.name, receivers.c.cursor))).all()
        for name, cursor in known:
            if name not in wanting:
                continue
            fresh = select(*figures).where(events.c.seq > cursor, *_wanted(wanting[name]))
            queued = (
                select(*figures)
                .select_from(deliveries)
                .join(events, events.c.seq == deliveries.c.seq)
                .where(deliveries.c.receiver == name, events.c.seq <= cursor)
            )
            rows = [(await connection.execute(one)).one() for one in (fresh, queued)]
            since = min((row.since for row in rows if row.since is not None), default=None)
            found[name] = Backlog(sum(row.depth for row in rows), since)
    return found


@dataclass(frozen=True, slots=True)
class Lacking:
    """A receiver that does not have an event yet; ``attempts`` 0: it was not sent to it."""

    receiver: str
    attempts: int
    next_try_at: datetime | None
    failure: str | None


async def list_events(
    database: Database, after: int, wanting: Mapping[str, EventFilter]
) -> AsyncGenerator[tuple[Event, list[Lacking]], None]:
    """Yield the kept events after a number, oldest first, each with who does not have it yet.

    Read a chunk at a time. A parked receiver's reason stands in for the failure.
    """
    while True:
        found = (await read_events(database, after, _CHUNK)).events
        if not found:
            return
        async with database.read() as connection:
            known = (await connection.execute(select(receivers))).all()
            rows = await connection.execute(
                select(deliveries).where(
                    deliveries.c.seq.between(found[0].seq, found[-1].seq),
                )
            )
            queued = {(row.seq, row.receiver): row for row in rows}
        for event in found:
            lacking = []
            for one in known:
                row = queued.get((event.seq, one.name))
                wanted = wanting.get(one.name)
                if row is not None:
                    why = one.parked_reason or row.failure
                    lacking.append(Lacking(one.name, row.attempts, row.next_try_at, why))
                elif event.seq > one.cursor and wanted is not None and wanted.wants(event):
                    lacking.append(Lacking(one.name, 0, None, one.parked_reason))
            yield event, lacking
        after = found[-1].seq
