"""Nobody reads the log: its pipe is full, broken, or was never there."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Iterator
from pathlib import Path

import pytest

from harvester import logs
from tests.acceptance.harness import HARVESTER, PATIENCE, events, until
from tests.faults.catalogue import fault
from tests.faults.scene import Scene

ORDERS = 30
SMALLEST_PIPE = 4096


async def started(scene: Scene, stderr: int, *under: str) -> Process:
    """Start a talkative daemon with this for its stderr."""
    scene.home.configure(log__level="debug", harvest__sweep_interval="300ms")
    for _ in range(ORDERS):
        scene.order()
    return await asyncio.create_subprocess_exec(
        *under,
        HARVESTER,
        "run",
        cwd=scene.home.folder,
        env=scene.home.environment(),
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=stderr,
    )


async def works_and_stops(scene: Scene, process: Process) -> None:
    """See that it files everything and ends when asked."""
    try:
        await until(lambda: len(scene.home.files()) == ORDERS)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@fault("S10")
@pytest.mark.parametrize("reader", ["stalled", "gone"])
async def test_a_log_that_nobody_reads_stops_nothing(scene: Scene, reader: str) -> None:
    there, here = os.pipe()
    fcntl.fcntl(here, fcntl.F_SETPIPE_SZ, SMALLEST_PIPE)
    try:
        if reader == "gone":
            os.close(there)
        process = await started(scene, here)
        await works_and_stops(scene, process)
    finally:
        os.close(here)
        if reader == "stalled":
            os.close(there)


@fault("S10")
async def test_a_closed_stderr_stops_nothing(scene: Scene) -> None:
    process = await started(scene, DEVNULL, "sh", "-c", 'exec "$0" "$@" 2>&- >&-')
    await until(scene.home.ledger.exists)
    streams = [str(Path(f"/proc/{process.pid}/fd/{number}").readlink()) for number in (1, 2)]
    await works_and_stops(scene, process)
    # Free, those numbers would go to the next files opened, and stray output into the ledger.
    assert streams == [os.devnull, os.devnull]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe of the smallest size: where to read, where to write."""
    there, here = os.pipe()
    fcntl.fcntl(here, fcntl.F_SETPIPE_SZ, SMALLEST_PIPE)
    before = logging.getLogger().handlers[:]
    yield there, here
    logging.getLogger().handlers[:] = before
    os.close(there)
    os.close(here)


@fault("S10")
def test_lines_that_do_not_fit_are_counted_and_reported(pipe: tuple[int, int]) -> None:
    there, here = pipe
    backlog = logs.Backlog(here, most=10)
    logs.configure("info", "json", handler=backlog)
    log = logging.getLogger("a talkative one")
    for number in range(200):
        log.info("line %d %s", number, "x" * 500)
    assert 100 < backlog.dropped < 200
    assert not backlog.drain(0.05)
    text = b""
    os.set_blocking(there, False)
    while not backlog.drain(0.01):
        with contextlib.suppress(BlockingIOError):
            text += os.read(there, 65536)
    with contextlib.suppress(BlockingIOError):
        text += os.read(there, 65536)
    lines = events(text.decode())
    dropped = [line["lines"] for line in lines if line["event"] == "log lines dropped"]
    assert lines[0]["event"].startswith("line 0 ")
    assert sum(dropped) == backlog.dropped
    assert len(lines) - len(dropped) == 200 - backlog.dropped
