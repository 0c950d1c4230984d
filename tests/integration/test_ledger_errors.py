"""What goes wrong in the SQLite ledger is ours to name, without what was in it."""

from __future__ import annotations

import random
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from harvester.domain.errors import HarvesterError, LedgerDamaged, LedgerUnavailable
from harvester.ledger import migrate
from harvester.ledger.engine import Database
from harvester.ledger.queries import stream_orders
from harvester.ledger.sql import SqlLedger
from tests.contract.ledger_cases import ACCOUNT, CLIENT, NOW, Kept, order, stored

CANARY = "Canary-in-metadata"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    migrate.upgrade(tmp_path / "ledger.db")
    return tmp_path / "ledger.db"


@pytest.fixture
async def kept(path: Path) -> AsyncIterator[Kept]:
    database = Database(path)
    ledger = SqlLedger(database)
    await ledger.record_accounts([ACCOUNT], NOW)
    yield Kept(ledger, database)
    await database.close()


async def pragma(database: Database, statement: str) -> int:
    """Ask or tell the writing connection something."""

    async def work(connection: AsyncConnection) -> int:
        return int(await connection.scalar(text(f"PRAGMA {statement}")) or 0)

    return await database.write(work)


async def refusal(work: Any) -> HarvesterError:
    with pytest.raises(HarvesterError) as refused:
        await work
    return refused.value


async def test_a_full_database_is_told_and_what_was_written_stays(kept: Kept) -> None:
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


@pytest.mark.parametrize("place", ["header", "middle"])
async def test_a_damaged_ledger_is_named_and_left_as_it_is(path: Path, place: str) -> None:
    database = Database(path)
    ledger = SqlLedger(database)
    await ledger.record_accounts([ACCOUNT], NOW)
    await Kept(ledger, database).see(*(order(f"o{number}") for number in range(100)))
    await database.close()
    data = bytearray(path.read_bytes())
    if place == "header":
        data[:100] = b"\xde\xad" * 50
    else:
        data[4096:] = b"\xde\xad" * ((len(data) - 4096) // 2)
    path.write_bytes(data)

    database = Database(path)
    for work in (
        anext(stream_orders(database)),
        SqlLedger(database).record_accounts([CLIENT], NOW),
    ):
        assert isinstance(await refusal(work), LedgerDamaged)
    await database.close()
    assert path.read_bytes() == data


async def test_no_error_shows_what_was_to_be_written(kept: Kept) -> None:
    secretive = order(key=CANARY, metadata={"customer": CANARY}, note=CANARY)
    await kept.see(order("o1"), order("o2"))
    await kept.file(stored(key=CANARY))

    async def wrong_type(connection: AsyncConnection) -> None:
        await connection.execute(text("UPDATE accounts SET sweep_number = :x"), {"x": CANARY})

    async def wrong_sql(connection: AsyncConnection) -> None:
        await connection.execute(text("UPDATE nothing SET x = :x"), {"x": CANARY})

    for work in (
        kept.see(secretive, account=CLIENT),  # an account that was never recorded
        kept.file(stored(key=CANARY), "o2"),  # a name that is taken
        kept.database.write(wrong_type),
        kept.database.write(wrong_sql),
    ):
        error = await refusal(work)
        assert "the ledger could not be used" in str(error)
        shown = "".join(traceback.format_exception(error))
        assert "Canary" not in shown
