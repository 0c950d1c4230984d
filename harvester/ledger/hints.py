"""Lune's webhooks in the ledger: each event once, and which orders they say to ask for.

An event and the check it asks for are written in one transaction, before Lune is told that it was
taken. What an event says of an order is never written as the order's own.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import and_, case, func, join, or_, select, tuple_, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from harvester.domain.lifecycle import TERMINAL, has_reached, is_open
from harvester.domain.lune_events import Hint, LuneEvent, LuneWebhook, next_check_of_hint
from harvester.domain.orders import Source
from harvester.ledger.conditions import account_key, is_order
from harvester.ledger.database import Database
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
_MOST_CLAIMED = 500

_Event = tuple[LuneEvent, LuneWebhook]


@dataclass(frozen=True, slots=True)
class RecordedWebhooks:
    """What recording webhooks brought: events by what they were, and how many orders to ask for."""

    new: int = 0
    repeated: int = 0
    unreadable: int = 0
    hints: int = 0


@dataclass(frozen=True, slots=True)
class WebhookHealth:
    """How well an account's webhooks did: the newest event, and moves that came without one.

    Both since the first event of the time that was asked for; ``received_at`` is None without any.
    """

    received_at: datetime | None
    missed: int

    @property
    def work(self) -> bool:
        """Whether webhooks are known to work: some came, and nothing moved without one."""
        return self.received_at is not None and self.missed == 0


async def record_webhooks(database: Database, webhooks: Sequence[LuneWebhook]) -> RecordedWebhooks:
    """Record what webhooks brought and make the orders they are about due now.

    Idempotent by event; an event about an order of an account that is not followed is kept and
    asks for nothing.
    """
    came = [(event, webhook) for webhook in webhooks for event in webhook.events]
    async with database.transaction() as tx:
        references = [event.reference for event, _ in came]
        seen = webhook_events.c.reference.in_(references)
        known = set(await tx.scalars(select(webhook_events.c.reference).where(seen)))
        new: dict[str, _Event] = {}
        for event, webhook in came:
            if event.reference not in known:
                new.setdefault(event.reference, (event, webhook))
        if new:
            await tx.execute(webhook_events.insert(), [_row(*one) for one in new.values()])
        readable = [one for one in new.values() if one[0].problem is None]
        made = await _make_hints(tx, readable)
    return RecordedWebhooks(
        new=len(readable),
        repeated=len(came) - len(new),
        unreadable=len(new) - len(readable),
        hints=made,
    )


async def forget_webhook_events(database: Database, before: datetime) -> int:
    """Delete events that were received before an instant; return how many."""
    old = webhook_events.delete().where(webhook_events.c.received_at < before)
    async with database.transaction() as tx:
        return (await tx.execute(old)).rowcount


async def hinted_accounts(database: Database, now: datetime) -> set[str]:
    """Return ids of unparked accounts with orders that a webhook says to ask for now."""
    due = or_(
        and_(orders.c.id.is_(None), hints.c.due_at <= now),
        # The date of an order that ended is its certificate's.
        and_(orders.c.status.not_in(TERMINAL), orders.c.next_check_at <= now),
    )
    query = (
        select(hints.c.account_id)
        .distinct()
        .select_from(_HINTED)
        .where(due, accounts.c.parked_reason.is_(None))
    )
    async with database.read() as connection:
        return set(await connection.scalars(query))


async def claim_unknown_orders(database: Database, account_id: str, now: datetime) -> list[str]:
    """Return the account's orders to be asked for that only a webhook ever named.

    Each is due again later, or given up when Lune has not known it for too long.
    """
    due = (
        select(hints)
        .select_from(_HINTED)
        .where(hints.c.account_id == account_id, hints.c.due_at <= now, orders.c.id.is_(None))
        .limit(_MOST_CLAIMED)
    )
    async with database.read() as connection:
        if (await connection.execute(due.limit(1))).first() is None:
            return []
    async with database.transaction() as tx:
        found = [Hint(row.order_id, row.hinted_at, row.status) for row in await tx.execute(due)]
        for hint in found:
            await settle_hint(tx, account_id, hint.order_id, next_check_of_hint(hint, now))
    return [hint.order_id for hint in found]


async def webhook_health(database: Database, account_id: str, since: datetime) -> WebhookHealth:
    """Return whether webhooks told of what happened in an account since an instant."""
    mine = and_(
        webhook_events.c.account_id == account_id,
        webhook_events.c.received_at >= since,
        webhook_events.c.is_stale == 0,
    )
    received = webhook_events.c.received_at
    async with database.read() as connection:
        ends = select(func.min(received), func.max(received)).where(mine)
        first, last = (await connection.execute(ends)).one()
        if first is None:
            return WebhookHealth(None, 0)
        # Whatever moved since then changed its order, too: no others' chains are read.
        changed = select(orders.c.key).where(
            orders.c.account_key == account_key(account_id), orders.c.changed_at >= first
        )
        missed = (
            select(func.count())
            .select_from(transitions.join(moves).join(orders))
            .where(
                transitions.c.order_key.in_(changed),
                transitions.c.observed_at >= first,
                moves.c.source.in_([Source.SWEEP, Source.CHECK, Source.DRAIN]),
                # An old order that is seen for the first time had no webhook to come.
                or_(transitions.c.seq > 1, orders.c.created_at >= first),
            )
        )
        return WebhookHealth(last, await connection.scalar(missed) or 0)


async def read_hints(
    tx: AsyncConnection, account_id: str, order_ids: Collection[str]
) -> dict[str, Hint]:
    """Return the hints at these orders of an account, by order."""
    found = await tx.execute(
        select(hints).where(
            tuple_(hints.c.account_id, hints.c.order_id).in_(
                [(account_id, order_id) for order_id in order_ids]
            )
        )
    )
    return {row.order_id: Hint(row.order_id, row.hinted_at, row.status) for row in found}


async def settle_hint(
    tx: AsyncConnection, account_id: str, order_id: str, again: datetime | None
) -> None:
    """Keep a hint until ``again``, or drop it with None."""
    this = and_(hints.c.account_id == account_id, hints.c.order_id == order_id)
    if again is None:
        await tx.execute(hints.delete().where(this))
    else:
        await tx.execute(update(hints).where(this).values(due_at=again))


def _row(event: LuneEvent, webhook: LuneWebhook) -> dict[str, Any]:
    return {
        "reference": event.reference,
        "type": event.type,
        "api_version": event.api_version,
        "sequence": event.sequence,
        "account_id": event.account_id,
        "order_id": event.order_id,
        "problem": event.problem,
        "is_stale": int(webhook.is_stale),
        "signed_at": webhook.signed_at,
        "received_at": webhook.received_at,
        "document": zlib.compress(event.document),
    }


async def _make_hints(tx: AsyncConnection, new: Iterable[_Event]) -> int:
    """Make the orders that events are about due; return how many."""
    about = [(event, webhook) for event, webhook in new if event.order_id is not None]
    if not about:
        return 0
    followed = set(await tx.scalars(select(accounts.c.id)))
    ids = {event.order_id for event, _ in about}
    rows = await tx.execute(
        select(accounts.c.id, orders.c.id, orders.c.status)
        .join_from(orders, accounts)
        .where(orders.c.id.in_(ids))
    )
    statuses = {(account_id, order_id): str(status) for account_id, order_id, status in rows}
    made = 0
    for event, webhook in about:
        account_id = event.account_id or _owner(event, statuses)
        if account_id is None:
            # Whose it is only the listings can tell.
            await tx.execute(update(accounts).values(next_sweep_at=webhook.received_at))
        elif account_id in followed:
            recorded = statuses.get((account_id, str(event.order_id)))
            status = None if webhook.is_stale else event.status
            if recorded is None or _is_news(recorded, status):
                await _make_hint(tx, account_id, event, status, webhook.received_at)
                made += 1
    return made


def _owner(event: LuneEvent, statuses: Mapping[tuple[str, str], str]) -> str | None:
    owners = [account for account, order_id in statuses if order_id == event.order_id]
    return owners[0] if len(owners) == 1 else None


def _is_news(recorded: str, status: str | None) -> bool:
    return is_open(recorded) and (status is None or not has_reached(recorded, status))


async def _make_hint(
    tx: AsyncConnection, account_id: str, event: LuneEvent, status: str | None, at: datetime
) -> None:
    order_id = str(event.order_id)
    await tx.execute(
        _RENEWED,
        {
            "account_id": account_id,
            "order_id": order_id,
            "hinted_at": at,
            "due_at": at,
            "status": status,
            "sequence": "" if status is None else event.sequence,
        },
    )
    this = update(orders).where(is_order(account_id, order_id))
    await tx.execute(this.values(next_check_at=at))
