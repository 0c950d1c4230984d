"""Connections to the SQLite ledger: one that writes, some that only read.

SQLite before 3.51.3 can lose pages when two connections write or checkpoint at the same moment,
so a process that holds the ledger's lock has one writing connection and everyone else reads.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from sqlalchemy import URL, Connection, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from harvester.domain.errors import HarvesterError, LedgerDamaged, LedgerUnavailable
from harvester.ledger.location import identity, require_same
from harvester.ledger.migrate import require_current

T = TypeVar("T")

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

    def connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions are begun below, never by the driver
        cursor = connection.cursor()
        for pragma in (*_ALL, *(_READER if readonly else _WRITER)):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")

    event.listen(engine.sync_engine, "connect", connect)
    event.listen(engine.sync_engine, "begin", begin)
    return engine


class Database:
    """The ledger's connections; a reader opens no writing one.

    Every statement's fault leaves as ``LedgerUnavailable`` or ``LedgerDamaged``.
    """

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        self.path = path
        self._opened = identity(path)
        self._reader = _engine(path, readonly=True, size=2)
        self._writer = None if readonly else _engine(path, readonly=False, size=1)
        self._lock = asyncio.Lock()
        self._writes: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Open a consistent view; keep it short, since an open view holds the WAL back."""
        with _translated():
            async with self._reader.connect() as connection, connection.begin():
                yield connection

    async def write(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run ``work`` in one transaction, alone; durable when this returns.

        A caller that is cancelled leaves the transaction to finish or fail whole.
        """
        task = asyncio.create_task(self._transaction(work), name="ledger-write")
        self._writes.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._writes.discard(task)
        if not task.cancelled():
            task.exception()  # seen: a caller that was cancelled is not there to see it

    async def _transaction(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        if self._writer is None:
            raise LedgerUnavailable(f"{self.path}: opened for reading only")
        async with self._lock:
            require_same(self.path, self._opened)
            with _translated():
                async with self._writer.begin() as connection:
                    return await work(connection)

    async def checkpoint(self) -> None:
        """Fold the write-ahead log into the database and shrink it."""
        if self._writer is None:
            return
        async with self._lock:
            with _translated():
                async with self._writer.connect() as connection:
                    await connection.run_sync(_checkpoint)

    async def close(self) -> None:
        """Let running writes end, then close; a writer leaves an emptied WAL behind."""
        await asyncio.gather(*self._writes, return_exceptions=True)
        await self._reader.dispose()
        if self._writer is not None:  # last, so that SQLite folds the WAL into the database
            await self._writer.dispose()


def _checkpoint(connection: Connection) -> None:
    # On the driver's cursor: a checkpoint is refused inside a transaction.
    cursor = connection.connection.cursor()
    cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    cursor.close()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise translate(error) from error


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
