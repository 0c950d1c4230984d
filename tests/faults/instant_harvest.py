"""A harvest in which nobody waits: back-offs pass at once, and the calendar is the test's.

Everything else is as the program wires it: the same steps, a real socket, real files.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from harvester.app import App, make_client
from harvester.domain.certificate_names import CertificateNames
from harvester.harvest.accounts import AccountBook
from harvester.harvest.collect import Collector
from harvester.harvest.filing import Filing
from harvester.harvest.purchase import Purchaser
from harvester.harvest.reports import CollectReport, SweepReport
from harvester.harvest.sweep import Sweep
from harvester.harvest.track import Tracked, Tracker
from harvester.ledger.database import Database
from harvester.ledger.queries import (
    KeptRejection,
    OrderDetail,
    OrderRow,
    find_orders,
    newest_rejections,
)
from harvester.ledger.statistics import Statistics, read_statistics
from harvester.lune import ClientOptions, RateLimiter
from harvester.runtime.drain import Drain, DrainReport
from tests.faults.scene import HASTY, Scene
from tests.integration.served_api import FastTime


@dataclass(slots=True)
class InstantHarvest:
    """An open harvest; ``time`` counts the seconds waited, ``at`` is the date it believes in."""

    app: App
    time: FastTime = field(default_factory=FastTime)
    at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def clock(self) -> datetime:
        """Return the date."""
        return self.at

    def later(self, wait: timedelta) -> None:
        """Let the calendar go on."""
        self.at += wait

    async def order(self, order_id: str) -> OrderRow:
        """Return an order's row in the ledger."""
        [found] = await find_orders(self.app.database, order_id)
        return found.order

    async def track(self, order_id: str) -> Tracked:
        """Ask for one order of the default account."""
        account = await self.app.accounts.account(None)
        tracker = self.app.tracker
        [tracked] = await tracker.track([order_id], by_key=False, account_id=account.id)
        return tracked

    async def drain(self) -> DrainReport:
        """Drain once, by this calendar."""
        return await Drain(self.app).run()

    async def sweep(self) -> SweepReport:
        """Do a sweep's step of the daemon."""
        return await self.app.sweep.run_once(await self.app.accounts.accounts())

    async def collect(self) -> CollectReport:
        """Do a collection's step of the daemon."""
        return await self.app.collector.run_once()


@asynccontextmanager
async def instant_harvest(
    scene: Scene, options: ClientOptions = HASTY
) -> AsyncIterator[InstantHarvest]:
    """Open the scene's harvest with time of its own.

    Who moves the calendar ends with ``scene.drain()``: the ledger's dates are then today's again.
    """
    async with scene.open() as app:
        harvest = InstantHarvest(app)
        await _make_instant(harvest, options)
        async with asyncio.timeout(60):
            yield harvest


async def _make_instant(harvest: InstantHarvest, options: ClientOptions) -> None:
    """Wire the app anew, with the harvest's clocks in the place of the real ones."""
    app, time, settings = harvest.app, harvest.time, harvest.app.settings
    context = app.context = replace(app.context, clock=harvest.clock)
    await app.lune.close()
    app.rate_limiter = RateLimiter(1000, clock=time.clock, sleep=time.sleep)
    app.lune = make_client(settings, app.rate_limiter, replace(options, sleep=time.sleep))
    await app.lune.open()
    names = CertificateNames(settings.storage.layout)
    filing = Filing(app.database, app.archive, names, context)
    app.accounts = AccountBook(app.lune, app.database, settings.lune.accounts, context)
    app.sweep = Sweep(app.lune, app.database, context)
    app.collector = Collector(app.lune, app.database, filing, context)
    app.tracker = Tracker(app.lune, app.database, app.accounts, context)
    app.purchaser = Purchaser(app.lune, app.database, context, time.sleep)


async def detail(scene: Scene, order_id: str) -> OrderDetail:
    """Return one order as the ledger has it."""
    [found] = await details(scene, order_id)
    return found


async def details(scene: Scene, order_id: str) -> list[OrderDetail]:
    """Return the orders with this id, of every account."""
    async with _reading(scene) as database:
        return await find_orders(database, order_id)


async def statistics(scene: Scene) -> Statistics:
    """Return what the ledger adds up to."""
    async with _reading(scene) as database, database.read() as connection:
        return await read_statistics(connection, datetime.now(UTC))


async def rejections(scene: Scene) -> list[KeptRejection]:
    """Return the rejected orders."""
    async with _reading(scene) as database:
        return await newest_rejections(database)


async def chain(scene: Scene, order_id: str) -> list[tuple[str | None, str]]:
    """Return the order's transitions."""
    return [(one.before, one.after) for one in (await detail(scene, order_id)).transitions]


@asynccontextmanager
async def _reading(scene: Scene) -> AsyncIterator[Database]:
    database = Database(scene.home.ledger, readonly=True)
    try:
        yield database
    finally:
        await database.close()
