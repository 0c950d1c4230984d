"""Orders in the ledger: what looking at them brought."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, func, literal, select, type_coerce, update
from sqlalchemy.ext.asyncio import AsyncConnection

from harvester.domain.lifecycle import Anomaly, AnomalyKind
from harvester.domain.orders import Account, OrderPage, Source
from harvester.domain.records import Recorded, SweepMark
from harvester.domain.schedule import Cadence, Stay
from harvester.ledger.database import Database
from harvester.ledger.keys import is_order
from harvester.ledger.recording import Recorder, count_anomaly
from harvester.ledger.schema import Instant, moves, orders, transitions


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
        recent = select(orders.c.key).order_by(orders.c.changed_at.desc()).limit(count).subquery()
        left_at = func.lead(transitions.c.observed_at).over(
            partition_by=transitions.c.order_key, order_by=transitions.c.seq
        )
        entered = (
            select(
                transitions.c.seq,
                moves.c.to_status,
                transitions.c.observed_at,
                left_at.label("left_at"),
            )
            .join(moves)
            .join(recent, recent.c.key == transitions.c.order_key)
            .subquery()
        )
        until = func.coalesce(entered.c.left_at, literal(now, Instant))
        query = select(
            entered.c.to_status,
            # As the numbers they are: instants of thousands of rows are what this would cost.
            type_coerce(until - entered.c.observed_at, BigInteger) / 1e6,
            entered.c.left_at.is_not(None),
        ).where(entered.c.seq > 1)  # when the first status began nobody saw
        async with self._database.read() as connection:
            return [Stay(*row) for row in await connection.execute(query)]

    async def record_missing(
        self, account_id: str, order_id: str, at: datetime, due: datetime
    ) -> None:
        """See the port."""

        async def work(connection: AsyncConnection) -> None:
            this = select(orders.c.key, orders.c.status).where(is_order(account_id, order_id))
            known = (await connection.execute(this)).first()
            if known is None:
                return
            await connection.execute(
                update(orders)
                .where(orders.c.key == known.key)
                .values(
                    missing_since=func.coalesce(orders.c.missing_since, literal(at, Instant)),
                    next_check_at=due,
                )
            )
            odd = Anomaly(known.status, "", AnomalyKind.NOT_FOUND, at)
            await count_anomaly(connection, known.key, odd)

        await self._database.write(work)
