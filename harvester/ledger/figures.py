"""Figures of the whole ledger, for those who watch it; each query is one pass or one index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnClause, and_, func, literal_column, select

from harvester.domain.lifecycle import STATUSES
from harvester.domain.orders import CertificateKind, CertificateState
from harvester.ledger.engine import Database
from harvester.ledger.filters import AWAITS_CERTIFICATE
from harvester.ledger.tables import accounts, anomalies, certificates, orders, set_aside

OTHER = "other"
"""Stands for every status that Lune does not document, so that figures stay few."""

_MOST_ARRIVALS = 10_000
_ARRIVAL: ColumnClause[int] = literal_column("certificates.rowid")
"""SQLite numbers rows as they come."""


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
    """Count everything. Takes a tenth of a second of one processor per million orders."""
    status, state = orders.c.status, orders.c.certificate_state
    # In the order of an index that has all of it: no order is fetched, none is sorted.
    census = select(status, state, func.count(), func.min(orders.c.changed_at)).group_by(
        status, state
    )
    by_status = dict.fromkeys((*STATUSES, OTHER), 0)
    by_certificate = dict.fromkeys((*map(str, CertificateState), "none"), 0)
    since: dict[str, datetime] = {}
    async with database.read() as connection:
        for served, had, count, changed_at in await connection.execute(census):
            place = served if served in by_status else OTHER
            by_status[place] += count
            by_certificate[had or "none"] += count
            since[place] = min(changed_at, since.get(place, changed_at))
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
    """Return the mark of the newest recorded certificate, for :func:`arrivals`."""
    async with database.read() as connection:
        newest = await connection.scalar(select(func.max(_ARRIVAL)).select_from(certificates))
        return newest or 0


async def arrivals(database: Database, mark: int) -> tuple[int, list[float]]:
    """Return a new mark, and how many seconds each final certificate since ``mark`` was owed.

    A certificate is owed from the moment its order was seen complete, or its file seen lost.
    """
    mine = and_(
        orders.c.account_id == certificates.c.account_id, orders.c.id == certificates.c.order_id
    )
    query = (
        select(_ARRIVAL.label("place"), certificates.c.stored_at, orders.c.owed_since)
        .join(orders, mine)
        .where(mark < _ARRIVAL, certificates.c.kind == CertificateKind.FINAL)
        .order_by(_ARRIVAL)
        .limit(_MOST_ARRIVALS)
    )
    async with database.read() as connection:
        rows = (await connection.execute(query)).all()
    owed = [
        (row.stored_at - row.owed_since).total_seconds()
        for row in rows
        if row.owed_since is not None and row.owed_since <= row.stored_at
    ]
    return (rows[-1].place if rows else mark), owed
