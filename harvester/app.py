"""The composition root: the one module that knows all the parts and how they fit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import structlog

from harvester import __version__
from harvester.archive.directory import DirectoryArchive
from harvester.archive.durable import make_root
from harvester.config.settings import Settings
from harvester.context import Context, Limits, Stop, utc_now
from harvester.domain.certificate_names import CertificateNames
from harvester.domain.errors import LedgerUnavailable, StorageUnavailable
from harvester.domain.schedule import Schedule
from harvester.events.dispatch import Dispatcher
from harvester.events.receivers import make_receivers
from harvester.harvest.accounts import AccountBook
from harvester.harvest.collect import Collector
from harvester.harvest.filing import Filing
from harvester.harvest.purchase import Purchaser
from harvester.harvest.sweep import Sweep
from harvester.harvest.track import Tracker
from harvester.ledger import migrate
from harvester.ledger.certificates import has_certificates
from harvester.ledger.database import Database
from harvester.ledger.lock import LedgerLock
from harvester.lune import ClientOptions, LuneClient, RateLimiter

log = structlog.get_logger()

_SHARE_OF_CHECKS = 0.5
"""How much of the rate checks of open orders may use; certificates and listings have the rest."""


class App:
    """Everything a harvest needs, wired; :func:`open_app` makes one and opens it.

    ``accounts`` stand in for the configured ones, ``options`` for the client's.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        context: Context,
        accounts: Sequence[str] = (),
        options: ClientOptions | None = None,
    ) -> None:
        self.settings = settings
        self.database = database
        self.context = context
        self.rate_limiter = RateLimiter(settings.lune.rate_limit)
        self.lune = make_client(settings, self.rate_limiter, options)
        self.archive = DirectoryArchive(settings.storage.path)
        followed = accounts or settings.lune.accounts
        self.accounts = AccountBook(self.lune, database, followed, context)
        self.sweep = Sweep(self.lune, database, context)
        names = CertificateNames(settings.storage.layout)
        filing = Filing(database, self.archive, names, context)
        self.collector = Collector(self.lune, database, filing, context)
        self.tracker = Tracker(self.lune, database, self.accounts, context)
        self.purchaser = Purchaser(self.lune, database, context)
        receivers = make_receivers(settings.events, self.archive.locate, context.clock)
        self.dispatcher = Dispatcher(database, receivers, context)

    @property
    def requests(self) -> int:
        """How many requests went to Lune so far."""
        return self.rate_limiter.requests

    @property
    def takes_webhooks(self) -> bool:
        """Whether Lune's webhooks are taken: a secret for them is configured."""
        return self.settings.webhook_secrets is not None

    async def close(self) -> None:
        """Close what the parts have open, but for the database. Idempotent."""
        await self.lune.close()
        await self.dispatcher.close()
        await self.archive.close()


def make_client(
    settings: Settings,
    rate_limiter: RateLimiter | None = None,
    options: ClientOptions | None = None,
) -> LuneClient:
    """Make a client of the configuration's; alone, it asks Lune something without a ledger."""
    rate_limiter = rate_limiter or RateLimiter(settings.lune.rate_limit)
    options = replace(options or ClientOptions(), user_agent=f"lune-harvester/{__version__}")
    return LuneClient(settings.lune.base_url, settings.api_key.read, rate_limiter, options)


@asynccontextmanager
async def open_ledger(
    settings: Settings, command: str, observe_write: Callable[[float], object] = lambda _: None
) -> AsyncIterator[Database]:
    """Hold the ledger for writing: locked, migrated, open. ``LedgerHeld`` when another does."""
    path = settings.database.path
    try:
        make_root(path.parent)
    except OSError as error:
        raise LedgerUnavailable(f"{path.parent}: cannot be made: {error.strerror}") from error
    with LedgerLock(path, command):
        before, backup = await asyncio.to_thread(migrate.upgrade, path)
        if before is None:
            log.info("ledger created", ledger=str(path), schema=migrate.head())
        elif before != migrate.head():
            kept = None if backup is None else str(backup)
            log.info("ledger upgraded", before=before, after=migrate.head(), backup=kept)
        async with _opened(path, observe_write) as database:
            yield database


@asynccontextmanager
async def open_app(
    settings: Settings,
    stop: Stop,
    command: str,
    accounts: Sequence[str] = (),
    *,
    options: ClientOptions | None = None,
    limits: Limits | None = None,
    clock: Callable[[], datetime] = utc_now,
) -> AsyncIterator[App]:
    """Open everything for a harvest; see :class:`App`."""
    settings.api_key.read()  # a missing or unreadable key is found before anything is written
    context = _context(settings, stop, limits or Limits(), clock)
    observe_write = context.measurements.ledger_writes.observe
    async with open_ledger(settings, command, observe_write) as database:
        app = App(settings, database, context, accounts, options)
        try:
            await app.lune.open()
            await _prepare_archive(app)
            await app.dispatcher.register()
            yield app
        finally:
            await app.close()


@asynccontextmanager
async def open_dry_app(
    settings: Settings, stop: Stop, accounts: Sequence[str] = ()
) -> AsyncIterator[App]:
    """Open a harvest on a throw-away copy of the ledger: Lune is asked, nothing of ours written."""
    context = _context(settings, stop, Limits(), utc_now)
    with TemporaryDirectory(prefix="harvester-dry-run-") as folder:
        copy = Path(folder) / "ledger.db"
        if migrate.current(settings.database.path) is not None:
            await asyncio.to_thread(migrate.backup, settings.database.path, copy)
        await asyncio.to_thread(migrate.upgrade, copy)
        async with _opened(copy) as database:
            app = App(settings, database, context, accounts)
            try:
                await app.lune.open()
                yield app
            finally:
                await app.close()


def _context(
    settings: Settings, stop: Stop, limits: Limits, clock: Callable[[], datetime]
) -> Context:
    harvest = settings.harvest
    schedule = Schedule(
        harvest.sweep_interval,
        harvest.longest_interval,
        harvest.interim,
        harvest.weights,
        request_budget=settings.lune.rate_limit * _SHARE_OF_CHECKS,
    )
    return Context(schedule, stop, clock, limits)


@asynccontextmanager
async def _opened(
    path: Path, observe_write: Callable[[float], object] = lambda _: None
) -> AsyncIterator[Database]:
    database = Database(path, observe_write=observe_write)
    try:
        yield database
    finally:
        await database.close()


async def _prepare_archive(app: App) -> None:
    """Make the archive ready; one that is gone leaves the tracking of orders to go on."""
    stored = await has_certificates(app.database)
    try:
        # A folder that vanished under stored certificates is not made anew: an archive that is
        # not mounted would be filled beside itself.
        await app.archive.prepare(create=not stored)
        removed = await app.archive.remove_temporaries()
    except StorageUnavailable as error:
        log.warning("archive not ready", reason=str(error))
        return
    if removed:
        log.info("temporary files removed", files=removed)
