"""The ledger's schema: made by one chain of migrations; what is not a ledger is refused."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.dialects.sqlite import dialect

from harvester.domain.errors import ConfigurationError, LedgerDamaged, LedgerUnavailable
from harvester.ledger import migrate
from harvester.ledger.accounts import record_accounts
from harvester.ledger.database import Database
from harvester.ledger.schema import metadata
from tests.contract.ledger_cases import ACCOUNT, NOW, Kept, order
from tests.integration.migration_chain import next_chain


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


async def fill(path: Path) -> None:
    """Make a ledger with an order in it."""
    migrate.upgrade(path)
    database = Database(path)
    await record_accounts(database, [ACCOUNT], NOW)
    await Kept(database).see(order())
    await database.close()


def rows(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


# The chain and what it makes.


def test_a_missing_ledger_is_made_at_head_for_its_owner_only(path: Path) -> None:
    assert migrate.upgrade(path) == (None, None)
    assert migrate.current(path) == migrate.head()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    migrate.require_current(path)
    migrate.check_integrity(path)


@pytest.mark.parametrize("made_by", ["touch", "sqlite"])
def test_an_empty_file_becomes_a_ledger(path: Path, made_by: str) -> None:
    path.touch()
    if made_by == "sqlite":
        rows(path, "PRAGMA journal_mode = WAL")
        rows(path, "VACUUM")
    assert migrate.current(path) is None
    assert migrate.upgrade(path) == (None, None)
    assert migrate.current(path) == migrate.head()


async def test_at_head_nothing_is_written(path: Path) -> None:
    await fill(path)
    before = path.read_bytes()
    assert migrate.upgrade(path) == (migrate.head(), None)
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*.before-*"))


@pytest.mark.parametrize("end", ["", "-wal", "-shm"])
def test_what_an_upgrade_left_half_made_is_removed_at_the_next_start(path: Path, end: str) -> None:
    migrate.upgrade(path)
    left = path.with_name(f".{path.name}.before-{migrate.head()}-1.part{end}")
    left.touch()
    assert migrate.upgrade(path) == (migrate.head(), None)
    assert not left.exists()


@pytest.mark.parametrize("more", [False, True])
def test_head_and_the_revisions_are_those_of_the_chain(tmp_path: Path, more: bool) -> None:
    """They are read from the names of files; Alembic reads what is in them."""
    folder = next_chain(tmp_path / "next") if more else None
    config = Config()
    config.set_main_option("script_location", str(folder or migrate.migrations_folder()))
    chain = ScriptDirectory.from_config(config)
    assert chain.get_heads() == [migrate.head(folder)]
    oldest_first = [script.revision for script in chain.walk_revisions()][::-1]
    assert tuple(oldest_first) == migrate.revisions(folder)


def test_the_migrations_make_the_tables_that_queries_are_written_for(path: Path) -> None:
    migrate.upgrade(path)
    made = {
        table: [
            (name, kind, bool(required), number)
            for _, name, kind, required, _, number in rows(path, f"PRAGMA table_info({table})")
        ]
        for (table,) in rows(
            path,
            "SELECT name FROM sqlite_schema WHERE type = 'table'"
            " AND name NOT LIKE 'sqlite_%' AND name != 'alembic_version'",
        )
    }
    wanted = {
        table.name: [
            (
                column.name,
                # STRICT tables know INTEGER, which has the 64 bits of a BIGINT.
                column.type.compile(dialect()).replace("BIGINT", "INTEGER"),
                not column.nullable,
                [*table.primary_key].index(column) + 1 if column.primary_key else 0,
            )
            for column in table.columns
        ]
        for table in metadata.sorted_tables
    }
    assert made == wanted


# What is not a ledger.


def foreign(statement: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(statement)

    return make


def truncated(path: Path) -> None:
    migrate.upgrade(path)
    os.truncate(path, 50)


VERSION = "CREATE TABLE alembic_version (version_num TEXT NOT NULL);"


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda path: path.write_bytes(b"%PDF-1.7 " * 1000), LedgerDamaged, "not a ledger"),
        (truncated, LedgerDamaged, "not a ledger, or damaged"),
        (foreign("CREATE TABLE songs (name)"), LedgerDamaged, "not a ledger of the harvester"),
        (foreign(VERSION), LedgerDamaged, "without a schema revision"),
        (
            foreign(f"{VERSION} INSERT INTO alembic_version VALUES ('8ac1')"),
            ConfigurationError,
            "schema 8ac1 is newer than this release knows",
        ),
        (
            foreign(f"{VERSION} INSERT INTO alembic_version VALUES ('{migrate.head()}')"),
            LedgerDamaged,
            "not a ledger of the harvester",
        ),
    ],
    ids=["pdf", "truncated", "songs", "no revision", "other revision", "same revision"],
)
def test_what_is_not_a_ledger_is_refused_and_left_as_it_is(
    path: Path, make: Callable[[Path], object], kind: type[Exception], words: str
) -> None:
    make(path)
    before = path.read_bytes()
    for refuse in (migrate.upgrade, migrate.require_current):
        with pytest.raises(kind, match=words):
            refuse(path)
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*.before-*"))


def test_a_reader_without_a_ledger_hears_how_to_make_one(path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no ledger yet; `harvester run` or"):
        migrate.require_current(path)
    assert not path.exists()


def test_a_folder_where_no_ledger_can_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnavailable, match=r"missing/ledger\.db: cannot be made: No such"):
        migrate.upgrade(tmp_path / "missing" / "ledger.db")
    with pytest.raises(LedgerUnavailable, match="cannot be read"):
        migrate.upgrade(tmp_path)


def test_damage_is_found_by_reading_it_all(path: Path) -> None:
    migrate.upgrade(path)
    data = bytearray(path.read_bytes())
    data[-4096:] = b"\xde\xad" * 2048
    path.write_bytes(data)
    with pytest.raises(LedgerDamaged, match="Restore a backup, or move it away"):
        migrate.check_integrity(path)
    with pytest.raises(LedgerDamaged, match="left as it is"):
        migrate.upgrade(path)
    assert path.read_bytes() == data


CUT_SHORT = """
import os, signal, sqlite3, sys
ledger = sqlite3.connect(sys.argv[1], isolation_level=None)
ledger.execute("PRAGMA journal_mode = DELETE")
ledger.execute("PRAGMA cache_size = 1")  # so that pages are in the file before the end
ledger.execute("BEGIN IMMEDIATE")
ledger.execute("CREATE TABLE half (made)")
for _ in range(200):
    ledger.execute("INSERT INTO half VALUES (randomblob(4000))")
os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_what_a_crash_cut_short_is_rolled_back_by_the_next_start(path: Path) -> None:
    """A reader may not, and would find a ledger that cannot be read."""
    await fill(path)
    before = rows(path, "SELECT * FROM orders")
    done = subprocess.run((sys.executable, "-c", CUT_SHORT, str(path)), check=False)
    assert done.returncode == -9
    journal = path.with_name("ledger.db-journal")
    assert journal.stat().st_size > 0
    assert migrate.upgrade(path) == (migrate.head(), None)
    assert not journal.exists()
    assert rows(path, "SELECT * FROM orders") == before
    assert rows(path, "SELECT name FROM sqlite_schema WHERE name = 'half'") == []
