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

from harvester import __version__
from harvester.archive.directory import DirectoryArchive
from harvester.archive.layout import Layout
from harvester.archive.pdf import check_pdf
from harvester.domain.cadence import Cadence
from harvester.domain.errors import LedgerUnavailable, StorageUnavailable
from harvester.harvest.accounts import AccountBook
from harvester.harvest.collect import Collector
from harvester.harvest.daemon import Daemon
from harvester.harvest.drain import Drain, DrainReport
from harvester.harvest.place import Placer
from harvester.harvest.stopping import Stop
from harvester.harvest.sweep import Sweep
from harvester.harvest.track import Tracker
from harvester.ledger import migrate
from harvester.ledger.engine import Database
from harvester.ledger.lock import LedgerLock
from harvester.ledger.sql import SqlLedger
from harvester.lune import Deadlines, LuneClient, Pacer
from harvester.settings import Settings
from harvester.web.control import control_app, serve_control

log = structlog.get_logger()


def now() -> datetime:
    """Return the instant it is, UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Harvest:
    """Everything a harvest needs, open and wired; see :func:`open_harvest`."""

    settings: Settings
    cadence: Cadence
    database: Database
    ledger: SqlLedger
    archive: DirectoryArchive
    lune: LuneClient
    pacer: Pacer
    book: AccountBook
    sweep: Sweep
    collector: Collector
    tracker: Tracker
    placer: Placer
    stop: Stop

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
            clock=now,
            requests=self.requests,
            stop=self.stop,
            progress=progress,
        )

    async def run_daemon(self) -> None:
        """Run the service until asked to stop, taking orders over the local socket meanwhile."""
        daemon = Daemon(
            lune=self.lune,
            book=self.book,
            sweep=self.sweep,
            collector=self.collector,
            placer=self.placer,
            cadence=self.cadence,
            housekeeping=self.database.checkpoint,
            requests=self.requests,
            stop=self.stop,
        )
        control = control_app(
            self.tracker, self.placer, self.book, self.ledger, self.archive, now, daemon.wake
        )
        async with serve_control(control, self.settings.database.path):
            log.info("started", version=__version__, ledger=str(self.settings.database.path))
            await daemon.run_forever()
        log.info("stopped")


@asynccontextmanager
async def open_ledger(settings: Settings, command: str) -> AsyncIterator[Database]:
    """Hold the ledger for writing: locked, migrated, open. ``LedgerHeld`` when another does."""
    path = settings.database.path
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
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


@asynccontextmanager
async def open_client(settings: Settings) -> AsyncIterator[LuneClient]:
    """Open the client alone, to ask Lune something without a ledger."""
    pacer = Pacer(settings.lune.rate_limit)
    agent = f"lune-harvester/{__version__}"
    key = settings.api_key
    async with LuneClient(settings.lune.base_url, key.read, pacer, user_agent=agent) as lune:
        yield lune


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
async def _opened(path: Path) -> AsyncIterator[Database]:
    database = Database(path)
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def _wired(
    settings: Settings,
    database: Database,
    stop: Stop,
    accounts: Sequence[str],
    deadlines: Deadlines | None = None,
) -> AsyncIterator[Harvest]:
    often = settings.harvest
    cadence = Cadence(often.sweep_interval, often.longest_interval, often.interim)
    ledger = SqlLedger(database)
    archive = DirectoryArchive(settings.storage.path)
    pacer = Pacer(settings.lune.rate_limit)
    layout = Layout(settings.storage.layout)
    key = settings.api_key
    lune = LuneClient(
        settings.lune.base_url,
        key.read,
        pacer,
        deadlines=deadlines,
        user_agent=f"lune-harvester/{__version__}",
    )
    book = AccountBook(lune, ledger, accounts or settings.lune.accounts, cadence, now)
    try:
        async with lune:
            yield Harvest(
                settings=settings,
                cadence=cadence,
                database=database,
                ledger=ledger,
                archive=archive,
                lune=lune,
                pacer=pacer,
                book=book,
                sweep=Sweep(lune, ledger, cadence, now, stop),
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
