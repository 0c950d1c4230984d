"""When orders are to be checked, and where they stand in their listings.

What is asked at every turn is asked once for all accounts, and answered from the index of dated
orders alone: years of orders that ended are not read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import BigInteger, bindparam, func, literal, not_, select, type_coerce, update

from harvester.domain.lifecycle import TERMINAL
from harvester.domain.orders import OrderFilter
from harvester.domain.schedule import StatusDuration
from harvester.ledger.conditions import (
    AWAITS_CERTIFICATE,
    account_key,
    conditions,
    is_due,
    is_order,
)
from harvester.ledger.database import Database
from harvester.ledger.schema import Instant, accounts, moves, orders, transitions

_NEWEST = 5
"""Orders at the top of a listing: dates may tell neighbours apart the wrong way round."""

_LEARNED_FROM = 2000
"""Orders, those that moved last, from which it is learned how long a status lasts."""


@dataclass(frozen=True, slots=True)
class DueCheck:
    """An open order whose check is due.

    ``position`` is where it stands in its account's listing, counted upwards: of two neighbours
    the newer one's is one higher. None while no page of the listing has shown it.
    """

    order_id: str
    position: int | None


@dataclass(frozen=True, slots=True)
class OpenOrder:
    """An order that can still change."""

    account_id: str
    order_id: str
    status: str
    next_check_at: datetime | None


async def due_checks(
    database: Database,
    now: datetime,
    horizon: datetime,
    account_ids: Collection[str] | None = None,
) -> Mapping[str, Sequence[DueCheck]]:
    """Return the open orders whose check is due, by account: these accounts' or all.

    Parked accounts' are among them; an account without any is absent.
    """
    query = (
        select(accounts.c.id, orders.c.id, orders.c.position)
        .join_from(orders, accounts)
        .where(is_due(orders.c.next_check_at, now, horizon), not_(AWAITS_CERTIFICATE))
    )
    if account_ids is not None:
        query = query.where(accounts.c.id.in_(list(account_ids)))
    found = defaultdict[str, list[DueCheck]](list)
    async with database.read() as connection:
        rows = (await connection.execute(query)).all()
    for account_id, order_id, position in rows:
        found[account_id].append(DueCheck(order_id, position))
    return found


async def newest_positions(database: Database, account_ids: Collection[str]) -> Mapping[str, int]:
    """Return the position of each account's newest order; absent when no order has one."""
    newest = (
        select(orders.c.position)
        .where(orders.c.account_key == accounts.c.key, orders.c.position.is_not(None))
        .order_by(orders.c.created_at.desc())
        .limit(_NEWEST)
        .correlate(accounts)
        .subquery()
    )
    top = select(func.max(newest.c.position)).scalar_subquery()
    query = select(accounts.c.id, top).where(accounts.c.id.in_(list(account_ids)))
    async with database.read() as connection:
        found = await connection.execute(query)
        return {account_id: position for account_id, position in found if position is not None}


async def order_above(database: Database, account_id: str, order_id: str) -> DueCheck | None:
    """Return the order just newer than this one, and its position; None above the newest."""
    mine = orders.c.account_key == account_key(account_id)
    created = select(orders.c.created_at).where(is_order(account_id, order_id))
    query = (
        select(orders.c.id, orders.c.position)
        .where(mine, orders.c.created_at > created.scalar_subquery())
        .order_by(orders.c.created_at)
        .limit(1)
    )
    async with database.read() as connection:
        row = (await connection.execute(query)).first()
        return None if row is None else DueCheck(*row)


async def set_positions(
    database: Database, account_id: str, order_ids: Sequence[str], first: int
) -> None:
    """Give consecutive orders of a listing, newest first, the positions from ``first`` down.

    Idempotent; orders that have a position keep it.
    """
    rows = [{"b_id": one, "b_position": first - n} for n, one in enumerate(order_ids)]
    this = is_order(account_id, bindparam("b_id"))
    statement = update(orders).where(this, orders.c.position.is_(None))
    async with database.transaction() as tx:
        await tx.execute(statement.values(position=bindparam("b_position")), rows)


async def postpone_checks(
    database: Database, account_id: str, order_ids: Iterable[str], due: datetime
) -> None:
    """Set when to check orders again that could not be asked for. Idempotent."""
    rows = [{"b_id": order_id} for order_id in order_ids]
    if not rows:
        return
    this = update(orders).where(is_order(account_id, bindparam("b_id")))
    async with database.transaction() as tx:
        await tx.execute(this.values(next_check_at=due), rows)


async def unseen_open_orders(
    database: Database, account_id: str, before: datetime, scope: OrderFilter
) -> list[str]:
    """Return the account's open orders in scope that were last seen before an instant."""
    query = select(orders.c.id).where(
        orders.c.account_key == account_key(account_id),
        orders.c.status.not_in(TERMINAL),
        orders.c.last_seen_at < before,
        *conditions(scope),
    )
    async with database.read() as connection:
        return list(await connection.scalars(query))


async def open_orders(database: Database, scope: OrderFilter) -> list[OpenOrder]:
    """Return orders in scope whose status can still change."""
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
    async with database.read() as connection:
        return [OpenOrder(*row) for row in await connection.execute(query)]


async def earliest_due(database: Database, scope: OrderFilter) -> datetime | None:
    """Return the earliest date at which something in scope is due."""
    query = select(func.min(orders.c.next_check_at)).where(
        orders.c.next_check_at.is_not(None), *conditions(scope)
    )
    async with database.read() as connection:
        earliest: datetime | None = await connection.scalar(query)
        return earliest


async def status_durations(
    database: Database, now: datetime, count: int = _LEARNED_FROM
) -> list[StatusDuration]:
    """Return how long the ``count`` orders that moved last were in each of their statuses.

    Only durations that were seen to begin are returned.
    """
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
    async with database.read() as connection:
        return [StatusDuration(*row) for row in await connection.execute(query)]
