"""Tell, once an order, that it stays in its status for longer than it should."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

import structlog

from harvester.domain.ledger import Ledger
from harvester.domain.stuck import STAYS, bounds

log = structlog.get_logger()


class StuckWatch:
    """Looks for orders that do not move; ``configured`` are the operator's bounds by status."""

    def __init__(
        self,
        ledger: Ledger,
        configured: Mapping[str, timedelta | None],
        clock: Callable[[], datetime],
    ) -> None:
        self._ledger = ledger
        self._configured = configured
        self._clock = clock

    async def run_once(self) -> int:
        """Announce the orders that are newly stuck; return how many."""
        now = self._clock()
        limits = bounds(self._configured, await self._ledger.recent_stays(STAYS, now))
        found = await self._ledger.announce_stuck(limits, now)
        for one in found:
            log.warning(
                "order is stuck",
                account=one.account_id,
                order=one.order_id,
                status=one.status,
                since=one.since.isoformat(),
                longer_than_seconds=round(one.bound.after.total_seconds()),
                basis=one.bound.basis,
            )
        return len(found)
