"""Orders in the ledger: what looking at them brought."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise

from sqlalchemy import and_, func, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from harvester.domain.cadence import Cadence, Stay
from harvester.domain.lifecycle import Anomaly, AnomalyKind
from harvester.domain.orders import Account, OrderPage, Source
from harvester.domain.records import Recorded, SweepMark
from harvester.ledger.engine import Database
from harvester.ledger.recording import Recorder, count_anomaly
from harvester.ledger.tables import Instant, orders, transitions


class OrderRecords:
    """The order part of :class:`harvester.domain.ledger.Ledger`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record_orders(
        self,
        account: Account,
        page: OrderPage,
        source: Source,
        at: datetime,
        cadence: Cadence,
        sweep: SweepMark | None = None,
        place: int | None = None,
    ) -> Recorded:
        """See the port."""

        async def work(connection: AsyncConnection) -> Recorded:
            recorder = Recorder(connection, account, source, at, cadence, sweep, place)
            return await recorder.record(page)

        return await self._database.write(work)

    async def recent_stays(self, count: int, now: datetime) -> list[Stay]:
        """See the port."""
        recent = (
            select(orders.c.account_id, orders.c.id)
            .order_by(orders.c.changed_at.desc())
            .limit(count)
            .subquery()
        )
        query = (
            select(
                transitions.c.account_id,
                transitions.c.order_id,
                transitions.c.seq,
                transitions.c.to_status,
                transitions.c.observed_at,
            )
            .join(
                recent,
                and_(
                    recent.c.account_id == transitions.c.account_id,
                    recent.c.id == transitions.c.order_id,
                ),
            )
            # By the orders found, or every transition there is would be read.
            .order_by(recent.c.account_id, recent.c.id, transitions.c.seq)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        stays = []
        for row, later in pairwise([*rows, None]):
            if row is None or row.seq == 1:
                continue  # when the first status began nobody saw
            left = later is not None and later.seq == row.seq + 1
            until = later.observed_at if left and later is not None else now
            stays.append(Stay(row.to_status, (until - row.observed_at).total_seconds(), left))
        return stays

    async def record_missing(
        self, account_id: str, order_id: str, at: datetime, due: datetime
    ) -> None:
        """See the port."""

        async def work(connection: AsyncConnection) -> None:
            this = and_(orders.c.account_id == account_id, orders.c.id == order_id)
            status = await connection.scalar(select(orders.c.status).where(this))
            if status is None:
                return
            await connection.execute(
                update(orders)
                .where(this)
                .values(
                    missing_since=func.coalesce(orders.c.missing_since, literal(at, Instant)),
                    next_check_at=due,
                )
            )
            odd = Anomaly(status, "", AnomalyKind.NOT_FOUND, at)
            await count_anomaly(connection, account_id, order_id, odd)

        await self._database.write(work)
