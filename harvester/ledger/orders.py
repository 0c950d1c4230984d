"""Orders in the ledger: what is due to be looked at, and what looking brought."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import pairwise

from sqlalchemy import and_, bindparam, func, literal, not_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from harvester.domain.cadence import Cadence, Stay
from harvester.domain.lifecycle import TERMINAL, Anomaly, AnomalyKind
from harvester.domain.orders import Account, OrderPage, Source
from harvester.domain.records import DueLook, OpenOrder, OrderFilter, Recorded, SweepMark
from harvester.ledger.engine import Database
from harvester.ledger.filters import AWAITS_CERTIFICATE, conditions, is_due
from harvester.ledger.recording import Recorder, count_anomaly
from harvester.ledger.tables import Instant, accounts, orders, transitions

_NEWEST = 200
"""Orders at the top of a listing among which one has a place."""


class OrderRecords:
    """The order part of :class:`harvester.domain.ledger.Ledger`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def accounts_with_due_looks(self, now: datetime, horizon: datetime) -> set[str]:
        """See the port."""
        query = (
            select(orders.c.account_id)
            .distinct()
            .join(accounts, accounts.c.id == orders.c.account_id)
            .where(
                is_due(orders.c.next_check_at, now, horizon),
                not_(AWAITS_CERTIFICATE),
                accounts.c.parked_reason.is_(None),
            )
        )
        async with self._database.read() as connection:
            return set(await connection.scalars(query))

    async def due_looks(self, account_id: str, now: datetime, horizon: datetime) -> list[DueLook]:
        """See the port."""
        query = select(orders.c.id, orders.c.place).where(
            orders.c.account_id == account_id,
            is_due(orders.c.next_check_at, now, horizon),
            not_(AWAITS_CERTIFICATE),
        )
        async with self._database.read() as connection:
            return [DueLook(*row) for row in await connection.execute(query)]

    async def newest_place(self, account_id: str) -> int | None:
        """See the port."""
        newest = (
            select(orders.c.place)
            .where(orders.c.account_id == account_id)
            .order_by(orders.c.created_at.desc())
            .limit(_NEWEST)
            .subquery()
        )
        async with self._database.read() as connection:
            place: int | None = await connection.scalar(select(func.max(newest.c.place)))
            return place

    async def order_above(self, account_id: str, order_id: str) -> DueLook | None:
        """See the port."""
        mine = orders.c.account_id == account_id
        created = select(orders.c.created_at).where(mine, orders.c.id == order_id)
        query = (
            select(orders.c.id, orders.c.place)
            .where(mine, orders.c.created_at > created.scalar_subquery())
            .order_by(orders.c.created_at)
            .limit(1)
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query)).first()
            return None if row is None else DueLook(*row)

    async def place_orders(self, account_id: str, order_ids: Sequence[str], first: int) -> None:
        """See the port."""
        rows = [{"b_id": one, "b_place": first - n} for n, one in enumerate(order_ids)]

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(
                update(orders)
                .where(
                    orders.c.account_id == account_id,
                    orders.c.id == bindparam("b_id"),
                    orders.c.place.is_(None),
                )
                .values(place=bindparam("b_place")),
                rows,
            )

        await self._database.write(work)

    async def unseen_open(self, account_id: str, before: datetime, scope: OrderFilter) -> list[str]:
        """See the port."""
        query = select(orders.c.id).where(
            orders.c.account_id == account_id,
            orders.c.status.not_in(TERMINAL),
            orders.c.last_seen_at < before,
            *conditions(scope),
        )
        async with self._database.read() as connection:
            return list(await connection.scalars(query))

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

    async def postpone_looks(
        self, account_id: str, order_ids: Iterable[str], due: datetime
    ) -> None:
        """See the port."""
        rows = [{"b_id": order_id} for order_id in order_ids]
        if not rows:
            return

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(
                update(orders)
                .where(orders.c.account_id == account_id, orders.c.id == bindparam("b_id"))
                .values(next_check_at=due),
                rows,
            )

        await self._database.write(work)

    async def open_orders(self, scope: OrderFilter) -> list[OpenOrder]:
        """See the port."""
        query = (
            select(orders.c.account_id, orders.c.id, orders.c.status, orders.c.next_check_at)
            .where(orders.c.status.not_in(TERMINAL), *conditions(scope))
            .order_by(orders.c.account_id, orders.c.created_at.desc())
        )
        async with self._database.read() as connection:
            return [OpenOrder(*row) for row in await connection.execute(query)]

    async def earliest_due(self, scope: OrderFilter) -> datetime | None:
        """See the port."""
        query = select(func.min(orders.c.next_check_at)).where(*conditions(scope))
        async with self._database.read() as connection:
            earliest: datetime | None = await connection.scalar(query)
            return earliest
