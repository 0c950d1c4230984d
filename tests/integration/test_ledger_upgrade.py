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
from argparse import Namespace
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from harvester.ledger.sql import SqlLedger
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

import harvester
from harvester.domain.errors import ConfigurationError, LedgerDamaged, LedgerUnavailable
from harvester.ledger import migrate
from harvester.ledger.audit import contradictions
from harvester.ledger.database import Database
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
    (migrations / "versions" / "next.py").write_text(NEXT.format(head=migrate.head(), then=then))
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
    assert answer["before"] == migrate.head()
    backup = Path(answer["backup"])
    assert backup.parent == path.parent
    assert backup.name.startswith("ledger.db.before-next-")
    assert contents(backup) == before
    assert migrate.current(backup) == migrate.head()
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
    assert migrate.upgrade(path) == (migrate.head(), None)
    (backup,) = tmp_path.glob("ledger.db.before-next-*")
    assert contents(backup) == before


# Older ledgers.

OF_SCHEMA_0007 = """
INSERT INTO accounts (id, name, mode, scope, is_default, first_seen_at, last_seen_at, sweep_number,
        joined_sweep, next_sweep_at)
    VALUES ('client', 'Client', 'live', 'client_account', 0, 1, 2, 3, 3, 4),
        ('acct', 'Acme', 'live', 'account', 1, 1, 2, 7, 7, 4);
WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 600)
INSERT INTO orders (account_id, id, idempotency_key, status, quantity, metadata, created_at,
        first_seen_at, last_seen_at, changed_at, next_check_at, first_sweep, mode, beneficiary,
        document_digest, certificate_state, owed_since, attempts, tried_at, place)
    SELECT account.id, 'o' || n, 'INV-' || n, iif(n % 2, 'complete', 'paid'), '1.25',
        '{"n": ' || n || '}', 1000 - n, 2000 + n, 3000, 4000, iif(n % 2, NULL, 5000), 3, 'live',
        'Acme Ltd', x'00ff', iif(n % 2, 'stored', NULL), iif(n % 2, 4000, NULL), n % 3,
        iif(n % 2, 4500, NULL), n
    FROM number, accounts AS account ORDER BY n % 7, n;
INSERT INTO order_documents SELECT account_id, id, CAST(id AS BLOB) FROM orders;
INSERT INTO transitions
    SELECT account_id, id, 1, NULL, 'placed', 10, 'sweep' FROM orders UNION ALL
    SELECT account_id, id, 2, 'placed', 'paid', 20, 'webhook' FROM orders UNION ALL
    SELECT account_id, id, 3, 'paid', 'complete', 30, 'check' FROM orders WHERE status = 'complete';
INSERT INTO anomalies
    SELECT account_id, id, 'backward', 'paid', 'placed', 40, 50, 2 FROM orders WHERE place < 9;
INSERT INTO certificates
    SELECT account_id, id, 1, 'interim', id || '.' || account_id || '.pdf', hex(id) || 'AB', 9, 60,
        NULL, 70 FROM orders WHERE status = 'complete' UNION ALL
    SELECT account_id, id, 2, 'final', account_id || '/2026-01/' || id || '.v2.pdf', 'ab', 9, 60,
        '8f-AMS', NULL FROM orders WHERE status = 'complete';
"""
TOLD = {
    "orders": "SELECT accounts.id, orders.id, idempotency_key, status, quantity, metadata,"
    " created_at, orders.first_seen_at, orders.last_seen_at, changed_at, next_check_at,"
    " first_sweep, accounts.mode, orders.beneficiary, missing_since, document_digest,"
    " certificate_state, owed_since, attempts, failure_reason, place, stuck_at, document"
    " FROM orders JOIN accounts ON {account} JOIN order_documents ON {order}",
    "transitions": "SELECT account_id, order_id, seq, from_status, to_status, observed_at, source"
    " FROM {history}",
    "certificates": "SELECT account_id, order_id, version, kind, key, lower(sha256), size,"
    " stored_at, cf_ray, lost_at FROM {files}",
    "anomalies": "SELECT accounts.id, orders.id, kind, recorded, served, first_at, last_at, count"
    " FROM anomalies JOIN orders ON {odd} JOIN accounts ON {account}",
    "accounts": "SELECT id, name, mode, sweep_number, joined_sweep, next_sweep_at FROM accounts",
}
BEFORE = {
    "account": "accounts.id = orders.account_id",
    "order": "order_documents.account_id = accounts.id AND order_documents.order_id = orders.id",
    "odd": "anomalies.account_id = orders.account_id AND anomalies.order_id = orders.id",
    "history": "transitions",
    "files": "certificates",
}
SINCE = {
    "account": "accounts.key = account_key",
    "order": "order_documents.order_key = orders.key",
    "odd": "anomalies.order_key = orders.key",
    "history": "history",
    "files": "files",
}


def made_at(path: Path, revision: str, statements: str) -> None:
    """Make a ledger of an older schema with these rows in it."""
    config = Config(cmd_opts=Namespace(x=[f"url=sqlite:///{path}"]))
    config.set_main_option("script_location", str(migrate.migrations_folder()))
    command.upgrade(config, revision)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(statements)


def told(path: Path, names: dict[str, str]) -> dict[str, list[Any]]:
    """Return what a ledger tells of everything, where its schema calls things so."""
    return {what: sorted(rows(path, ask.format(**names)), key=repr) for what, ask in TOLD.items()}


async def test_a_ledger_that_named_orders_in_every_row_keeps_every_row(path: Path) -> None:
    made_at(path, "0007", OF_SCHEMA_0007)
    before = told(path, BEFORE)
    _, backup = migrate.upgrade(path)
    since = told(path, SINCE)
    assert {what: len(found) for what, found in before.items()} == {
        "orders": 1200,
        "transitions": 3000,
        "certificates": 1200,
        "anomalies": 16,
        "accounts": 2,
    }
    assert since == before
    assert rows(path, "PRAGMA foreign_key_check") == []
    assert backup is not None
    assert path.stat().st_size < 0.6 * backup.stat().st_size  # not only unused: given back
    database = Database(path)
    assert await contradictions(database) == []
    await database.close()


def test_a_ledger_with_rows_of_no_order_is_left_as_it_is(path: Path) -> None:
    stray = "INSERT INTO transitions VALUES ('acct', 'never', 1, NULL, 'paid', 10, 'sweep');"
    made_at(path, "0007", OF_SCHEMA_0007 + stray)
    before = contents(path)
    with pytest.raises(LedgerDamaged, match="3001 rows of transitions, 3000 of which belong"):
        migrate.upgrade(path)
    assert contents(path) == before


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
    assert migrate.current(path) == migrate.head()
