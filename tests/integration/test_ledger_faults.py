"""The ledger when another process holds it, its disk is full, or its own process is killed.

What needs a disk or a process of its own runs as a child: this file, as a program.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import text

from harvester.domain.errors import LedgerUnavailable
from harvester.domain.orders import Account
from harvester.ledger import migrate
from harvester.ledger.accounts import read_accounts, record_accounts
from harvester.ledger.database import Database
from tests.needs import cannot

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ACCOUNT = Account("acct", "Acme", "live", "account", "EUR", "Acme Ltd", "org")
KILLS = 4


@contextmanager
def child(part: str, path: Path, under: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    """Run a part of this file as a process of its own; it is gone when this ends."""
    process = subprocess.Popen(
        (*under, sys.executable, __file__, part, str(path)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=30)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    migrate.upgrade(tmp_path / "ledger.db")
    return tmp_path / "ledger.db"


# Another process.


def hold_exclusively(path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    print("held", flush=True)  # noqa: T201 - what the parent waits for
    sys.stdin.readline()
    connection.execute("ROLLBACK")
    connection.close()
    print("let go", flush=True)  # noqa: T201 - what the parent waits for


async def test_a_ledger_locked_by_another_program_is_unavailable_until_it_lets_go(
    path: Path,
) -> None:
    database = Database(path)
    await record_accounts(database, [ACCOUNT], NOW)
    with child("hold_exclusively", path) as other:
        assert line_of(other) == "held"
        with pytest.raises(LedgerUnavailable, match="locked"):
            await record_accounts(database, [replace(ACCOUNT, name="New")], NOW)
        assert await read_accounts(database) == [ACCOUNT]  # readers go on
        assert other.stdin is not None
        other.stdin.write("\n")
        other.stdin.flush()
        assert line_of(other) == "let go"
        await record_accounts(database, [replace(ACCOUNT, name="New")], NOW)
    assert [account.name for account in await read_accounts(database)] == ["New"]
    await database.close()


# The process is killed.


async def count_for_ever(path: Path) -> None:
    """Write pairs that agree, as fast as they go, printing each number once it is durable."""
    database = Database(path)
    while True:
        async with database.transaction() as tx:
            for column in ("sweep_number", "joined_sweep"):
                await tx.execute(text(f"UPDATE accounts SET {column} = {column} + 1"))
            number = await tx.scalar(text("SELECT sweep_number FROM accounts"))
        print(number, flush=True)  # noqa: T201 - acknowledged, for the parent


async def test_what_was_acknowledged_survives_a_kill_and_nothing_is_half(path: Path) -> None:
    database = Database(path)
    await record_accounts(database, [ACCOUNT], NOW)
    await database.close()
    acknowledged = 0
    for kill in range(KILLS):
        with child("count_for_ever", path) as writer:
            for _ in range(kill + 1):
                acknowledged = int(line_of(writer))
            writer.kill()
        with closing(sqlite3.connect(path)) as connection:
            row = connection.execute("SELECT sweep_number, joined_sweep FROM accounts").fetchone()
        assert row[0] == row[1] >= acknowledged
        migrate.check_integrity(path)


# The disk is full.


async def full_disk(folder: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=True)
    path = folder / "ledger.db"
    migrate.upgrade(path)
    database = Database(path)
    await record_accounts(database, [ACCOUNT], NOW)
    ballast = folder / "ballast"
    ballast.write_bytes(b"x" * (os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize))
    crowd = [replace(ACCOUNT, id=f"a{number}", name="x" * 900) for number in range(400)]
    try:
        await record_accounts(database, crowd, NOW)
    except LedgerUnavailable as full:
        assert "full" in str(full) or "disk I/O error" in str(full)  # noqa: PT017 - a child without pytest
    else:
        raise AssertionError("it was written")
    assert await read_accounts(database) == [ACCOUNT]
    ballast.unlink()
    await record_accounts(database, crowd, NOW)
    assert len(await read_accounts(database)) == 401
    await database.close()
    migrate.check_integrity(path)

    copy = folder / "copy.db"
    ballast.write_bytes(b"x" * (os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize))
    try:
        migrate.backup(path, copy)
    except LedgerUnavailable:
        assert not list(folder.glob("*copy*"))
    else:
        raise AssertionError("it was copied")


def test_a_full_disk_loses_nothing_and_the_ledger_goes_on_when_there_is_room(
    tmp_path: Path,
) -> None:
    if shutil.which("unshare") is None:
        cannot("unshare is not installed")
    own = ("unshare", "-m")
    trial = (*own, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path))
    if subprocess.run(trial, capture_output=True, check=False).returncode != 0:
        cannot("this machine does not let us mount a tmpfs")
    with child("full_disk", tmp_path, under=own) as process:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr


if __name__ == "__main__":
    if sys.argv[1] == "hold_exclusively":
        hold_exclusively(Path(sys.argv[2]))
    else:
        parts = {"full_disk": full_disk, "count_for_ever": count_for_ever}
        asyncio.run(parts[sys.argv[1]](Path(sys.argv[2])))
