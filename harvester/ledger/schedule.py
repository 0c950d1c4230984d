"""Looks in the ledger: which open orders are due for one, and where they stand in their listings.

What is asked at every turn is asked once for all accounts, and answered from the index of dated
orders alone: years of orders that ended are not read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime

from sqlalchemy import bindparam, func, not_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from harvester.domain.lifecycle import TERMINAL
from harvester.domain.records import DueLook, OpenOrder, OrderFilter
from harvester.ledger.conditions import AWAITS_CERTIFICATE, conditions, is_due
from harvester.ledger.database import Database
from harvester.ledger.keys import account_key, is_order
from harvester.ledger.schema import accounts, orders

_NEWEST = 5
"""Placed orders at the top of a listing: dates may tell neighbours apart the wrong way round."""


class LookRecords:
    """The part of :class:`harvester.domain.ledger.Ledger` about when and where to look."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def due_looks(
        self, now: datetime, horizon: datetime, account_ids: Collection[str] | None = None
    ) -> Mapping[str, Sequence[DueLook]]:
        """See the port."""
        query = (
            select(accounts.c.id, orders.c.id, orders.c.place)
            .join_from(orders, accounts)
            .where(is_due(orders.c.next_check_at, now, horizon), not_(AWAITS_CERTIFICATE))
        )
        if account_ids is not None:
            query = query.where(accounts.c.id.in_(list(account_ids)))
        looks = defaultdict[str, list[DueLook]](list)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        for account_id, order_id, place in rows:
            looks[account_id].append(DueLook(order_id, place))
        return looks

    async def newest_places(self, account_ids: Collection[str]) -> Mapping[str, int]:
        """See the port."""
        newest = (
            select(orders.c.place)
            .where(orders.c.account_key == accounts.c.key, orders.c.place.is_not(None))
            .order_by(orders.c.created_at.desc())
            .limit(_NEWEST)
            .correlate(accounts)
            .subquery()
        )
        top = select(func.max(newest.c.place)).scalar_subquery()
        query = select(accounts.c.id, top).where(accounts.c.id.in_(list(account_ids)))
        async with self._database.read() as connection:
            found = await connection.execute(query)
            return {account_id: place for account_id, place in found if place is not None}

    async def order_above(self, account_id: str, order_id: str) -> DueLook | None:
        """See the port."""
        mine = orders.c.account_key == account_key(account_id)
        created = select(orders.c.created_at).where(is_order(account_id, order_id))
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
                .where(is_order(account_id, bindparam("b_id")), orders.c.place.is_(None))
                .values(place=bindparam("b_place")),
                rows,
            )

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
                .where(is_order(account_id, bindparam("b_id")))
                .values(next_check_at=due),
                rows,
            )

        await self._database.write(work)

    async def unseen_open(self, account_id: str, before: datetime, scope: OrderFilter) -> list[str]:
        """See the port."""
        query = select(orders.c.id).where(
            orders.c.account_key == account_key(account_id),
            orders.c.status.not_in(TERMINAL),
            orders.c.last_seen_at < before,
            *conditions(scope),
        )
        async with self._database.read() as connection:
            return list(await connection.scalars(query))

    async def open_orders(self, scope: OrderFilter) -> list[OpenOrder]:
        """See the port."""
        query = (
            select(accounts.c.id, orders.c.id, orders.c.status, orders.c.next_check_at)
            .join_from(orders, accounts)
            .where(
                orders.c.next_check_at.is_not(None),  # as every open order's is
                orders.c.status.not_in(TERMINAL),
                *conditions(scope),
            )
            .order_by(accounts.c.id, orders.c.created_at.desc())
        )
        async with self._database.read() as connection:
            return [OpenOrder(*row) for row in await connection.execute(query)]

    async def earliest_due(self, scope: OrderFilter) -> datetime | None:
        """See the port."""
        query = select(func.min(orders.c.next_check_at)).where(
            orders.c.next_check_at.is_not(None), *conditions(scope)
        )
        async with self._database.read() as connection:
            earliest: datetime | None = await connection.scalar(query)
            return earliest
