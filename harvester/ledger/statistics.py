"""Counts of the whole ledger: one reading behind ``status``, the metrics and ``/readyz``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import and_, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from harvester.domain.events import EventType
from harvester.domain.lifecycle import COMPLETE
from harvester.domain.orders import CertificateKind, CertificateState
from harvester.ledger.conditions import AWAITS_CERTIFICATE, IS_UNSETTLED
from harvester.ledger.database import Database
from harvester.ledger.events import newest_event
from harvester.ledger.schema import accounts, anomalies, events, orders, rejected_orders

_MOST_STORED = 10_000


@dataclass(frozen=True, slots=True)
class AccountState:
    """Where the sweeps of an account stand; ``parked_reason`` is None for one that is followed."""

    id: str
    name: str
    mode: str
    scope: str
    last_sweep_at: datetime | None
    next_sweep_at: datetime
    parked_reason: str | None


@dataclass(frozen=True, slots=True)
class Statistics:
    """How many there are of what, and since when the longest standing one stands there.

    ``entered_at`` is when the order that is longest in a status entered it, by status. ``followed``
    counts the orders with a date, ``due`` those whose date has come, ``owed`` the certificates of
    complete orders that are missing, ``owed_since`` since when the first of them is.
    ``next_check_at`` is the earliest date of an order. ``anomalies`` counts by kind, over the
    ledger's life.
    """

    by_status: Mapping[str, int]
    entered_at: Mapping[str, datetime]
    by_certificate: Mapping[str, int]
    followed: int
    due: int
    owed: int
    owed_since: datetime | None
    next_check_at: datetime | None
    anomalies: Mapping[str, int]
    rejected_orders: int
    accounts: Sequence[AccountState]

    @property
    def parked_accounts(self) -> int:
        """How many accounts are left alone."""
        return sum(account.parked_reason is not None for account in self.accounts)

    @property
    def next_wake_at(self) -> datetime | None:
        """The earliest date at which anything is due; None when nothing ever is."""
        dates = [account.next_sweep_at for account in self.accounts]
        return min([*dates, *([self.next_check_at] if self.next_check_at else [])], default=None)

    def last_sweep_at(self, now: datetime, bound: timedelta) -> datetime | None:
        """Return when the followed account that waits longest had its last good sweep.

        An account is followed while its next sweep is planned anew within ``bound``, failed ones
        included; when none is, the newest good sweep of all counts. None when there was none yet.
        Parked accounts are left out: only a person mends those.
        """
        unparked = [account for account in self.accounts if account.parked_reason is None]
        followed = [one.last_sweep_at for one in unparked if one.next_sweep_at >= now - bound]
        if None in followed:
            return None
        dates = [at for at in followed if at is not None]
        if dates:
            return min(dates)
        return max((one.last_sweep_at for one in unparked if one.last_sweep_at), default=None)


async def read_statistics(connection: AsyncConnection, now: datetime) -> Statistics:
    """Count everything; each part is one pass or one index."""
    by_status, by_certificate = Counter[str](), Counter[str]()
    entered_at: dict[str, datetime] = {}
    for status, state, count, since in await _groups(connection):
        by_status[status] += count
        by_certificate[state or "none"] += count
        entered_at[status] = min(since, entered_at.get(status, since))
    dated = select(func.count(), func.min(orders.c.next_check_at)).where(
        orders.c.next_check_at.is_not(None)
    )
    followed, next_check_at = (await connection.execute(dated)).one()
    missing = select(func.count(), func.min(orders.c.owed_since)).where(AWAITS_CERTIFICATE)
    owed, owed_since = (await connection.execute(missing)).one()
    due = select(func.count()).where(orders.c.next_check_at <= now)
    kinds = select(anomalies.c.kind, func.sum(anomalies.c.count).label("times")).group_by(
        anomalies.c.kind
    )
    rejected = select(func.count()).select_from(rejected_orders)
    return Statistics(
        by_status=by_status,
        entered_at=entered_at,
        by_certificate=by_certificate,
        followed=followed,
        due=await connection.scalar(due) or 0,
        owed=owed,
        owed_since=owed_since,
        next_check_at=next_check_at,
        anomalies={row.kind: row.times for row in await connection.execute(kinds)},
        rejected_orders=await connection.scalar(rejected) or 0,
        accounts=await _accounts(connection),
    )


async def stored_since(database: Database, seq: int) -> tuple[int, list[float]]:
    """Return for how many seconds each final certificate was owed that was stored after an event.

    The number that is returned with them is where to go on. A certificate is owed from the moment
    its order was seen complete, or its file seen lost.
    """
    new = (
        select(events.c.seq, events.c.at, events.c.data, events.c.account_id, events.c.order_id)
        .where(events.c.seq > seq, events.c.type == EventType.CERTIFICATE_STORED)
        .order_by(events.c.seq)
        .limit(_MOST_STORED)
        .subquery()
    )
    query = (
        select(new.c.seq, new.c.at, new.c.data, orders.c.owed_since)
        .join_from(new, accounts, accounts.c.id == new.c.account_id)
        .join(orders, and_(orders.c.account_key == accounts.c.key, orders.c.id == new.c.order_id))
        .order_by(new.c.seq)
    )
    async with database.read() as connection:
        rows = (await connection.execute(query)).all()
    owed = [
        (row.at - row.owed_since).total_seconds()
        for row in rows
        if json.loads(row.data)["kind"] == CertificateKind.FINAL
        and row.owed_since is not None
        and row.owed_since <= row.at
    ]
    return (rows[-1].seq if rows else seq), owed


async def last_event(database: Database) -> int:
    """Return the number of the newest event, to begin :func:`stored_since` with."""
    async with database.read() as connection:
        return await newest_event(connection)


async def _groups(
    connection: AsyncConnection,
) -> list[tuple[str, str | None, int, datetime]]:
    """Return status, certificate's state, count, and since when the first is so, by both.

    Nearly all orders of a large ledger are complete and have their certificate: of these the
    number is what is left of all, and an index of the others tells the rest.
    """
    states = (orders.c.status, orders.c.certificate_state)
    unsettled = (
        select(*states, func.count(), func.min(orders.c.changed_at))
        .where(IS_UNSETTLED)
        .group_by(*states)
    )
    found = [(row[0], row[1], row[2], row[3]) for row in await connection.execute(unsettled)]
    everything = await connection.scalar(select(func.count()).select_from(orders)) or 0
    settled = everything - sum(count for _, _, count, _ in found)
    if settled:
        # In the order of their dates: nearly all that are old are settled, the first is soon met.
        is_settled = and_(
            orders.c.status == COMPLETE, orders.c.certificate_state == CertificateState.STORED
        )
        oldest = select(orders.c.changed_at).where(is_settled).order_by(orders.c.changed_at)
        since = (await connection.execute(oldest.limit(1))).scalar_one()
        found.append((COMPLETE, CertificateState.STORED, settled, since))
    return found


async def _accounts(connection: AsyncConnection) -> list[AccountState]:
    query = select(
        accounts.c.id,
        accounts.c.name,
        accounts.c.mode,
        accounts.c.scope,
        accounts.c.last_sweep_at,
        accounts.c.next_sweep_at,
        accounts.c.parked_reason,
    ).order_by(accounts.c.is_default.desc(), accounts.c.name)
    return [AccountState(*row) for row in await connection.execute(query)]
