"""What the SQLite ledger promises beyond any ledger: durable, strict, one writer, whole writes."""

from __future__ import annotations

import asyncio
import gc
import random
import shutil
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from harvester.domain.errors import HarvesterError, LedgerDamaged, LedgerUnavailable
from harvester.ledger import migrate
from harvester.ledger.accounts import read_accounts, record_accounts
from harvester.ledger.certificates import read_certificates
from harvester.ledger.database import Database
from harvester.ledger.queries import stream_orders
from harvester.ledger.schema import metadata
from tests.contract.ledger_cases import ACCOUNT, CLIENT, NOW, Kept, order, stored


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("empty") / "ledger.db"
    migrate.upgrade(path)
    return path


@pytest.fixture
def path(empty: Path, tmp_path: Path) -> Path:
    return Path(shutil.copyfile(empty, tmp_path / "ledger.db"))


@pytest.fixture
async def kept(path: Path) -> AsyncIterator[Kept]:
    database = Database(path)
    await record_accounts(database, [ACCOUNT], NOW)
    yield Kept(database)
    await database.close()


async def written(database: Database, statement: str) -> Any:
    """Run one statement in a transaction of its own; return the first value it gives."""
    async with database.transaction() as tx:
        result = await tx.execute(text(statement))
        return result.scalar() if result.returns_rows else None


async def read(database: Database, statement: str) -> Any:
    async with database.read() as connection:
        return (await connection.execute(text(statement))).scalar()


async def refusal(work: Any) -> HarvesterError:
    with pytest.raises(HarvesterError) as refused:
        await work
    return refused.value


# How it is opened.


@pytest.mark.parametrize(
    ("pragma", "value"),
    [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("trusted_schema", 0)],
)
async def test_the_writing_connection_is_durable_and_keeps_the_rules(
    kept: Kept, pragma: str, value: object
) -> None:
    assert await written(kept.database, f"PRAGMA {pragma}") == value


async def test_every_table_is_strict(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        tables = connection.execute(
            "SELECT name, strict FROM pragma_table_list WHERE type = 'table'"
            " AND schema = 'main' AND name NOT LIKE 'sqlite_%' AND name != 'alembic_version'"
        ).fetchall()
    assert {name for name, _ in tables} == set(metadata.tables)
    assert {name for name, strict in tables if not strict} == set()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE accounts SET sweep_number = 'many'",
        "UPDATE accounts SET name = NULL",
        "UPDATE orders SET created_at = '2026-03-01'",
        "UPDATE orders SET certificate_state = 'lost'",
        "UPDATE orders SET account_key = 99",
        "UPDATE orders SET id = 'o1'",
        "UPDATE moves SET source = 'guess'",
        "UPDATE transitions SET seq = 0",
        "UPDATE transitions SET move_key = 99",
        "INSERT INTO transitions VALUES (99, 1, 1, 0)",
        "UPDATE certificates SET kind = 'draft'",
        "UPDATE certificates SET version = 0",
        "INSERT INTO certificates SELECT 2, 1, kind, 1, name, x'', 1, 0, '', 0 FROM certificates",
        "DELETE FROM orders",
        "DELETE FROM accounts",
    ],
)
async def test_what_breaks_a_rule_of_the_ledger_is_refused_whole(
    kept: Kept, statement: str
) -> None:
    await kept.see(order("o1"), order("o2"))
    await kept.store(stored())
    assert isinstance(await refusal(written(kept.database, statement)), LedgerDamaged)
    assert await kept.chain() == [(None, "placed")]
    assert await read_certificates(kept.database, "acct", "o1") == [stored()]


@pytest.mark.parametrize("readonly", [False, True])
async def test_a_reader_cannot_write(kept: Kept, path: Path, readonly: bool) -> None:
    database = Database(path, readonly=True) if readonly else kept.database

    async def sneak() -> None:
        async with database.read() as connection:
            await connection.execute(text("UPDATE accounts SET name = 'other'"))

    assert "readonly" in str(await refusal(sneak()))
    if readonly:
        assert "opened for reading only" in str(await refusal(written(database, "SELECT 1")))
        await database.close()
    assert await read_accounts(kept.database) == [ACCOUNT]


async def test_a_view_stays_as_it_was_while_others_write(kept: Kept) -> None:
    async with kept.database.read() as connection:
        count = text("SELECT count(*) FROM accounts")
        assert await connection.scalar(count) == 1
        await record_accounts(kept.database, [CLIENT], NOW)
        assert await connection.scalar(count) == 1
    assert await read(kept.database, "SELECT count(*) FROM accounts") == 2


async def test_a_ledger_may_lie_under_any_name(empty: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a b%20c?d#e&f=g+h'i\"ü"
    folder.mkdir()
    path = folder / "ledger?mode=memory.db"
    assert migrate.upgrade(path) == (None, None)
    assert migrate.current(path) == migrate.head()
    database = Database(path)
    await record_accounts(database, [ACCOUNT], NOW)
    await database.close()
    migrate.backup(path, folder / "copy?.db")
    assert {"copy?.db", path.name} <= {file.name for file in folder.iterdir()}
    assert [file.name for file in tmp_path.iterdir()] == [folder.name]


async def test_a_missing_ledger_is_not_made_by_opening_it(tmp_path: Path) -> None:
    database = Database(tmp_path / "ledger.db")
    for work in (written(database, "SELECT 1"), read(database, "SELECT 1")):
        assert isinstance(await refusal(work), LedgerUnavailable)
    await database.close()
    assert list(tmp_path.iterdir()) == []
    # The driver's threads say good-bye to this loop; it must not be gone by then.
    for thread in threading.enumerate():
        if "_connection_worker_thread" in thread.name:
            await asyncio.to_thread(thread.join, 10)


# One writer, whole writes.


async def test_writes_at_once_happen_one_after_the_other(kept: Kept) -> None:
    async def count_up() -> None:
        async with kept.database.transaction() as tx:
            number = await tx.scalar(text("SELECT sweep_number FROM accounts"))
            await asyncio.sleep(0)
            await tx.execute(text("UPDATE accounts SET sweep_number = :n"), {"n": number + 1})

    await asyncio.gather(*(count_up() for _ in range(60)))
    assert await read(kept.database, "SELECT sweep_number FROM accounts") == 60


async def test_a_write_that_fails_leaves_nothing_and_the_next_one_works(kept: Kept) -> None:
    async def broken() -> None:
        async with kept.database.transaction() as tx:
            await tx.execute(text("UPDATE accounts SET name = 'half'"))
            raise KeyError("a fault of ours")

    with pytest.raises(KeyError):
        await broken()
    assert await read_accounts(kept.database) == [ACCOUNT]
    await record_accounts(kept.database, [CLIENT], NOW)
    assert await read_accounts(kept.database) == [ACCOUNT, CLIENT]


async def count_twice(database: Database) -> None:
    """Write two rows that have to agree, with room for a cancellation between them."""
    async with database.transaction() as tx:
        for column in ("sweep_number", "joined_sweep"):
            await tx.execute(text(f"UPDATE accounts SET {column} = {column} + 1"))


async def agreed(kept: Kept) -> int:
    async with kept.database.read() as connection:
        both = text("SELECT sweep_number, joined_sweep FROM accounts")
        first, second = (await connection.execute(both)).one()
    assert first == second
    return int(first)


async def cancel_within(task: asyncio.Task[Any], dice: random.Random, seconds: float) -> None:
    """Cancel a task after a few turns of the loop, or at some moment of the time given."""
    for _ in range(dice.randrange(12)):
        await asyncio.sleep(0)
    await asyncio.sleep(dice.choice([0, dice.random() * seconds]))
    task.cancel()


async def usual_seconds(kept: Kept) -> float:
    """Return how long a write takes, on this machine and today."""
    began = time.perf_counter()
    for _ in range(5):
        await count_twice(kept.database)
    return (time.perf_counter() - began) / 5


lets_go = pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
"""aiosqlite drops a connection whose opening is cancelled. The interpreter closes it, and Python
3.13 says so: within the test, which therefore ends by collecting what was dropped."""


@lets_go
async def test_a_cancelled_write_leaves_a_whole_transaction_or_none(kept: Kept) -> None:
    dice = random.Random(1)
    seconds = 2 * await usual_seconds(kept)
    ended = 0
    for _ in range(200):
        writer = asyncio.create_task(count_twice(kept.database))
        await cancel_within(writer, dice, seconds)
        await asyncio.gather(writer, return_exceptions=True)
        ended += not writer.cancelled()
        assert writer.cancelled() or writer.exception() is None
        await agreed(kept)
    before = await agreed(kept)
    assert 5 + ended <= before < 205  # some came to their end, some did not
    await asyncio.wait_for(count_twice(kept.database), 5)
    assert await agreed(kept) == before + 1
    gc.collect()


@lets_go
async def test_a_write_that_is_cancelled_twice_over_leaves_a_whole_one_or_none(kept: Kept) -> None:
    """At the end of a loop every task is cancelled, those that undo something too."""
    dice = random.Random(2)
    seconds = await usual_seconds(kept)
    for _ in range(200):
        writer = asyncio.create_task(count_twice(kept.database))
        await cancel_within(writer, dice, seconds)
        await cancel_within(writer, dice, seconds / 4)
        await asyncio.gather(writer, return_exceptions=True)
        await agreed(kept)
    before = await agreed(kept)
    await asyncio.wait_for(count_twice(kept.database), 5)
    assert await agreed(kept) == before + 1
    gc.collect()


async def test_who_is_cancelled_while_waiting_for_a_turn_writes_nothing(kept: Kept) -> None:
    async with kept.database.transaction() as tx:
        waiting = [asyncio.create_task(count_twice(kept.database)) for _ in range(5)]
        await asyncio.sleep(0)
        for writer in waiting[:4]:
            writer.cancel()
        await tx.execute(text("UPDATE accounts SET name = 'other'"))
    await asyncio.gather(*waiting, return_exceptions=True)
    assert [writer.cancelled() for writer in waiting] == [True] * 4 + [False]
    assert await agreed(kept) == 1


async def test_every_transaction_is_measured_however_it_ends(path: Path) -> None:
    seconds: list[float] = []
    database = Database(path, observe_write=seconds.append)
    await record_accounts(database, [ACCOUNT], NOW)
    await refusal(written(database, "UPDATE nothing SET x = 1"))

    begun = asyncio.Event()

    async def wait_inside() -> None:
        async with database.transaction():
            begun.set()
            await asyncio.Event().wait()

    inside = asyncio.create_task(wait_inside())
    await begun.wait()
    inside.cancel()
    await asyncio.gather(inside, return_exceptions=True)
    assert await read(database, "SELECT count(*) FROM accounts") == 1
    assert len(seconds) == 3
    assert all(one >= 0 for one in seconds)
    await database.close()


async def test_a_probe_writes_and_changes_nothing_of_meaning(kept: Kept, path: Path) -> None:
    await kept.see(order("o1"))
    with closing(sqlite3.connect(path)) as connection:
        before = list(connection.iterdump())
        await kept.database.probe()
        assert list(connection.iterdump()) == before


@pytest.mark.parametrize("fault", ["held", "replaced", "readonly"])
async def test_a_probe_says_why_nothing_can_be_written(kept: Kept, path: Path, fault: str) -> None:
    database = Database(path, readonly=True) if fault == "readonly" else kept.database
    words = {"held": "locked", "replaced": "replaced while it was open", "readonly": "for reading"}
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        if fault == "held":
            other.execute("BEGIN IMMEDIATE")
        if fault == "replaced":
            shutil.copyfile(path, path.with_name("copy.db"))
            path.with_name("copy.db").replace(path)
        assert words[fault] in str(await refusal(database.probe()))
    if fault == "readonly":
        await database.close()


@lets_go
async def test_cancelled_reads_leave_readers_usable(kept: Kept) -> None:
    await kept.see(*(order(f"o{number}") for number in range(100)))
    dice = random.Random(3)
    for _ in range(200):
        listing = asyncio.create_task(kept.whole("o7"))
        await cancel_within(listing, dice, 0.01)
        await asyncio.gather(listing, return_exceptions=True)
    assert (await asyncio.wait_for(kept.whole("o7"), 5)).order.id == "o7"
    gc.collect()


@lets_go
async def test_closing_after_cancelled_writes_leaves_whole_ones_and_no_lock(path: Path) -> None:
    database = Database(path)
    await record_accounts(database, [ACCOUNT], NOW)
    writes = [asyncio.create_task(count_twice(database)) for _ in range(20)]
    await asyncio.sleep(0)
    for write in writes[1:]:
        write.cancel()
    await asyncio.gather(*writes, return_exceptions=True)
    await database.close()
    assert [write.cancelled() for write in writes] == [False] + [True] * 19
    with closing(sqlite3.connect(path, timeout=0)) as connection, connection:
        row = connection.execute("SELECT sweep_number, joined_sweep FROM accounts").fetchone()
        assert row == (1, 1)
        connection.execute("UPDATE accounts SET sweep_number = 9")
    gc.collect()


# The write-ahead log.


async def test_closing_leaves_no_write_ahead_log_behind(path: Path) -> None:
    database = Database(path)
    await record_accounts(database, [ACCOUNT], NOW)
    assert await read(database, "SELECT count(*) FROM accounts") == 1
    assert path.with_name("ledger.db-wal").stat().st_size > 0
    await database.close()
    assert [file.name for file in path.parent.iterdir()] == ["ledger.db"]


async def test_a_checkpoint_empties_the_log_also_while_somebody_lists_slowly(kept: Kept) -> None:
    for first in range(0, 600, 100):
        await kept.see(*(order(f"o{number}") for number in range(first, first + 100)))
    log = kept.database.path.with_name("ledger.db-wal")
    listing = stream_orders(kept.database)
    await anext(listing)
    assert log.stat().st_size > 0
    await kept.database.checkpoint()
    assert log.stat().st_size == 0
    assert len([row async for row in listing]) == 599
