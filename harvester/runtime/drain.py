"""The one-shot: record every order reachable now, file every certificate obtainable now."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog

from harvester.context import Stop
from harvester.domain.errors import KeyRefused, LuneError
from harvester.domain.ledger import Ledger
from harvester.domain.orders import Account
from harvester.domain.records import EVERYTHING, MissingCertificate, OpenOrder, OrderFilter
from harvester.events.dispatch import Announcer, AnnounceReport
from harvester.harvest.accounts import AccountBook
from harvester.harvest.collect import Collector
from harvester.harvest.purchase import Placer
from harvester.harvest.reports import CollectReport, SweepReport
from harvester.harvest.stuck import StuckWatch
from harvester.harvest.sweep import Sweep

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
    to_file: int = 0
    swept: SweepReport = field(default_factory=SweepReport)
    collected: CollectReport = field(default_factory=CollectReport)
    announced: AnnounceReport = field(default_factory=AnnounceReport)
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
            f"account {account}: order {reference} set aside: {why}"
            for (account, reference), why in self.swept.set_aside.items()
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
    """The steps of the daemon, once over, until nothing is due and nothing progressed."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        book: AccountBook,
        sweep: Sweep,
        collector: Collector | None,
        placer: Placer | None,
        announcer: Announcer | None = None,
        stuck: StuckWatch | None = None,
        clock: Callable[[], datetime],
        requests: Callable[[], int],
        stop: Stop,
        progress: Callable[[DrainReport], None] = lambda _: None,
    ) -> None:
        self._ledger = ledger
        self._book = book
        self._sweep = sweep
        self._collector = collector
        self._placer = placer
        self._announcer = announcer
        self._stuck = stuck
        self._clock = clock
        self._requests = requests
        self._stop = stop
        self._progress = progress

    async def run(
        self, scope: OrderFilter = EVERYTHING, wait: timedelta | None = None
    ) -> DrainReport:
        """Drain the orders in scope; with ``wait``, go on while something falls due within it.

        Without a collector (a dry run) certificates are counted, not fetched. ``KeyRefused`` and
        ``ConfigurationError`` end it.
        """
        report = DrainReport(started_at=self._clock())
        deadline = time.monotonic() + (wait.total_seconds() if wait is not None else 0)
        followed = await self._reachable(report)
        report.accounts = len(followed)

        def swept(so_far: SweepReport) -> None:
            report.swept = so_far
            self._tell(report)

        report.swept = await self._sweep.drain(followed, report.started_at, scope, swept)
        report.swept.parked |= self._book.unreached
        await self._collect(report, scope, report.started_at)
        while wait is not None and not self._stop.asked:
            pause = await self._until_due(scope)
            if pause is None or time.monotonic() + pause > deadline:
                break
            await self._stop.sleep(pause)
            report.swept.absorb(await self._sweep.run_once(await self._book.accounts()))
            await self._collect(report, scope, None)
        await self._announce(report)
        report.missing = await self._ledger.missing_certificates(scope)
        report.open = await self._ledger.open_orders(scope)
        report.finished_at = self._clock()
        report.interrupted = self._stop.asked
        self._tell(report)
        log.info(
            "drain",
            accounts=report.accounts,
            orders=report.swept.seen,
            new=report.swept.new,
            changed=report.swept.changed,
            filed=report.collected.filed + report.collected.adopted,
            failed=len(report.unfinished),
            open=len(report.open),
            requests=report.requests,
            seconds=round((report.finished_at - report.started_at).total_seconds(), 3),
        )
        return report

    async def _announce(self, report: DrainReport) -> None:
        """Tell receivers what happened, and of orders that stay where they are for too long."""
        # Where Lune could not be asked, an order only seems to stay.
        if self._stuck is not None and report.unreachable is None and not self._stop.asked:
            await self._stuck.run_once()
        if self._announcer is not None and not self._stop.asked:
            report.announced = await self._announcer.run_once()

    async def _reachable(self, report: DrainReport) -> list[Account]:
        """Return the accounts to drain; none, and why, when Lune cannot be asked for them."""
        try:
            followed = await self._book.accounts()
            if self._placer is not None:
                await self._placer.settle_open()
        except KeyRefused:
            raise
        except LuneError as error:
            report.unreachable = str(error)
            return []
        return followed

    async def _collect(
        self, report: DrainReport, scope: OrderFilter, untried_since: datetime | None
    ) -> None:
        report.to_file = await self._ledger.count_missing_certificates(scope)
        if self._collector is None:
            return
        before = report.collected
        report.collecting = True

        def collected(so_far: CollectReport) -> None:
            report.collected = CollectReport()
            report.collected.add(before)
            report.collected.add(so_far)
            self._tell(report)

        collected(await self._collector.run_once(scope, untried_since, collected))
        report.collecting = False

    async def _until_due(self, scope: OrderFilter) -> float | None:
        due = await self._ledger.earliest_due(scope)
        return None if due is None else max((due - self._clock()).total_seconds(), _SHORTEST_PAUSE)

    def _tell(self, report: DrainReport) -> None:
        report.requests = self._requests()
        self._progress(report)
