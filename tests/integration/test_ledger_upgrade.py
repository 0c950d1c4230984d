"""The ledger from one release to the next: copies, migrations, and what a wheel installs.

There is one revision so far; the next one is made here, in a copy of the chain.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import sqlite3
import stat
import subprocess
import sys
import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from harvester.domain.errors import ConfigurationError, LedgerDamaged, LedgerUnavailable
from harvester.domain.events import EventFilter
from harvester.ledger import migrate
from harvester.ledger.accounts import record_accounts
from harvester.ledger.audit import contradictions
from harvester.ledger.database import Database
from harvester.ledger.outbox import due_deliveries, register_receivers
from tests.contract.ledger_cases import ACCOUNT, CLIENT, NOW, Kept, order, stored
from tests.integration.migration_chain import NEXT, next_chain
from tests.needs import cannot

CHECKOUT = Path(__file__).parents[2]

UPGRADE = """
import json, sys
from pathlib import Path
from harvester.domain.errors import HarvesterError
from harvester.ledger import migrate
chain = Path(sys.argv[2]) if len(sys.argv) > 2 else None
try:
    before, backup = migrate.upgrade(Path(sys.argv[1]), chain)
    print(json.dumps({"from": migrate.__file__, "before": before, "backup": str(backup)}))
except HarvesterError as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error)}))
"""

KILL_ONCE = 'os.environ.get("KILL") and os.kill(os.getpid(), signal.SIGKILL)'
"""A power cut at the end of the migration, in a process that is to have one."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


async def fill(path: Path) -> None:
    """Make a ledger with something in every table that refers to another."""
    migrate.upgrade(path)
    database = Database(path)
    await record_accounts(database, [ACCOUNT, CLIENT], NOW)
    await register_receivers(database, {"billing": EventFilter()})
    kept = Kept(database)
    await kept.see(order())
    await kept.see(order("o2", "complete"), order("o3", "paid"), account=CLIENT)
    await kept.see(order("o3", "placed"), account=CLIENT)
    await kept.store(stored(path="client/o2.pdf"), "o2", account=CLIENT)
    await database.close()


def rows(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def contents(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def of_every_table(path: Path) -> dict[str, list[Any]]:
    """Return the rows of every table of the harvester's."""
    tables = rows(
        path,
        "SELECT name FROM sqlite_schema WHERE type = 'table'"
        " AND name NOT LIKE 'sqlite_%' AND name != 'alembic_version'",
    )
    return {name: rows(path, f"SELECT * FROM {name}") for (name,) in tables}


def by_process(
    folder: Path, ledger: Path, chain: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Have the harvester that lies in a folder upgrade a ledger, in a process of its own."""
    return subprocess.run(
        (sys.executable, "-c", UPGRADE, str(ledger), *([str(chain)] if chain else [])),
        env={
            **os.environ,
            "PYTHONPATH": str(folder),
            "PYTHONDONTWRITEBYTECODE": "1",
            **environment,
        },
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# The next release.


def test_a_chain_is_known_by_its_files(tmp_path: Path) -> None:
    chain = next_chain(tmp_path / "next")
    assert migrate.revisions(chain) == (*migrate.revisions(), NEXT)
    assert migrate.head(chain) == NEXT


async def test_an_older_ledger_is_copied_before_it_is_brought_on(
    path: Path, tmp_path: Path
) -> None:
    await fill(path)
    before = contents(path)
    chain = next_chain(tmp_path / "next")
    was, backup = migrate.upgrade(path, chain)
    assert was == migrate.head()
    assert backup is not None
    assert backup.parent == path.parent
    assert backup.name.startswith(f"ledger.db.before-{NEXT}-")
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    assert contents(backup) == before
    assert migrate.current(backup) == migrate.head()
    assert migrate.current(path, chain) == NEXT
    migrate.require_current(path, chain)
    assert rows(path, "SELECT id, status, note FROM orders WHERE account_key = 1") == [
        ("o1", "placed", None)
    ]
    # Once more changes nothing and copies nothing.
    since = path.read_bytes()
    assert migrate.upgrade(path, chain) == (NEXT, None)
    assert path.read_bytes() == since
    assert list(tmp_path.glob("ledger.db.before-*")) == [backup]


async def test_a_copy_serves_the_release_before(path: Path, tmp_path: Path) -> None:
    await fill(path)
    before = of_every_table(path)
    _, backup = migrate.upgrade(path, next_chain(tmp_path / "next"))
    assert backup is not None
    backup.replace(path)  # what an operator does who goes back
    assert migrate.upgrade(path) == (migrate.head(), None)
    assert of_every_table(path) == before


async def test_a_ledger_is_made_at_the_newest_revision_of_its_chain(
    path: Path, tmp_path: Path
) -> None:
    chain = next_chain(tmp_path / "next")
    assert migrate.upgrade(path, chain) == (None, None)
    assert migrate.current(path, chain) == NEXT
    assert rows(path, "SELECT note FROM orders") == []
    assert not list(tmp_path.glob("ledger.db.before-*"))


async def test_a_ledger_of_the_next_release_is_refused_untouched(
    path: Path, tmp_path: Path
) -> None:
    await fill(path)
    migrate.upgrade(path, next_chain(tmp_path / "next"))
    before = path.read_bytes()
    for refuse in (migrate.upgrade, migrate.require_current):
        with pytest.raises(ConfigurationError, match=f"schema {NEXT} is newer than this release"):
            refuse(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.glob("*.before-*"))) == 1


async def test_an_older_ledger_is_not_read_before_it_is_brought_on(
    path: Path, tmp_path: Path
) -> None:
    await fill(path)
    with pytest.raises(ConfigurationError, match="`harvester db upgrade` brings it on"):
        migrate.require_current(path, next_chain(tmp_path / "next"))


async def test_an_older_ledger_that_is_damaged_is_left_as_it_is(path: Path, tmp_path: Path) -> None:
    await fill(path)
    data = bytearray(path.read_bytes())
    data[-4096:] = b"\xde\xad" * 2048
    path.write_bytes(data)
    with pytest.raises(LedgerDamaged, match="left as it is"):
        migrate.upgrade(path, next_chain(tmp_path / "next"))
    assert path.read_bytes() == data
    assert not list(tmp_path.glob("*.before-*"))


@pytest.mark.parametrize(
    ("then", "kind", "words"),
    [
        ('op.execute("SELECT * FROM nothing")', LedgerUnavailable, "could not be upgraded"),
        # Leaves rows without the order they belong to.
        ('op.execute("DELETE FROM orders")', LedgerDamaged, "rows without the row they belong to"),
        (
            'op.execute("INSERT INTO transitions VALUES (99, 1, 1, 0)")',
            LedgerDamaged,
            "1 rows without the row they belong to",
        ),
    ],
    ids=["fails", "breaks a rule", "breaks it once"],
)
async def test_a_migration_that_fails_leaves_the_ledger_as_it_was(
    path: Path, tmp_path: Path, then: str, kind: type[Exception], words: str
) -> None:
    await fill(path)
    before = contents(path)
    with pytest.raises(kind, match=words):
        migrate.upgrade(path, next_chain(tmp_path / "next", then))
    assert contents(path) == before
    assert migrate.upgrade(path) == (migrate.head(), None)
    (backup,) = tmp_path.glob(f"ledger.db.before-{NEXT}-*")
    assert contents(backup) == before


async def test_a_migration_that_is_killed_leaves_the_ledger_as_it_was_and_goes_on_at_the_next_start(
    path: Path, tmp_path: Path
) -> None:
    await fill(path)
    before, of_tables = contents(path), of_every_table(path)
    chain = next_chain(tmp_path / "next", KILL_ONCE)
    assert by_process(CHECKOUT, path, chain, KILL="1").returncode == -9
    assert contents(path) == before
    assert migrate.upgrade(path) == (migrate.head(), None)  # the release before can go on, too
    (first,) = tmp_path.glob(f"ledger.db.before-{NEXT}-*")
    assert contents(first) == before
    left = path.with_name(f".{path.name}.before-{NEXT}-1.part")
    left.touch()

    was, second = migrate.upgrade(path, chain)
    assert was == migrate.head()
    assert second is not None
    assert contents(second) == contents(first) == before
    assert migrate.current(path, chain) == NEXT
    assert not left.exists()
    since = of_every_table(path)
    assert since.pop("orders") == [(*row, None) for row in of_tables.pop("orders")]
    assert since == of_tables


ANEW = """
    op.execute("CREATE TABLE anew (name TEXT PRIMARY KEY NOT NULL, types TEXT, accounts TEXT,"
               " parked_reason TEXT) STRICT")
    op.execute("INSERT INTO anew SELECT * FROM receivers")
    op.execute("DROP TABLE receivers")
    op.execute("ALTER TABLE anew RENAME TO receivers")
"""


async def test_a_table_that_is_made_anew_keeps_the_rows_that_refer_to_it(
    path: Path, tmp_path: Path
) -> None:
    """With foreign keys on, dropping the old table would delete every delivery with it."""
    await fill(path)
    before = of_every_table(path)
    assert len(before["deliveries"]) > 3
    migrate.upgrade(path, next_chain(tmp_path / "next", ANEW.strip()))
    since = of_every_table(path)
    del before["orders"], since["orders"]
    assert since == before
    assert rows(path, "PRAGMA foreign_key_check") == []
    database = Database(path)
    found = await due_deliveries(database, "billing", NOW, 100)
    assert len(found) == len(before["deliveries"])
    assert await contradictions(database) == []
    await database.close()


EMPTIED = "op.execute(\"UPDATE orders SET metadata = '{}'\")"


@pytest.mark.parametrize(("then", "shrinks"), [(EMPTIED, True), ("", False)])
async def test_a_ledger_that_is_mostly_unused_since_gives_its_space_back(
    path: Path, tmp_path: Path, then: str, shrinks: bool
) -> None:
    await fill(path)
    database = Database(path)
    for number in range(40):
        await Kept(database).see(order(f"big{number}", metadata={"note": "x" * 100_000}))
    await database.close()
    _, backup = migrate.upgrade(path, next_chain(tmp_path / "next", then))
    assert backup is not None
    if shrinks:
        assert path.stat().st_size < 0.5 * backup.stat().st_size
    else:
        assert path.stat().st_size >= backup.stat().st_size
    assert rows(path, "PRAGMA freelist_count") == [(0,)]
    assert rows(path, "SELECT count(*) FROM orders") == [(43,)]
    assert rows(path, "PRAGMA journal_mode") == [("wal",)]
    migrate.check_integrity(path)


# Copies.


async def test_a_copy_is_consistent_while_somebody_writes(path: Path, tmp_path: Path) -> None:
    await fill(path)
    database = Database(path)

    async def write_on() -> None:
        while True:
            async with database.transaction() as tx:
                for column in ("sweep_number", "joined_sweep"):
                    await tx.execute(text(f"UPDATE accounts SET {column} = {column} + 1"))

    writer = asyncio.create_task(write_on())
    numbers = []
    for number in range(5):
        copy = tmp_path / f"copy{number}.db"
        await asyncio.to_thread(migrate.backup, path, copy)
        ((first, second),) = set(rows(copy, "SELECT sweep_number, joined_sweep FROM accounts"))
        assert first == second
        assert stat.S_IMODE(copy.stat().st_mode) == 0o600
        migrate.check_integrity(copy)
        migrate.require_current(copy)
        numbers.append(first)
    writer.cancel()
    await asyncio.gather(writer, return_exceptions=True)
    await database.close()
    assert numbers == sorted(numbers)
    assert numbers[-1] > 0


async def test_a_copy_never_replaces_a_file(path: Path, tmp_path: Path) -> None:
    await fill(path)
    target = tmp_path / "copy.db"
    target.write_text("precious")
    with pytest.raises(ConfigurationError, match="exists already"):
        migrate.backup(path, target)
    assert target.read_text() == "precious"
    dangling = tmp_path / "dangling.db"
    dangling.symlink_to(tmp_path / "elsewhere.db")
    with pytest.raises((ConfigurationError, LedgerUnavailable)):
        migrate.backup(path, dangling)
    assert not (tmp_path / "elsewhere.db").exists()


async def test_a_copy_that_cannot_be_made_leaves_nothing(path: Path, tmp_path: Path) -> None:
    await fill(path)
    with pytest.raises(LedgerUnavailable, match="no backup could be made"):
        migrate.backup(path, tmp_path / "missing" / "copy.db")
    with pytest.raises(LedgerUnavailable, match="no backup could be made"):
        migrate.backup(tmp_path / "none.db", tmp_path / "copy.db")
    assert not list(tmp_path.glob("*copy*"))
    assert not (tmp_path / "none.db").exists()


# What is installed.


def test_the_wheel_has_the_migrations_and_makes_a_ledger_with_them(
    path: Path, tmp_path: Path
) -> None:
    if importlib.util.find_spec("hatchling") is None:
        cannot("hatchling is not installed")
    if not (CHECKOUT / "pyproject.toml").is_file():
        cannot("the tests do not lie in a checkout")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path))
    subprocess.run(
        (sys.executable, "-m", "pip", "wheel", *options, str(CHECKOUT)),
        check=True,
        capture_output=True,
        timeout=120,
    )
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    mine = {str(file.relative_to(CHECKOUT)) for file in (CHECKOUT / "migrations").rglob("*.py")}
    shipped = {
        str(file.relative_to(installed / "harvester"))
        for file in (installed / "harvester" / "migrations").rglob("*.py")
    }
    assert shipped == mine
    done = by_process(installed, path)
    answer = json.loads(done.stdout or done.stderr)
    assert answer["from"].startswith(str(installed))
    assert migrate.current(path) == migrate.head()
