"""What goes wrong in the SQLite ledger is ours to name, without what was in it."""

from __future__ import annotations

import random
import sqlite3
import traceback
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from harvester.domain.errors import HarvesterError, LedgerDamaged, LedgerUnavailable
from harvester.ledger import migrate
from harvester.ledger.accounts import record_accounts
from harvester.ledger.audit import contradictions
from harvester.ledger.database import Database
from harvester.ledger.queries import stream_orders
from tests.contract.ledger_cases import ACCOUNT, CLIENT, NOW, Kept, order, stored

CANARY = "Canary-in-metadata"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    migrate.upgrade(tmp_path / "ledger.db")
    return tmp_path / "ledger.db"


@pytest.fixture
async def kept(path: Path) -> AsyncIterator[Kept]:
    database = Database(path)
    await record_accounts(database, [ACCOUNT], NOW)
    yield Kept(database)
    await database.close()


async def pragma(database: Database, statement: str) -> int:
    """Ask or tell the writing connection something."""
    async with database.transaction() as tx:
        return int(await tx.scalar(text(f"PRAGMA {statement}")) or 0)


async def refusal(work: Any) -> HarvesterError:
    with pytest.raises(HarvesterError) as refused:
        await work
    return refused.value


async def test_a_full_database_is_named_and_what_was_written_stays(kept: Kept) -> None:
    await kept.see(order("o1"))
    pages = await pragma(kept.database, "page_count")
    await pragma(kept.database, f"max_page_count = {pages}")
    big = [order(f"o{n}", metadata={"x": random.Random(n).randbytes(3000).hex()}) for n in range(9)]
    error = await refusal(kept.see(*big))
    assert isinstance(error, LedgerUnavailable)
    assert "full" in str(error)
    assert [row.id async for row in stream_orders(kept.database)] == ["o1"]
    await pragma(kept.database, "max_page_count = 1000000")
    assert (await kept.see(*big)).new == 8


@pytest.mark.parametrize("where", ["header", "middle"])
async def test_a_damaged_ledger_is_named_and_left_as_it_is(path: Path, where: str) -> None:
    database = Database(path)
    await record_accounts(database, [ACCOUNT], NOW)
    await Kept(database).see(*(order(f"o{number}") for number in range(100)))
    await database.close()
    data = bytearray(path.read_bytes())
    if where == "header":
        data[:100] = b"\xde\xad" * 50
    else:
        data[4096:] = b"\xde\xad" * ((len(data) - 4096) // 2)
    path.write_bytes(data)

    database = Database(path)
    for work in (anext(stream_orders(database)), record_accounts(database, [CLIENT], NOW)):
        assert isinstance(await refusal(work), LedgerDamaged)
    await database.close()
    assert path.read_bytes() == data


async def test_no_error_shows_what_was_to_be_written(kept: Kept) -> None:
    secretive = order(key=CANARY, metadata={"customer": CANARY}, note=CANARY)
    await kept.see(order("o1"), order("o2"))
    await kept.store(stored(path=CANARY))

    async def write(statement: str) -> None:
        async with kept.database.transaction() as tx:
            await tx.execute(text(statement), {"x": CANARY})

    for work in (
        kept.see(secretive, account=CLIENT),  # an account that was never recorded
        kept.store(stored(path=CANARY), "o2"),  # a name that is taken
        write("UPDATE accounts SET sweep_number = :x"),  # a wrong type
        write("UPDATE nothing SET x = :x"),
    ):
        error = await refusal(work)
        assert "the ledger could not be used" in str(error)
        shown = "".join(traceback.format_exception(error))
        assert "Canary" not in shown


# What the schema cannot refuse: rows that a damaged disk or another program's hands changed.


def meddle(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute(statement)


@pytest.mark.parametrize(
    ("statement", "rule"),
    [
        ("DELETE FROM transitions WHERE seq = 1", "are not numbered 1, 2, 3"),
        ("UPDATE moves SET from_status = 'x' WHERE to_status = 'complete'", "does not begin where"),
        ("UPDATE moves SET from_status = 'x' WHERE to_status = 'placed'", "begin at nothing"),
        ("UPDATE moves SET to_status = 'placed'", "goes nowhere"),
        ("UPDATE orders SET status = 'paid'", "is not where its transitions ended"),
        ("DELETE FROM transitions", "is not where its transitions ended"),
        ("UPDATE orders SET certificate_state = NULL", "no certificate is owed or stored"),
        ("UPDATE orders SET certificate_state = 'owed'", "nothing says when to fetch it"),
        ("DELETE FROM certificates", "no file is recorded"),
        ("UPDATE certificates SET version = 2", "does not have that version's name"),
    ],
)
async def test_a_ledger_that_contradicts_itself_is_named_by_order_and_rule(
    kept: Kept, path: Path, statement: str, rule: str
) -> None:
    await kept.see(order("o1"))
    await kept.see(order("o1", status="complete"))
    await kept.store(stored())
    assert await contradictions(kept.database) == []
    meddle(path, statement)
    lines = await contradictions(kept.database)
    assert any(line.startswith("order o1 of account acct: ") and rule in line for line in lines)


async def test_an_open_order_that_nobody_will_check_is_a_contradiction(
    kept: Kept, path: Path
) -> None:
    await kept.see(order("o1"))
    assert await contradictions(kept.database) == []
    meddle(path, "UPDATE orders SET next_check_at = NULL")
    (line,) = await contradictions(kept.database)
    assert "nothing says when to check" in line


async def test_a_version_whose_number_was_passed_over_is_none(kept: Kept) -> None:
    """The first name was taken by a file that is no certificate."""
    await kept.see(order("o1", status="complete"))
    await kept.store(stored(2, path="acct/o1.v2.pdf"))
    assert await contradictions(kept.database) == []


async def test_of_a_rule_broken_everywhere_the_first_hundred_orders_are_named(
    kept: Kept, path: Path
) -> None:
    await kept.see(*(order(f"o{number}") for number in range(150)))
    meddle(path, "UPDATE orders SET next_check_at = NULL")
    assert len(await contradictions(kept.database)) == 100
