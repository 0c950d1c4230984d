"""Lune's webhooks in the ledger: each event once, and which orders they say to ask for.

An event and the look it asks for are written in one transaction, before Lune is told that it was
taken. What an event says of an order is never written as the order's own.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import and_, case, func, join, or_, select, tuple_, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from harvester.domain.lifecycle import has_reached, is_open
from harvester.domain.lune_events import (
    Announcements,
    Delivery,
    Heard,
    Hint,
    LuneEvent,
    is_answered,
    next_look_at_hint,
)
from harvester.domain.orders import Order, Source
from harvester.ledger.database import Database
from harvester.ledger.keys import account_key, is_order
from harvester.ledger.schema import accounts, hints, moves, orders, transitions, webhook_events

_NEW = insert(hints)
_IS_NEWS = and_(
    _NEW.excluded.status.is_not(None),
    or_(hints.c.status.is_(None), _NEW.excluded.sequence >= hints.c.sequence),
)
_RENEWED = _NEW.on_conflict_do_update(
    index_elements=["account_id", "order_id"],
    set_={
        "hinted_at": _NEW.excluded.hinted_at,
        "due_at": _NEW.excluded.due_at,
        # Sequences are opaque texts that compare (Lune's schema); an older event says nothing new.
        "status": case((_IS_NEWS, _NEW.excluded.status), else_=hints.c.status),
        "sequence": case((_IS_NEWS, _NEW.excluded.sequence), else_=hints.c.sequence),
    },
)
_HINTED = (
    # Hints are about orders that the ledger may not have.
    join(hints, accounts, accounts.c.id == hints.c.account_id).outerjoin(
        orders, and_(orders.c.account_key == accounts.c.key, orders.c.id == hints.c.order_id)
    )
)
_MOST_ASKED = 500


class WebhookRecords:
    """The webhook part of :class:`harvester.domain.ledger.Ledger`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record_deliveries(self, deliveries: Sequence[Delivery]) -> Heard:
        """See the port."""

        async def work(connection: AsyncConnection) -> Heard:
            return await _record(connection, deliveries)

        return await self._database.write(work)

    async def forget_deliveries(self, before: datetime) -> int:
        """See the port."""

        async def work(connection: AsyncConnection) -> int:
            old = webhook_events.delete().where(webhook_events.c.heard_at < before)
            return (await connection.execute(old)).rowcount

        return await self._database.write(work)

    async def hinted_accounts(self, now: datetime) -> set[str]:
        """See the port."""
        due = func.coalesce(orders.c.next_check_at, hints.c.due_at) <= now
        query = (
            select(hints.c.account_id)
            .distinct()
            .select_from(_HINTED)
            .where(due, accounts.c.parked_reason.is_(None))
        )
        async with self._database.read() as connection:
            return set(await connection.scalars(query))

    async def claim_strangers(self, account_id: str, now: datetime) -> list[str]:
        """See the port."""
        due = (
            select(hints)
            .select_from(_HINTED)
            .where(hints.c.account_id == account_id, hints.c.due_at <= now, orders.c.id.is_(None))
            .limit(_MOST_ASKED)
        )
        async with self._database.read() as connection:
            if (await connection.execute(due.limit(1))).first() is None:
                return []

        async def work(connection: AsyncConnection) -> list[str]:
            found = (await connection.execute(due)).all()
            for row in found:
                again = next_look_at_hint(_hint(row), now)
                await _put_off(connection, account_id, row.order_id, again)
            return [row.order_id for row in found]

        return await self._database.write(work)

    async def announcements(self, account_id: str, since: datetime) -> Announcements:
        """See the port."""
        mine = and_(
            webhook_events.c.account_id == account_id,
            webhook_events.c.heard_at >= since,
            webhook_events.c.is_stale == 0,
        )
        heard = select(func.min(webhook_events.c.heard_at), func.max(webhook_events.c.heard_at))
        async with self._database.read() as connection:
            first, last = (await connection.execute(heard.where(mine))).one()
            if first is None:
                return Announcements(None, 0)
            # Whatever moved since then changed its order, too: no others' chains are read.
            changed = select(orders.c.key).where(
                orders.c.account_key == account_key(account_id), orders.c.changed_at >= first
            )
            unannounced = (
                select(func.count())
                .select_from(transitions.join(moves).join(orders))
                .where(
                    transitions.c.order_key.in_(changed),
                    transitions.c.observed_at >= first,
                    moves.c.source.in_([Source.SWEEP, Source.CHECK, Source.DRAIN]),
                    # An old order that is seen for the first time was never to be announced.
                    or_(transitions.c.seq > 1, orders.c.created_at >= first),
                )
            )
            return Announcements(last, await connection.scalar(unannounced) or 0)


async def _record(connection: AsyncConnection, deliveries: Sequence[Delivery]) -> Heard:
    came = [(event, one) for one in deliveries for event in one.events]
    known = set(
        await connection.scalars(
            select(webhook_events.c.reference).where(
                webhook_events.c.reference.in_([event.reference for event, _ in came])
            )
        )
    )
    new: dict[str, tuple[LuneEvent, Delivery]] = {}
    for event, delivery in came:
        if event.reference not in known:
            new.setdefault(event.reference, (event, delivery))
    if new:
        rows = [_row(event, delivery) for event, delivery in new.values()]
        await connection.execute(webhook_events.insert(), rows)
    readable = [pair for pair in new.values() if pair[0].problem is None]
    return Heard(
        new=len(readable),
        repeated=len(came) - len(new),
        unreadable=len(new) - len(readable),
        hints=await _hint_at(connection, readable),
    )


def _row(event: LuneEvent, delivery: Delivery) -> dict[str, Any]:
    return {
        "reference": event.reference,
        "type": event.type,
        "api_version": event.api_version,
        "sequence": event.sequence,
        "account_id": event.account_id,
        "order_id": event.order_id,
        "problem": event.problem,
        "is_stale": int(delivery.is_stale),
        "signed_at": delivery.signed_at,
        "heard_at": delivery.heard_at,
        "document": zlib.compress(event.document),
    }


async def _hint_at(connection: AsyncConnection, heard: Iterable[tuple[LuneEvent, Delivery]]) -> int:
    """Make the orders that events are about due; return how many looks that asks for."""
    about = [(event, delivery) for event, delivery in heard if event.order_id is not None]
    if not about:
        return 0
    followed = set(await connection.scalars(select(accounts.c.id)))
    ids = {event.order_id for event, _ in about}
    rows = await connection.execute(
        select(accounts.c.id, orders.c.id, orders.c.status)
        .join_from(orders, accounts)
        .where(orders.c.id.in_(ids))
    )
    statuses = {(account_id, order_id): str(status) for account_id, order_id, status in rows}
    made = 0
    for event, delivery in about:
        account_id = event.account_id or _owner(event, statuses)
        if account_id is None:
            # Whose it is only the listings can tell.
            await connection.execute(update(accounts).values(next_sweep_at=delivery.heard_at))
        elif account_id in followed:
            status = statuses.get((account_id, str(event.order_id)))
            announced = None if delivery.is_stale else event.announced
            if status is None or _is_news(status, announced):
                await _hint_one(connection, account_id, event, announced, delivery.heard_at)
                made += 1
    return made


def _owner(event: LuneEvent, statuses: Mapping[tuple[str, str], str]) -> str | None:
    owners = [account for account, order_id in statuses if order_id == event.order_id]
    return owners[0] if len(owners) == 1 else None


def _is_news(recorded: str, announced: str | None) -> bool:
    return is_open(recorded) and (announced is None or not has_reached(recorded, announced))


async def _hint_one(
    connection: AsyncConnection,
    account_id: str,
    event: LuneEvent,
    announced: str | None,
    at: datetime,
) -> None:
    await connection.execute(
        _RENEWED,
        {
            "account_id": account_id,
            "order_id": event.order_id,
            "hinted_at": at,
            "due_at": at,
            "status": announced,
            "sequence": "" if announced is None else event.sequence,
        },
    )
    await connection.execute(
        update(orders).where(is_order(account_id, event.order_id)).values(next_check_at=at)
    )


async def answer_hints(
    connection: AsyncConnection,
    account_id: str,
    looked_at: Iterable[tuple[Order, dict[str, Any]]],
    now: datetime,
) -> set[str]:
    """Settle the hints at orders that were just looked at; return whose there were.

    ``looked_at`` has each order and the columns of its row that are about to be set. While Lune's
    API lags behind what was announced, the next look is dated by the hint.
    """
    served = {order.id: (order, values) for order, values in looked_at}
    found = await connection.execute(
        select(hints).where(
            tuple_(hints.c.account_id, hints.c.order_id).in_(
                [(account_id, order_id) for order_id in served]
            )
        )
    )
    hinted = set()
    for row in found.all():
        order, values = served[row.order_id]
        hinted.add(order.id)
        hint = _hint(row)
        again = None if is_answered(hint, order.status) else next_look_at_hint(hint, now)
        await _put_off(connection, account_id, order.id, again)
        if again is not None and is_open(values["status"]):
            values["next_check_at"] = min(again, values["next_check_at"] or again)
    return hinted


async def _put_off(
    connection: AsyncConnection, account_id: str, order_id: str, again: datetime | None
) -> None:
    this = and_(hints.c.account_id == account_id, hints.c.order_id == order_id)
    if again is None:
        await connection.execute(hints.delete().where(this))
    else:
        await connection.execute(update(hints).where(this).values(due_at=again))


def _hint(row: Any) -> Hint:
    return Hint(row.order_id, row.hinted_at, row.status)
