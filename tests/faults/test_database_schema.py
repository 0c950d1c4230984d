"""The ledger's schema: an upgrade cut short, a million rows, statements that find their index."""

from __future__ import annotations

import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine

from harvester.domain.orders import EVERYTHING
from harvester.ledger import migrate
from harvester.ledger.accounts import due_accounts, parked_accounts, read_accounts
from harvester.ledger.certificates import (
    count_missing_certificates,
    due_certificates,
    missing_certificates,
)
from harvester.ledger.database import Database
from harvester.ledger.hints import hinted_accounts
from harvester.ledger.schedule import due_checks, earliest_due, open_orders
from tests.acceptance.harness import Ran
from tests.faults import next_release
from tests.faults.catalogue import fault
from tests.faults.disks import run_with_fault
from tests.faults.next_release import go_back, next_migrations
from tests.faults.scene import Scene

ORDERS = 20_000
NOW = datetime(2026, 3, 1, tzinfo=UTC)
KILLS = 4


@fault("D13")
async def test_an_upgrade_killed_at_any_call_leaves_the_old_ledger_or_the_new_one(
    scene: Scene,
) -> None:
    scene.order("placed")
    await scene.drain()
    ledger = scene.home.ledger
    oldest = shutil.copyfile(ledger, scene.home.folder / "oldest.db")
    migrations = next_migrations(scene.home.folder / "migrations")
    upgrade = (sys.executable, next_release.__file__)

    async def run(*fault: str) -> tuple[Ran, dict[str, Any]]:
        return await run_with_fault(scene, *fault, arguments=(ledger, migrations), program=upgrade)

    whole, counted = await run()
    assert whole.code == 0, whole.err
    revisions = set()
    for kill in range(KILLS):
        shutil.rmtree(ledger.parent)
        ledger.parent.mkdir(mode=0o700)
        shutil.copyfile(oldest, ledger)
        at = 1 + kill * (counted["calls"] - 1) // (KILLS - 1)
        ran, _ = await run(f"--at={at}", "--fault=KILL")
        assert ran.code == -9
        migrate.settle(ledger)  # as the next start does first
        revisions.add(migrate.current(ledger, migrations))
        migrate.check_integrity(ledger)
        for backup in ledger.parent.glob("[!.]*.before-*"):
            assert migrate.current(backup) == migrate.head()
    assert revisions == {migrate.head(), migrate.head(migrations)}
    shutil.copyfile(oldest, ledger)
    (ledger.parent / f".{ledger.name}.before-x.part").touch()
    ledger.chmod(0o600)
    went_on, _ = await run()
    assert went_on.code == 0, went_on.err
    assert migrate.current(ledger, migrations) == migrate.head(migrations)
    go_back(ledger)
    scene.order()
    assert (await scene.drain()).collected.stored == 1
    assert not list(ledger.parent.glob("*.part*"))


def fill(ledger: Path) -> None:
    """Write years of orders in five accounts: most complete and stored, one in fifty open."""
    accounts = [(f"acct{number}",) for number in range(5)]
    with closing(sqlite3.connect(ledger, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO accounts (id, name, mode, scope, is_default, first_seen_at, last_seen_at,"
            " sweep_number, joined_sweep, next_sweep_at)"
            " VALUES (?, 'Acme', 'test', 'account', 0, 0, 0, 1, 1, 0)",
            accounts,
        )
        connection.execute(
            "WITH RECURSIVE number(n) AS"
            " (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < ?)"
            " INSERT INTO orders (account_key, id, status, metadata, created_at, first_seen_at,"
            " last_seen_at, changed_at, next_check_at, first_sweep, document_digest,"
            " certificate_state, attempts)"
            " SELECT 1 + n % 5, 'ORDER' || n, iif(n % 50, 'complete', 'paid'), '{}',"
            " n * 1000000, 0, 0, 0, iif(n % 50, NULL, ?), 1, x'00',"
            " iif(n % 50, iif(n % 501, 'stored', 'owed'), NULL), 0 FROM number",
            (ORDERS, round((NOW + timedelta(days=1)).timestamp() * 1e6)),
        )
        connection.execute("INSERT INTO folders (path) VALUES ('')")
        connection.execute(
            "INSERT INTO certificates (order_key, version, kind, folder_key, name, sha256, size,"
            " stored_at) SELECT key, 1, 'final', 1, id || '.pdf', x'', 1, 0 FROM orders"
            " WHERE certificate_state = 'stored'"
        )
        connection.execute("COMMIT")


@contextmanager
def statements() -> Iterator[list[tuple[str, Any]]]:
    """Collect what is executed meanwhile, with its parameters."""
    found: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith(("SELECT", "UPDATE", "INSERT", "DELETE", "WITH")):
            found.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(Engine, "before_cursor_execute", note)


async def work_a_round(database: Database) -> None:
    """Ask what a daemon asks at every turn, with nothing due."""
    horizon = NOW + timedelta(days=30)
    await due_accounts(database, NOW, horizon)
    await hinted_accounts(database, NOW)
    await due_checks(database, NOW, horizon)
    await parked_accounts(database)
    accounts = [account.id for account in await read_accounts(database)]
    await due_checks(database, NOW, horizon, accounts)
    await due_certificates(database, NOW, horizon, 200)
    await earliest_due(database, EVERYTHING)
    await count_missing_certificates(database, EVERYTHING)
    await missing_certificates(database, EVERYTHING)
    await open_orders(database, EVERYTHING)


@fault("D18")
async def test_a_turn_of_the_daemon_reads_what_is_due_and_not_years_of_orders(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.db"
    migrate.upgrade(path)
    fill(path)
    database = Database(path, readonly=True)
    with statements() as asked:
        await work_a_round(database)
    await database.close()
    assert len(asked) > 8
    with closing(sqlite3.connect(path)) as connection:
        indices = connection.execute("SELECT name, partial FROM pragma_index_list('orders')")
        partial = tuple(name for name, of_few in indices if of_few)
        wasteful = {
            statement: plan
            for statement, parameters in asked
            if not _reads_few(plan := _plan(connection, statement, parameters), partial)
        }
    assert wasteful == {}


def _plan(connection: sqlite3.Connection, statement: str, parameters: Any) -> list[str]:
    explained = connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
    return [step[3] for step in explained]


def _reads_few(plan: list[str], partial: tuple[str, ...]) -> bool:
    """Tell whether no step reads all orders or what hangs on them; accounts are few."""
    whole = ("SCAN orders", "SCAN transitions", "SCAN certificates", "SCAN order_documents")
    listing = "INDEX orders_listing (account_key=?)"  # all of an account's orders
    return not any(
        (step.startswith(whole) and not step.endswith(partial)) or step.endswith(listing)
        for step in plan
    )
