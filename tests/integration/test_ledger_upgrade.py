"""The ledger from one release to the next: copies, migrations, and what a wheel installs."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
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
from sqlalchemy.ext.asyncio import AsyncConnection

import harvester
from harvester.domain.errors import ConfigurationError, LedgerUnavailable
from harvester.ledger import migrate
from harvester.ledger.engine import Database
from harvester.ledger.sql import SqlLedger
from tests.contract.ledger_cases import ACCOUNT, NOW, Kept, order
from tests.needs import cannot

CHECKOUT = Path(__file__).parents[2]

UPGRADE = """
import json, sys
from pathlib import Path
from harvester.domain.errors import HarvesterError
from harvester.ledger import migrate
try:
    before, backup = migrate.upgrade(Path(sys.argv[1]))
    print(json.dumps({"from": migrate.__file__, "before": before, "backup": str(backup)}))
except HarvesterError as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error)}))
"""

NEXT = """
import os, signal
from alembic import op
import sqlalchemy as sa

revision, down_revision = "next", {head!r}

def upgrade():
    op.add_column("orders", sa.Column("note", sa.Text))
    {then}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


async def fill(path: Path) -> None:
    """Make a ledger with an order in it."""
    migrate.upgrade(path)
    database = Database(path)
    ledger = SqlLedger(database)
    await ledger.record_accounts([ACCOUNT], NOW)
    await Kept(ledger, database).see(order())
    await database.close()


def rows(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def contents(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def by_release(folder: Path, ledger: Path) -> subprocess.CompletedProcess[str]:
    """Have the harvester that lies in a folder upgrade a ledger."""
    return subprocess.run(
        (sys.executable, "-c", UPGRADE, str(ledger)),
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def next_release(folder: Path, then: str = "") -> Path:
    """Make the release after this one: the same with one migration more."""
    migrations = shutil.copytree(migrate.migrations_folder(), folder / "migrations")
    shutil.copytree(
        Path(harvester.__file__).parent,
        folder / "harvester",
        ignore=shutil.ignore_patterns("migrations", "__pycache__"),
    )
    (migrations / "versions" / "next.py").write_text(NEXT.format(head=migrate.HEAD, then=then))
    with (folder / "harvester" / "ledger" / "migrate.py").open("a") as module:
        module.write('\nREVISIONS = (*REVISIONS, "next")\nHEAD = "next"\n')
    return folder


# The next release.


async def test_an_older_ledger_is_copied_before_it_is_brought_on(
    path: Path, tmp_path: Path
) -> None:
    await fill(path)
    before = contents(path)
    done = by_release(next_release(tmp_path / "next"), path)
    answer = json.loads(done.stdout or done.stderr)
    assert answer["from"].startswith(str(tmp_path / "next"))
    assert answer["before"] == migrate.HEAD
    backup = Path(answer["backup"])
    assert backup.parent == path.parent
    assert backup.name.startswith("ledger.db.before-next-")
    assert contents(backup) == before
    assert migrate.current(backup) == migrate.HEAD
    assert rows(path, "SELECT id, status, note FROM orders") == [("o1", "placed", None)]


async def test_a_ledger_of_the_next_release_is_refused_untouched(
    path: Path, tmp_path: Path
) -> None:
    await fill(path)
    assert by_release(next_release(tmp_path / "next"), path).returncode == 0
    before = path.read_bytes()
    for refuse in (migrate.upgrade, migrate.require_current):
        with pytest.raises(ConfigurationError, match="schema next is newer than this release"):
            refuse(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.glob("*.before-*"))) == 1


async def test_an_older_ledger_is_not_read_before_it_is_brought_on(
    path: Path, tmp_path: Path
) -> None:
    await fill(path)
    release = next_release(tmp_path / "next")
    script = UPGRADE.replace("migrate.upgrade(", "None, migrate.require_current(")
    done = subprocess.run(
        (sys.executable, "-c", script, str(path)),
        env={**os.environ, "PYTHONPATH": str(release)},
        cwd=release,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    answer = json.loads(done.stdout or done.stderr)
    assert answer["error"] == "ConfigurationError"
    assert "`harvester db upgrade` brings it on" in answer["message"]


@pytest.mark.parametrize(
    ("then", "outcome"),
    [
        ('op.execute("SELECT * FROM nothing")', "LedgerUnavailable"),
        ('op.execute("DELETE FROM orders")', "LedgerDamaged"),  # leaves rows without their order
        ("os.kill(os.getpid(), signal.SIGKILL)", None),
    ],
    ids=["fails", "breaks a rule", "is killed"],
)
async def test_a_migration_that_does_not_end_leaves_the_ledger_as_it_was(
    path: Path, tmp_path: Path, then: str, outcome: str | None
) -> None:
    await fill(path)
    before = contents(path)
    done = by_release(next_release(tmp_path / "next", then), path)
    if outcome is None:
        assert done.returncode == -9
    else:
        assert json.loads(done.stdout or done.stderr)["error"] == outcome
    assert contents(path) == before
    assert migrate.upgrade(path) == (migrate.HEAD, None)
    (backup,) = tmp_path.glob("ledger.db.before-next-*")
    assert contents(backup) == before


# Copies.


async def test_a_copy_is_consistent_while_somebody_writes(path: Path, tmp_path: Path) -> None:
    await fill(path)
    database = Database(path)

    async def pair(connection: AsyncConnection) -> None:
        for column in ("sweep_number", "joined_sweep"):
            await connection.execute(text(f"UPDATE accounts SET {column} = {column} + 1"))

    async def write_on() -> None:
        while True:
            await database.write(pair)

    writer = asyncio.create_task(write_on())
    numbers = []
    for number in range(5):
        copy = tmp_path / f"copy{number}.db"
        await asyncio.to_thread(migrate.backup, path, copy)
        ((first, second),) = rows(copy, "SELECT sweep_number, joined_sweep FROM accounts")
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


async def test_a_copy_never_takes_the_place_of_a_file(path: Path, tmp_path: Path) -> None:
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
    done = by_release(installed, path)
    answer = json.loads(done.stdout or done.stderr)
    assert answer["from"].startswith(str(installed))
    assert migrate.current(path) == migrate.HEAD
