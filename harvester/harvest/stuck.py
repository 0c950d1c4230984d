"""Report, once an order, that it stays in its status for longer than it should."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import structlog

from harvester.context import Context
from harvester.domain.stuck import bounds
from harvester.ledger.database import Database
from harvester.ledger.schedule import status_durations
from harvester.ledger.stuck import mark_stuck

log = structlog.get_logger()


async def report_stuck(
    database: Database, configured: Mapping[str, timedelta | None], context: Context
) -> int:
    """Mark the orders that are newly stuck, with their events, and log them; return how many.

    ``configured`` are the operator's bounds by status, None for learned ones.
    """
    now = context.clock()
    limits = bounds(configured, await status_durations(database, now))
    found = await mark_stuck(database, limits, now)
    for one in found:
        log.warning(
            "order stuck",
            account=one.account_id,
            order=one.order_id,
            status=one.status,
            since=one.since.isoformat(),
            longer_than_seconds=round(one.bound.after.total_seconds()),
            basis=one.bound.basis,
        )
    return len(found)
