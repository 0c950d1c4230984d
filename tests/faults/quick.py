"""A harvest in which nobody waits: back-offs pass at once, and the calendar is the test's.

Everything else is as the program wires it: the same steps, a real socket, real files.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from harvester.app import App
from harvester.archive.pdf import check_pdf
from harvester.domain.certificate_names import CertificateNames
from harvester.harvest.accounts import AccountBook
from harvester.harvest.collect import Collector
from harvester.harvest.reports import CollectReport, SweepReport
from harvester.harvest.sweep import Sweep
from harvester.harvest.track import Tracked, Tracker
from harvester.ledger.database import Database
from harvester.ledger.queries import OrderDetail, OrderRow, find_orders, summarise
from harvester.ledger.statistics import Statistics
from harvester.lune import ClientOptions, LuneClient, RateLimiter
from harvester.runtime.drain import Drain, DrainReport
from tests.faults.scene import HASTY, Scene
from tests.integration.served_api import FastTime


@dataclass(slots=True)
class Quick:
    """An open harvest; ``time`` counts the seconds waited, ``at`` is the date it believes in."""

    harvest: App
    time: FastTime
    at: datetime

    def clock(self) -> datetime:
        """Return the date."""
        return self.at

    def later(self, wait: timedelta) -> None:
        """Let the calendar go on."""
        self.at += wait

    async def order(self, order_id: str) -> OrderRow:
        """Return an order's row in the ledger."""
        [found] = await find_orders(self.harvest.database, order_id)
        return found.order

    async def track(self, order_id: str) -> Tracked:
        """Ask for one order of the default account."""
        account = await self.harvest.accounts.account(None)
        tracker = self.harvest.tracker
        [tracked] = await tracker.track([order_id], by_key=False, account_id=account.id)
        return tracked

    async def drain(self) -> DrainReport:
        """Drain once, by this calendar."""
        own = self.harvest
        drain = Drain(
            ledger=own.ledger,
            book=own.book,
            sweep=own.sweep,
            collector=own.collector,
            placer=None,
            clock=self.clock,
            requests=own.requests,
            stop=own.stop,
        )
        return await drain.run()

    async def sweep(self) -> SweepReport:
        """Do a sweep's step of the daemon."""
        return await self.harvest.sweep.run_once(await self.harvest.accounts.accounts())

    async def collect(self) -> CollectReport:
        """Do a collection's step of the daemon."""
        return await self.harvest.collector.run_once()


@asynccontextmanager
async def quick(scene: Scene, caps: ClientOptions | None = None) -> AsyncIterator[Quick]:
    """Open the scene's harvest with time of its own.

    Who moves the calendar ends with ``scene.drain()``: the ledger's dates are then today's again.
    """
    time = FastTime()
    rate_limiter = RateLimiter(1000, clock=time.clock, sleep=time.sleep)
    async with scene.open() as harvest:
        settings = harvest.settings
        lune = LuneClient(
            scene.wire.base_url,
            settings.api_key.read,
            rate_limiter,
            deadlines=HASTY,
            caps=caps,
            sleep=time.sleep,
        )
        one = Quick(harvest, time, datetime.now(UTC))
        ledger, cadence, stop = harvest.ledger, harvest.cadence, harvest.stop
        book = AccountBook(lune, ledger, settings.lune.accounts, cadence, one.clock)
        one.harvest = replace(
            harvest,
            lune=lune,
            rate_limiter=rate_limiter,
            book=book,
            tracker=Tracker(lune, ledger, book, cadence, one.clock),
            sweep=Sweep(lune, ledger, cadence, one.clock, stop),
            collector=Collector(
                lune,
                ledger,
                harvest.archive,
                name=CertificateNames(settings.storage.layout).key,
                check=check_pdf,
                schedule=cadence,
                clock=one.clock,
                stop=stop,
            ),
        )
        async with lune, asyncio.timeout(60):
            yield one


async def detail(scene: Scene, order_id: str) -> OrderDetail:
    """Return one order as the ledger has it."""
    [found] = await details(scene, order_id)
    return found


async def details(scene: Scene, order_id: str) -> list[OrderDetail]:
    """Return the orders with this id, of every account."""
    database = Database(scene.home.ledger, readonly=True)
    try:
        return await find_orders(database, order_id)
    finally:
        await database.close()


async def summary(scene: Scene) -> Statistics:
    """Return what the ledger adds up to."""
    database = Database(scene.home.ledger, readonly=True)
    try:
        return await summarise(database, datetime.now(UTC))
    finally:
        await database.close()


async def chain(scene: Scene, order_id: str) -> list[tuple[str | None, str]]:
    """Return the order's transitions."""
    return [(one.from_status, one.to_status) for one in (await detail(scene, order_id)).transitions]
