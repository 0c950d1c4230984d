"""The composition root: the one module that knows all the parts and how they fit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import structlog
from prometheus_client import Histogram

from harvester import __version__
from harvester.archive.directory import DirectoryArchive
from harvester.archive.durable import make_root
from harvester.archive.pdf import check_pdf
from harvester.config.settings import Settings
from harvester.context import Stop
from harvester.domain.certificate_names import Layout
from harvester.domain.errors import LedgerUnavailable, StorageUnavailable
from harvester.domain.schedule import Cadence
from harvester.events.dispatch import Announcer
from harvester.events.receivers import open_announcer
from harvester.harvest.accounts import AccountBook
from harvester.harvest.collect import Collector
from harvester.harvest.purchase import Placer
from harvester.harvest.stuck import StuckWatch
from harvester.harvest.sweep import Sweep
from harvester.harvest.track import Tracker
from harvester.ledger import migrate
from harvester.ledger.lock import LedgerLock
from harvester.ledger.sql import SqlLedger
from harvester.lune import Deadlines, LuneClient, Pacer
from harvester.lune.webhook_client import WebhookClient
from harvester.runtime.drain import Drain, DrainReport
from harvester.web.metrics import MeasuredDatabase, MeasuredSweep, sweep_seconds

log = structlog.get_logger()

_SHARE_OF_LOOKS = 0.5
"""How much of the rate looks at open orders may use; certificates and listings have the rest."""


def now() -> datetime:
    """Return the instant it is, UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Harvest:
    """Everything a harvest needs, open and wired; see :func:`open_harvest`."""

    settings: Settings
    cadence: Cadence
    database: MeasuredDatabase
    ledger: SqlLedger
    archive: DirectoryArchive
    lune: LuneClient
    pacer: Pacer
    book: AccountBook
    sweep: Sweep
    sweep_seconds: Histogram
    collector: Collector
    tracker: Tracker
    placer: Placer
    announcer: Announcer
    stop: Stop

    @property
    def stuck(self) -> StuckWatch:
        """What tells of orders that do not move."""
        return StuckWatch(self.ledger, self.settings.harvest.stuck, now)

    def requests(self) -> int:
        """Return how many requests went to Lune so far."""
        return self.pacer.requests

    def drain(
        self, *, dry_run: bool = False, progress: Callable[[DrainReport], None] = lambda _: None
    ) -> Drain:
        """Make the one-shot; a dry run fetches no certificates."""
        return Drain(
            ledger=self.ledger,
            book=self.book,
            sweep=self.sweep,
            collector=None if dry_run else self.collector,
            placer=None if dry_run else self.placer,
            announcer=None if dry_run else self.announcer,
            stuck=None if dry_run else self.stuck,
            clock=now,
            requests=self.requests,
            stop=self.stop,
            progress=progress,
        )


@asynccontextmanager
async def open_ledger(settings: Settings, command: str) -> AsyncIterator[MeasuredDatabase]:
    """Hold the ledger for writing: locked, migrated, open. ``LedgerHeld`` when another does."""
    path = settings.database.path
    try:
        make_root(path.parent)
    except OSError as error:
        raise LedgerUnavailable(f"{path.parent}: cannot be made: {error.strerror}") from error
    with LedgerLock(path, command):
        before, backup = await asyncio.to_thread(migrate.upgrade, path)
        if before is None:
            log.info("ledger made", ledger=str(path), schema=migrate.HEAD)
        elif before != migrate.HEAD:
            log.info("ledger upgraded", before=before, after=migrate.HEAD, backup=_text(backup))
        async with _opened(path) as database:
            yield database


def open_client(settings: Settings) -> LuneClient:
    """Make the client alone, to ask Lune something without a ledger."""
    return open_webhooks(settings)


def open_webhooks(settings: Settings) -> WebhookClient:
    """Make a client for what is set up at Lune."""
    pacer = Pacer(settings.lune.rate_limit)
    agent = f"lune-harvester/{__version__}"
    return WebhookClient(settings.lune.base_url, settings.api_key.read, pacer, user_agent=agent)


@asynccontextmanager
async def open_harvest(
    settings: Settings,
    stop: Stop,
    command: str,
    accounts: Sequence[str] = (),
    *,
    deadlines: Deadlines | None = None,
) -> AsyncIterator[Harvest]:
    """Open everything for a harvest; ``accounts`` stand in for the configured ones."""
    settings.api_key.read()  # a missing or unreadable key is found before anything is written
    async with (
        open_ledger(settings, command) as database,
        _wired(settings, database, stop, accounts, deadlines) as harvest,
    ):
        await _prepare_archive(harvest)
        await harvest.announcer.begin()
        yield harvest


@asynccontextmanager
async def open_dry_harvest(
    settings: Settings, stop: Stop, accounts: Sequence[str] = ()
) -> AsyncIterator[Harvest]:
    """Open a harvest on a throw-away copy of the ledger: Lune is asked, nothing of ours written."""
    with TemporaryDirectory(prefix="harvester-dry-run-") as folder:
        copy = Path(folder) / "ledger.db"
        if migrate.current(settings.database.path) is not None:
            await asyncio.to_thread(migrate.backup, settings.database.path, copy)
        await asyncio.to_thread(migrate.upgrade, copy)
        async with _opened(copy) as database, _wired(settings, database, stop, accounts) as harvest:
            yield harvest


@asynccontextmanager
async def _opened(path: Path) -> AsyncIterator[MeasuredDatabase]:
    database = MeasuredDatabase(path)
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def _wired(
    settings: Settings,
    database: MeasuredDatabase,
    stop: Stop,
    accounts: Sequence[str],
    deadlines: Deadlines | None = None,
) -> AsyncIterator[Harvest]:
    often = settings.harvest
    cadence = Cadence(often.sweep_interval, often.longest_interval, often.interim, often.weights)
    ledger = SqlLedger(database)
    archive = DirectoryArchive(settings.storage.path)
    pacer = Pacer(settings.lune.rate_limit)
    layout = Layout(settings.storage.layout)
    key = settings.api_key
    seconds = sweep_seconds()
    lune = LuneClient(
        settings.lune.base_url,
        key.read,
        pacer,
        deadlines=deadlines,
        user_agent=f"lune-harvester/{__version__}",
    )
    book = AccountBook(lune, ledger, accounts or settings.lune.accounts, cadence, now)
    try:
        announcing = open_announcer(settings.events, database, archive.path, now, stop)
        async with lune, announcing as announcer:
            yield Harvest(
                settings=settings,
                cadence=cadence,
                database=database,
                ledger=ledger,
                archive=archive,
                lune=lune,
                pacer=pacer,
                book=book,
                sweep=MeasuredSweep(
                    seconds,
                    lune,
                    ledger,
                    cadence,
                    now,
                    stop,
                    budget=pacer.rate * _SHARE_OF_LOOKS,
                ),
                sweep_seconds=seconds,
                collector=Collector(
                    lune,
                    ledger,
                    archive,
                    name=layout.key,
                    check=check_pdf,
                    cadence=cadence,
                    clock=now,
                    stop=stop,
                ),
                tracker=Tracker(lune, ledger, book, cadence, now),
                placer=Placer(lune, ledger, cadence, now),
                announcer=announcer,
                stop=stop,
            )
    finally:
        await archive.close()


async def _prepare_archive(harvest: Harvest) -> None:
    """Make the archive ready; one that is gone leaves the tracking of orders to go on."""
    stored = await harvest.ledger.has_certificates()
    try:
        # A folder that vanished under filed certificates is not made anew: an archive that is
        # not mounted would be filled beside itself.
        await harvest.archive.prepare(create=not stored)
        swept = await harvest.archive.sweep_temporaries()
    except StorageUnavailable as error:
        log.warning("archive is not ready", reason=str(error))
        return
    if swept:
        log.info("temporaries swept", files=swept)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
