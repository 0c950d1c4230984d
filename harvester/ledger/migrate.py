"""Make, upgrade and copy the ledger's file.

Alembic runs the chain in ``migrations/`` on a connection of its own, with foreign keys off (its
batch mode would delete child rows) and checked afterwards, in one transaction.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harvester.domain.errors import ConfigurationError, LedgerDamaged, LedgerUnavailable
from harvester.files import sync_folder

_READ_WHOLE_AT_START = 256 * 2**20
"""Bytes. SQLite reads a ledger this large, some 230 000 orders, in under half a second."""

_WHAT_TO_DO = (
    "left as it is. Restore a backup, or move it away and let a new ledger be built from Lune and "
    "the archive"
)


@functools.cache
def revisions(folder: Path | None = None) -> tuple[str, ...]:
    """Return the chain's revisions, oldest first; any other one is of a newer release.

    ``folder`` holds the chain, by default the installed one; so it is in all of this module. Read
    from the files' names: Alembic, which reads the files, takes long to import.
    """
    files = ((folder or migrations_folder()) / "versions").glob("[0-9]*_*.py")
    return tuple(sorted(file.name.partition("_")[0] for file in files))


def head(folder: Path | None = None) -> str:
    """Return the schema that this release works with."""
    return revisions(folder)[-1]


def current(path: Path, folder: Path | None = None) -> str | None:
    """Return the revision of the ledger at ``path``; None when there is no ledger yet."""
    if not path.exists() or path.stat().st_size == 0:
        return None
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        ) as connection:
            tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if tables == 0:
                return None
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            if row is not None and row[0] in revisions(folder):
                # Other programs number their schemas like that too.
                connection.execute("SELECT 1 FROM transitions, rejected_orders LIMIT 0")
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            raise LedgerDamaged(f"{path}: a database, but not a ledger of the harvester") from None
        raise LedgerUnavailable(f"{path}: cannot be read: {error}") from error
    except sqlite3.DatabaseError as error:
        raise LedgerDamaged(f"{path}: not a ledger, or damaged ({error}); {_WHAT_TO_DO}") from error
    if row is None:
        raise LedgerDamaged(f"{path}: a ledger without a schema revision")
    return str(row[0])


def require_current(path: Path, folder: Path | None = None) -> None:
    """Refuse a ledger that a reader cannot use, with what to do about it."""
    revision = current(path, folder)
    if revision is None:
        raise ConfigurationError(
            f"{path}: no ledger yet; `harvester run` or `harvester db upgrade` makes it"
        )
    _refuse_newer(path, revision, folder)
    if revision != head(folder):
        raise ConfigurationError(
            f"{path}: schema {revision}, older than {head(folder)}; `harvester db upgrade` "
            "brings it on"
        )


def check_integrity(path: Path) -> None:
    """Have SQLite read the whole ledger; ``LedgerDamaged`` when something is wrong with it."""
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        ) as connection:
            answer = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.DatabaseError as error:
        raise LedgerDamaged(f"{path}: damaged ({error}); {_WHAT_TO_DO}") from error
    if answer != "ok":
        raise LedgerDamaged(f"{path}: damaged ({answer}); {_WHAT_TO_DO}")


def _refuse_newer(path: Path, revision: str, folder: Path | None) -> None:
    if revision not in revisions(folder):
        raise ConfigurationError(
            f"{path}: schema {revision} is newer than this release knows ({head(folder)}); install "
            "the release that wrote it, or restore the backup made before its upgrade"
        )


def upgrade(path: Path, folder: Path | None = None) -> tuple[str | None, Path | None]:
    """Bring the ledger to :func:`head`; return the revision before and the backup made.

    An empty or missing ledger is made, an older one is copied beside itself first. Refused before
    anything is written: a newer one (``ConfigurationError``) and a damaged one
    (``LedgerDamaged``; one too large to be read whole at every start is left to ``verify``).
    The caller holds the lock.
    """
    settle(path)
    before = current(path, folder)
    if before is not None:
        if path.stat().st_size <= _READ_WHOLE_AT_START:
            check_integrity(path)
        _refuse_newer(path, before, folder)
    for left in path.parent.glob(f".{path.name}.before-*.part*"):  # by an upgrade before
        with contextlib.suppress(OSError):
            left.unlink()
    if before == head(folder):
        return before, None
    backup_path = None
    if before is not None:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        backup_path = path.with_name(f"{path.name}.before-{head(folder)}-{stamp}")
        backup(path, backup_path)
    if not path.exists():
        _create(path)
    try:
        _run_alembic(path, folder or migrations_folder())
    except sqlite3.Error as error:
        raise LedgerUnavailable(f"{path}: could not be upgraded: {error}") from error
    _shrink(path)
    return before, backup_path


def settle(path: Path) -> None:
    """Let SQLite roll back what a crash cut short: a reader may not. The caller holds the lock."""
    if not path.with_name(f"{path.name}-journal").exists():
        return
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as ledger:
            ledger.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        raise LedgerUnavailable(f"{path}: cannot be opened: {error}") from error


def _create(path: Path) -> None:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        sync_folder(path.parent)
    except OSError as error:
        raise LedgerUnavailable(f"{path}: cannot be made: {error.strerror}") from error


def _run_alembic(path: Path, folder: Path) -> None:
    from alembic import command  # 0.6 s of imports, needed once per release
    from alembic.config import Config
    from sqlalchemy import URL, create_engine, event
    from sqlalchemy.exc import DBAPIError

    engine = create_engine(URL.create("sqlite", database=str(path)), hide_parameters=True)

    def connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")

    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, head(folder))
            broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
            if broken:
                raise LedgerDamaged(f"{path}: {len(broken)} rows without the row they belong to")
    except DBAPIError as error:
        raise LedgerUnavailable(f"{path}: could not be upgraded: {error.orig}") from error
    finally:
        engine.dispose()


def _shrink(path: Path) -> None:
    """Give back the space of a ledger that is mostly unused since its tables were made anew."""
    # Where there is no room for it the ledger stays as large as it is, and is whole all the same.
    with contextlib.suppress(sqlite3.OperationalError), closing(sqlite3.connect(path)) as ledger:
        (pages,) = ledger.execute("PRAGMA page_count").fetchone()
        (unused,) = ledger.execute("PRAGMA freelist_count").fetchone()
        if 2 * unused > pages:
            ledger.execute("PRAGMA synchronous = FULL")
            ledger.execute("VACUUM")


def migrations_folder() -> Path:
    """Return the migration chain: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "migrations", package.parent / "migrations"):
        if (folder / "env.py").is_file():
            return folder
    raise ConfigurationError("the migrations are not installed; install the harvester again")


def backup(path: Path, target: Path) -> None:
    """Copy a ledger consistently and durably, also while a daemon writes it.

    ``target`` must not exist. SQLite's online backup copies; the file appears under its name only
    when it is whole and on disk.
    """
    if target.exists():
        raise ConfigurationError(f"{target}: exists already; name a new file")
    partial = target.with_name(f".{target.name}.part")
    try:
        partial.unlink(missing_ok=True)
        os.close(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with (
            closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(partial)) as copy,
        ):
            source.backup(copy)
            (mode,) = copy.execute("PRAGMA journal_mode = DELETE").fetchone()
            if mode != "delete":  # SQLite does not raise when it cannot
                raise LedgerUnavailable(f"{target}: the copy stays in {mode} mode")
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        os.link(partial, target)
        sync_folder(target.parent)
    except (sqlite3.Error, OSError) as error:
        raise LedgerUnavailable(f"{target}: no backup could be made: {error}") from error
    finally:
        with contextlib.suppress(OSError):  # what stays is removed at the next start
            partial.unlink(missing_ok=True)
