"""Connections to the SQLite ledger: one that writes, some that only read.

SQLite before 3.51.3 can lose pages when two connections write or checkpoint at the same moment,
so a process that holds the ledger's lock has one writing connection and everyone else reads.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL, Connection, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from harvester.domain.errors import HarvesterError, LedgerDamaged, LedgerUnavailable
from harvester.ledger.location import identity, require_same
from harvester.ledger.migrate import require_current

_BUSY_SECONDS = 5
_ALL = ("busy_timeout = 5000", "foreign_keys = ON", "trusted_schema = OFF", "temp_store = MEMORY")
_WRITER = (
    "journal_mode = WAL",
    "synchronous = FULL",  # an acknowledged commit survives a power cut; NORMAL may lose it
    "cell_size_check = ON",
    "journal_size_limit = 67108864",
)
_READER = ("query_only = ON", "wal_autocheckpoint = 0")
_DAMAGED = ("malformed", "not a database", "disk image")


class Database:
    """The ledger's connections; with ``readonly`` none of them can write.

    Every statement's fault leaves as ``LedgerUnavailable`` or ``LedgerDamaged``. ``observe_write``
    is called with the seconds that each transaction took, waiting for its turn included.
    """

    def __init__(
        self,
        path: Path,
        *,
        readonly: bool = False,
        observe_write: Callable[[float], object] = lambda _: None,
    ) -> None:
        self.path = path
        self._opened = identity(path)
        self._reader = _engine(path, readonly=True, size=2)
        self._writer = None if readonly else _engine(path, readonly=False, size=1)
        self._turn = asyncio.Lock()
        self._observe_write = observe_write

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Open a consistent view; keep it short, since an open view holds the WAL back."""
        with _translated():
            async with self._reader.connect() as connection, connection.begin():
                yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Write inside, alone: committed and durable when the block ends, or nothing of it.

        Cancelled in its last moment it may be committed all the same, so what is written has to
        be idempotent.
        """
        if self._writer is None:
            raise LedgerUnavailable(f"{self.path}: opened for reading only")
        asked_at = time.monotonic()
        try:
            async with self._turn:
                require_same(self.path, self._opened)
                with _translated():
                    async with self._writer.begin() as connection:
                        yield connection
        finally:
            self._observe_write(time.monotonic() - asked_at)

    async def probe(self) -> None:
        """Write something of no meaning, durably; ``LedgerUnavailable`` says why it cannot be."""
        async with self.transaction() as tx:
            # SQLite keeps this number for the application, which does not use it.
            await tx.exec_driver_sql("PRAGMA user_version = 0")

    async def checkpoint(self) -> None:
        """Fold the write-ahead log into the database and shrink it."""
        if self._writer is None:
            return
        async with self._turn:
            with _translated():
                async with self._writer.connect() as connection:
                    await connection.run_sync(_checkpoint)

    async def close(self) -> None:
        """Close; a writer leaves an emptied WAL behind."""
        await self._reader.dispose()
        if self._writer is not None:  # last, so that SQLite folds the WAL into the database
            await self._writer.dispose()


@asynccontextmanager
async def open_reader(path: Path) -> AsyncIterator[Database]:
    """Open a ledger for reading only, beside a daemon or without one.

    ``ConfigurationError`` when there is none, or one of another release.
    """
    require_current(path)
    database = Database(path, readonly=True)
    try:
        yield database
    finally:
        await database.close()


def translate(error: Exception) -> HarvesterError:
    """Turn a database error into ours, without the statement's parameters."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    text = f"the ledger could not be used: {cause}"
    if isinstance(cause, sqlite3.DatabaseError) and any(word in str(cause) for word in _DAMAGED):
        return LedgerDamaged(text)
    if isinstance(cause, (sqlite3.IntegrityError, sqlite3.ProgrammingError)):
        return LedgerDamaged(f"{text} (a rule of the ledger was broken)")
    return LedgerUnavailable(text)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise translate(error) from error


def _engine(path: Path, *, readonly: bool, size: int) -> AsyncEngine:
    mode = "ro" if readonly else "rw"
    engine = create_async_engine(
        URL.create(
            "sqlite+aiosqlite",
            database=f"file:{quote(str(path))}",
            query={"mode": mode, "uri": "true"},
        ),
        poolclass=AsyncAdaptedQueuePool,
        pool_size=size,
        max_overflow=0,
        hide_parameters=True,  # metadata and e-mail addresses stay out of error texts
        connect_args={"timeout": _BUSY_SECONDS},
    )

    def connect(connection: DBAPIConnection, _record: object) -> None:
        # Transactions are begun below, never by the driver.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (*_ALL, *(_READER if readonly else _WRITER)):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")

    def roll_back(connection: DBAPIConnection, _record: object, _cause: object) -> None:
        # A statement that was cancelled lives on in the traceback, and with it a connection that
        # was closed: until garbage is collected it would keep its lock, and every write fail.
        connection.rollback()

    event.listen(engine.sync_engine, "connect", connect)
    event.listen(engine.sync_engine, "invalidate", roll_back)
    event.listen(engine.sync_engine, "begin", begin)
    return engine


def _checkpoint(connection: Connection) -> None:
    # On the driver's cursor: a checkpoint is refused inside a transaction.
    cursor = connection.connection.cursor()
    cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    cursor.close()
