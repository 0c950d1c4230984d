"""The ledger between several hands: other programs, slow disks, readers that stay, one writer."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from harvester.domain.errors import LedgerUnavailable
from harvester.ledger import migrate
from harvester.ledger.accounts import read_accounts
from harvester.ledger.certificates import recorded_certificates
from harvester.ledger.database import Database
from harvester.runtime.drain import Drain
from tests.faults.catalogue import fault
from tests.faults.disks import strace
from tests.faults.scene import Scene


def stranger(ledger: Path) -> sqlite3.Connection:
    """Open the ledger as another program would."""
    return sqlite3.connect(ledger, isolation_level=None, timeout=0)


@fault("D1")
async def test_a_drain_waits_for_another_program_to_let_the_ledger_go(scene: Scene) -> None:
    await scene.drain()
    scene.order()
    with closing(stranger(scene.home.ledger)) as other:
        other.execute("BEGIN EXCLUSIVE")
        asyncio.get_running_loop().call_later(0.5, other.execute, "ROLLBACK")
        report = await scene.drain()
    assert (report.swept.new, report.collected.stored) == (1, 1)


@fault("D1")
async def test_a_program_that_keeps_the_ledger_is_reported_and_nothing_is_lost(
    scene: Scene,
) -> None:
    await scene.drain()
    scene.order()
    async with scene.open() as app:
        with closing(stranger(scene.home.ledger)) as other:
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(LedgerUnavailable, match="locked"):
                await Drain(app).run()
        assert (await Drain(app).run()).collected.stored == 1


@fault("D2")
async def test_a_write_has_the_ledger_to_itself_from_its_first_statement_on(scene: Scene) -> None:
    """So it never has to turn from reading to writing, which SQLite may refuse at any moment."""
    await scene.drain()
    async with scene.open() as app:
        with closing(stranger(scene.home.ledger)) as other:
            async with app.database.transaction() as tx:
                await tx.execute(text("SELECT count(*) FROM orders"))
                with pytest.raises(sqlite3.OperationalError, match="locked"):
                    other.execute("BEGIN IMMEDIATE")
                await tx.execute(text("UPDATE accounts SET sweep_number = sweep_number"))
            other.execute("BEGIN IMMEDIATE")


async def beat_while_writing(ledger: Path) -> None:
    """Write and fold in while the loop looks at the clock; print its longest pause."""
    database = Database(ledger)

    async def write() -> None:
        async with database.transaction() as tx:
            await tx.execute(text("UPDATE accounts SET sweep_number = sweep_number + 1"))
        await database.checkpoint()

    writing = asyncio.create_task(write())
    longest, before = 0.0, time.perf_counter()
    while not writing.done():
        await asyncio.sleep(0.01)
        longest, before = max(longest, time.perf_counter() - before), time.perf_counter()
    await writing
    await database.close()
    print(longest)  # noqa: T201 - read by the test that started it


@fault("D3")
async def test_a_disk_that_takes_seconds_to_sync_the_ledger_never_holds_up_the_loop(
    scene: Scene,
) -> None:
    await scene.drain()
    slow = strace("-o/dev/null", "-etrace=fdatasync", "-einject=fdatasync:delay_enter=1000000")
    child = (*slow, sys.executable, __file__, str(scene.home.ledger))
    ran = await scene.home.run(program=child, env={"PYTHONPATH": os.pathsep.join(sys.path)})
    assert ran.code == 0, ran.err
    assert float(ran.out) < 0.9  # each sync took a second


@fault("D7")
async def test_a_log_that_a_reader_made_grow_shrinks_once_the_reader_is_gone(scene: Scene) -> None:
    await scene.drain()
    log = scene.home.ledger.with_name(f"{scene.home.ledger.name}-wal")
    for _ in range(300):
        scene.order("paid")
    async with scene.open() as app:
        with closing(stranger(scene.home.ledger)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM orders").fetchall()
            assert (await Drain(app).run()).swept.new == 300
            assert log.stat().st_size > 100_000
        await app.database.checkpoint()
        assert log.stat().st_size == 0
    assert not log.exists()


@fault("D7")
async def test_a_listing_that_is_read_slowly_keeps_no_view_open(scene: Scene) -> None:
    for _ in range(3):
        scene.order("paid")
    async with scene.open() as app:
        await Drain(app).run()
        log = scene.home.ledger.with_name(f"{scene.home.ledger.name}-wal")
        async for _ in recorded_certificates(app.database):
            pass
        await app.database.checkpoint()
        assert log.stat().st_size == 0


def writable_descriptors(path: Path) -> int:
    """Count this process's descriptors of a file that may write to it."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            if link.readlink() != path:
                continue
            about = (Path("/proc/self/fdinfo") / link.name).read_text()
        except FileNotFoundError:
            continue
        flags = next(line for line in about.splitlines() if line.startswith("flags:"))
        count += int(flags.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY
    return count


@fault("D8")
async def test_one_connection_can_write_the_ledger_however_much_is_asked_at_once(
    scene: Scene,
) -> None:
    for _ in range(20):
        scene.order()
    async with scene.open() as app:
        await Drain(app).run()
        await asyncio.gather(*(read_accounts(app.database) for _ in range(20)))
        assert writable_descriptors(scene.home.ledger) == 1
        migrate.require_current(scene.home.ledger)


if __name__ == "__main__":
    asyncio.run(beat_while_writing(Path(sys.argv[1])))
