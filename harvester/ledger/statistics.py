"""Figures of the whole ledger, for those who watch it; each query is one pass or one index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import and_, func, select

from harvester.domain.events import EventType
from harvester.domain.lifecycle import STATUSES
from harvester.domain.orders import CertificateKind, CertificateState
from harvester.ledger.census import take_census
from harvester.ledger.conditions import AWAITS_CERTIFICATE
from harvester.ledger.database import Database
from harvester.ledger.events import newest_event
from harvester.ledger.schema import accounts, anomalies, events, orders, set_aside

OTHER = "other"
"""Stands for every status that Lune does not document, so that figures stay few."""

_MOST_ARRIVALS = 10_000


@dataclass(frozen=True, slots=True)
class Figures:
    """How many there are of what, and since when the longest standing one stands there.

    ``since_by_status`` has no entry for a status without orders. ``missing_since`` is since when
    the longest owed certificate of a complete order is owed.
    """

    by_status: Mapping[str, int]
    since_by_status: Mapping[str, datetime]
    by_certificate: Mapping[str, int]
    missing_since: datetime | None
    overdue: int
    anomalies: Mapping[str, int]
    set_aside: int
    parked_accounts: int


async def measure(database: Database, now: datetime) -> Figures:
    """Count everything."""
    by_status = dict.fromkeys((*STATUSES, OTHER), 0)
    by_certificate = dict.fromkeys((*map(str, CertificateState), "none"), 0)
    since: dict[str, datetime] = {}
    async with database.read() as connection:
        for standing in await take_census(connection):
            place = standing.status if standing.status in by_status else OTHER
            by_status[place] += standing.count
            by_certificate[standing.certificate_state or "none"] += standing.count
            since[place] = min(standing.since, since.get(place, standing.since))
        kinds = await connection.execute(
            select(anomalies.c.kind, func.sum(anomalies.c.count).label("times")).group_by(
                anomalies.c.kind
            )
        )
        return Figures(
            by_status=by_status,
            since_by_status=since,
            by_certificate=by_certificate,
            missing_since=await connection.scalar(
                select(func.min(orders.c.owed_since)).where(AWAITS_CERTIFICATE)
            ),
            overdue=await connection.scalar(
                select(func.count()).where(orders.c.next_check_at <= now)
            )
            or 0,
            anomalies={odd.kind: odd.times for odd in kinds},
            set_aside=await connection.scalar(select(func.count()).select_from(set_aside)) or 0,
            parked_accounts=await connection.scalar(
                select(func.count()).where(accounts.c.parked_reason.is_not(None))
            )
            or 0,
        )


async def last_sweep(database: Database, now: datetime, bound: timedelta) -> datetime | None:
    """Return when the followed account that waits longest had its last good sweep.

    An account is followed while its next sweep is planned anew in time, failed ones included;
    when none is, the newest good sweep of all counts. None when there was none yet. Parked
    accounts are left out: only a person mends those.
    """
    query = select(accounts.c.last_sweep_at, accounts.c.next_sweep_at).where(
        accounts.c.parked_reason.is_(None)
    )
    async with database.read() as connection:
        rows = (await connection.execute(query)).all()
    followed = [row.last_sweep_at for row in rows if row.next_sweep_at >= now - bound]
    if followed:
        return None if None in followed else min(followed)
    return max((row.last_sweep_at for row in rows if row.last_sweep_at), default=None)


async def last_arrival(database: Database) -> int:
    """Return the mark of the newest event, for :func:`arrivals`."""
    async with database.read() as connection:
        return await newest_event(connection)


async def arrivals(database: Database, mark: int) -> tuple[int, list[float]]:
    """Return a new mark, and how many seconds each final certificate since ``mark`` was owed.

    A certificate is owed from the moment its order was seen complete, or its file seen lost.
    """
    new = (
        select(events)
        .where(events.c.seq > mark, events.c.type == EventType.CERTIFICATE_STORED)
        .order_by(events.c.seq)
        .limit(_MOST_ARRIVALS)
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
    return (rows[-1].seq if rows else mark), owed
