"""The one-shot: record every order reachable now, store every certificate obtainable now."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog

from harvester.app import App
from harvester.domain.errors import KeyRefused, LuneError
from harvester.domain.orders import EVERYTHING, Account, OrderFilter
from harvester.events.dispatch import DispatchReport
from harvester.harvest.reports import CollectReport, SweepReport
from harvester.harvest.stuck import report_stuck
from harvester.ledger.certificates import (
    MissingCertificate,
    count_missing_certificates,
    missing_certificates,
)
from harvester.ledger.schedule import OpenOrder, earliest_due, open_orders

log = structlog.get_logger()

_SHORTEST_PAUSE = 0.5
"""Seconds between rounds when something overdue cannot be had, such as a parked account's."""


@dataclass(slots=True)
class DrainReport:
    """What a drain found, did and could not do; grows while it runs.

    ``missing`` are certificates of complete orders in scope that are not in the archive; ``open``
    are orders in scope that can still change.
    """

    started_at: datetime
    finished_at: datetime | None = None
    accounts: int = 0
    requests: int = 0
    to_store: int = 0
    swept: SweepReport = field(default_factory=SweepReport)
    collected: CollectReport = field(default_factory=CollectReport)
    dispatched: DispatchReport = field(default_factory=DispatchReport)
    missing: Sequence[MissingCertificate] = ()
    open: Sequence[OpenOrder] = ()
    interrupted: bool = False
    collecting: bool = False
    unreachable: str | None = None

    @property
    def unfinished(self) -> list[str]:
        """Say line by line what could not be had; empty when all was."""
        lines = [] if self.unreachable is None else [f"Lune: {self.unreachable}"]
        lines += [f"account {key}: refused: {why}" for key, why in self.swept.parked.items()]
        lines += [f"account {key}: not swept: {why}" for key, why in self.swept.failed.items()]
        lines += [
            f"account {account}: order {reference} rejected: {why}"
            for (account, reference), why in self.swept.rejected.items()
        ]
        if self.collected.storage is not None:
            lines.append(f"archive: {self.collected.storage}")
        lines += [
            f"order {one.order_id} of account {one.account_id}: certificate {one.state}: "
            f"{one.reason or 'not fetched'}"
            for one in self.missing
        ]
        return lines

    def open_by_status(self) -> dict[str, int]:
        """Count the open orders by status."""
        return dict(Counter(order.status for order in self.open))


class Drain:
    """The steps of the daemon, once over, until nothing is due and nothing progressed.

    In a dry run certificates are counted, not fetched, and nothing is bought, delivered or marked.
    """

    def __init__(
        self,
        app: App,
        *,
        dry_run: bool = False,
        progress: Callable[[DrainReport], None] = lambda _: None,
    ) -> None:
        self._app = app
        self._context = app.context
        self._dry_run = dry_run
        self._progress = progress

    async def run(
        self, scope: OrderFilter = EVERYTHING, wait: timedelta | None = None
    ) -> DrainReport:
        """Drain the orders in scope; with ``wait``, go on while something falls due within it.

        ``KeyRefused`` and ``ConfigurationError`` end it.
        """
        app, stop = self._app, self._context.stop
        report = DrainReport(started_at=self._context.clock())
        deadline = time.monotonic() + (wait.total_seconds() if wait is not None else 0)
        followed = await self._reachable(report)
        report.accounts = len(followed)

        def swept(so_far: SweepReport) -> None:
            report.swept = so_far
            self._show(report)

        report.swept = await app.sweep.drain(followed, report.started_at, scope, swept)
        report.swept.parked |= app.accounts.unreached
        await self._collect(report, scope, report.started_at)
        while wait is not None and not stop.requested:
            pause = await self._until_due(scope)
            if pause is None or time.monotonic() + pause > deadline:
                break
            await stop.sleep(pause)
            report.swept.add(await app.sweep.run_once(await app.accounts.accounts()))
            await self._collect(report, scope, None)
        await self._dispatch(report)
        report.missing = await missing_certificates(app.database, scope)
        report.open = await open_orders(app.database, scope)
        report.finished_at = self._context.clock()
        report.interrupted = stop.requested
        self._show(report)
        log.info(
            "drain finished",
            accounts=report.accounts,
            orders=report.swept.seen,
            new=report.swept.new,
            changed=report.swept.changed,
            stored=report.collected.stored + report.collected.recovered,
            failed=len(report.unfinished),
            open=len(report.open),
            requests=report.requests,
            seconds=round((report.finished_at - report.started_at).total_seconds(), 3),
        )
        return report

    async def _reachable(self, report: DrainReport) -> list[Account]:
        """Return the accounts to drain; none, and why, when Lune cannot be asked for them."""
        try:
            followed = await self._app.accounts.accounts()
            if not self._dry_run:
                await self._app.purchaser.settle_open()
        except KeyRefused:
            raise
        except LuneError as error:
            report.unreachable = str(error)
            return []
        return followed

    async def _collect(
        self, report: DrainReport, scope: OrderFilter, untried_since: datetime | None
    ) -> None:
        report.to_store = await count_missing_certificates(self._app.database, scope)
        if self._dry_run:
            return
        before = report.collected
        report.collecting = True

        def collected(so_far: CollectReport) -> None:
            report.collected = CollectReport()
            report.collected.add(before)
            report.collected.add(so_far)
            self._show(report)

        collected(await self._app.collector.run_once(scope, untried_since, collected))
        report.collecting = False

    async def _dispatch(self, report: DrainReport) -> None:
        """Deliver events, those of orders that stay where they are for too long among them."""
        app, stop = self._app, self._context.stop
        if self._dry_run or stop.requested:
            return
        # Where Lune could not be asked, an order only seems to stay.
        if report.unreachable is None:
            await report_stuck(app.database, app.settings.harvest.stuck, self._context)
        if not stop.requested:
            report.dispatched = await app.dispatcher.run_once()

    async def _until_due(self, scope: OrderFilter) -> float | None:
        due = await earliest_due(self._app.database, scope)
        if due is None:
            return None
        return max((due - self._context.clock()).total_seconds(), _SHORTEST_PAUSE)

    def _show(self, report: DrainReport) -> None:
        report.requests = self._app.requests
        self._progress(report)
