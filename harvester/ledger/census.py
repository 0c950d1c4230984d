"""How many orders there are of what, counted without reading those that are done.

Nearly all orders of a large ledger are complete and have their certificate: of these the number is
what is left of all, and an index of the others tells the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import and_, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from harvester.domain.lifecycle import COMPLETE
from harvester.domain.orders import CertificateState
from harvester.ledger.conditions import IS_UNSETTLED
from harvester.ledger.schema import orders


@dataclass(frozen=True, slots=True)
class Standing:
    """How many orders share a status and a certificate's state, and since when the first does."""

    status: str
    certificate_state: str | None
    count: int
    since: datetime


async def take_census(connection: AsyncConnection) -> list[Standing]:
    """Count the orders by status and certificate; what no order has is absent."""
    states = (orders.c.status, orders.c.certificate_state)
    unsettled = (
        select(*states, func.count(), func.min(orders.c.changed_at))
        .where(IS_UNSETTLED)
        .group_by(*states)
    )
    found = [Standing(*row) for row in await connection.execute(unsettled)]
    everything = await connection.scalar(select(func.count()).select_from(orders)) or 0
    settled = everything - sum(standing.count for standing in found)
    if settled:
        # In the order of their dates: nearly all that are old are settled, the first is soon met.
        is_settled = and_(
            orders.c.status == COMPLETE, orders.c.certificate_state == CertificateState.STORED
        )
        oldest = select(orders.c.changed_at).where(is_settled).order_by(orders.c.changed_at)
        since = (await connection.execute(oldest.limit(1))).scalar_one()
        found.append(Standing(COMPLETE, CertificateState.STORED, settled, since))
    return found
