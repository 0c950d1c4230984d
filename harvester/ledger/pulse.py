"""A few figures that are cheap to have often, asked by the connection that writes."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from harvester.ledger.conditions import AWAITS_CERTIFICATE
from harvester.ledger.database import Database
from harvester.ledger.schema import orders


@dataclass(frozen=True, slots=True)
class Pulse:
    """How many orders have a date to be looked at, and how many certificates are missing."""

    followed: int
    owed: int


async def take_pulse(database: Database) -> Pulse:
    """Count what is followed and owed, in the writer's turn; it shows that the writer answers.

    Costs by open orders, not by all of them, and writes nothing: nothing is synced. Waits for as
    long as a write before it takes. Raises ``LedgerUnavailable`` and its like.
    """

    async def work(connection: AsyncConnection) -> Pulse:
        followed = select(func.count()).where(orders.c.next_check_at.is_not(None))
        owed = select(func.count()).select_from(orders).where(AWAITS_CERTIFICATE)
        return Pulse(
            await connection.scalar(followed) or 0,
            await connection.scalar(owed) or 0,
        )

    return await database.write(work)
