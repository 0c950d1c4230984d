"""What the tests of ``order`` share: a home at the desk, the ledger's words, a person's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.acceptance.harness import HARVESTER, PATIENCE, Home
from tests.integration.order_desk import OrderDesk

MASS = ("order", "by-mass", "259.11", "kg")
BUY = (*MASS, "--yes", "--idempotency-key", "K")
ORDERED_BEFORE = "was ordered before under this key"


def at_the_desk(folder: Path, desk: OrderDesk) -> Home:
    """Make a home whose Lune is the desk."""
    key = folder / "lune_api_key"
    key.write_text(desk.key)
    key.chmod(0o600)
    return Home(
        folder,
        lune__base_url=desk.base_url,
        lune__api_key_file=str(key),
        lune__rate_limit=1000,
        harvest__sweep_interval="500ms",
    )


def ask(home: Home, statement: str) -> list[tuple[Any, ...]]:
    """Ask the ledger as it is on the disk; nothing when there is none."""
    if not home.ledger.exists():
        return []
    with closing(sqlite3.connect(f"file:{home.ledger}?mode=ro", uri=True)) as connection:
        return connection.execute(statement).fetchall()


def chain(home: Home) -> list[tuple[str, str]]:
    """Return the transitions of the one order there is, as (status, source)."""
    steps = ask(home, "SELECT order_id, to_status, source FROM history ORDER BY seq")
    assert len({order_id for order_id, _, _ in steps}) <= 1
    return [(status, source) for _, status, source in steps]


def open_purchases(home: Home) -> list[str]:
    found = ask(home, "SELECT idempotency_key FROM purchases WHERE settled_at IS NULL")
    return [key for (key,) in found]


async def converse(home: Home, arguments: Sequence[str | Path], answers: str) -> tuple[int, str]:
    """Run a command on a pseudo-terminal and type an answer at each of its questions."""
    master, slave = pty.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            HARVESTER,
            *arguments,
            cwd=home.folder,
            env=home.environment({"TERM": "dumb"}),
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
    finally:
        os.close(slave)
    typed = iter(answers)

    def talk() -> str:
        text = ""
        with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
            asked = 0
            while data := os.read(master, 65536):
                text += data.decode()
                while text.count("[y/N]") > asked:
                    asked += 1
                    os.write(master, next(typed, "\x03").encode() + b"\n")
        return text

    talking = asyncio.create_task(asyncio.to_thread(talk))
    try:
        async with asyncio.timeout(PATIENCE):
            code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
        text = await talking
        os.close(master)
    return code, text
