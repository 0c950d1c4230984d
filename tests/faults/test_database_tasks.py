"""Tasks that are cancelled over the ledger, and the thread that writes it dying."""

from __future__ import annotations

import asyncio
import random
import sys

from sqlalchemy import text

from harvester.runtime.drain import Drain
from tests.faults.catalogue import fault
from tests.faults.scene import Scene

WOUNDED = """
import linecache, threading
turns = 0
def wound(frame, event, _):
    global turns
    if frame.f_code.co_name != "_connection_worker_thread":  # the driver's
        return None
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    if event == "line" and ".get(" in line:  # between two statements
        turns += 1
        if turns == 12:
            raise MemoryError("wounded")
    return wound
threading.settrace(wound)
from harvester.cli import main
main()
"""


@fault("D15")
async def test_a_drain_cancelled_at_any_moment_leaves_whole_transactions(scene: Scene) -> None:
    dice = random.Random(15)
    for _ in range(40):
        scene.order()
    async with scene.open() as app:
        for _ in range(15):
            drain = asyncio.create_task(Drain(app).run())
            await asyncio.sleep(dice.uniform(0, 0.15))  # the moment is the point
            drain.cancel()
            await asyncio.gather(drain, return_exceptions=True)
        report = await Drain(app).run()
    assert report.unfinished == []
    assert len(scene.home.files()) == 40


@fault("D15")
async def test_a_cancelled_write_leaves_the_ledger_to_the_next_one_at_once(scene: Scene) -> None:
    dice = random.Random(15)
    async with scene.open() as app:

        async def write() -> None:
            async with app.database.transaction() as tx:
                for _ in range(5):
                    await tx.execute(text("UPDATE accounts SET sweep_number = sweep_number + 1"))
                    await tx.execute(text("SELECT count(*) FROM orders"))

        for _ in range(200):
            writing = asyncio.create_task(write())
            await asyncio.sleep(dice.uniform(0, 0.01))  # the moment is the point
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            async with asyncio.timeout(2):
                await app.database.probe()


@fault("D16")
async def test_a_process_whose_ledger_thread_dies_ends_and_says_so(scene: Scene) -> None:
    await scene.drain()
    scene.order()
    async with asyncio.timeout(30):
        ran = await scene.home.run("run", "--drain", program=(sys.executable, "-c", WOUNDED))
    scene.keep("".join(line for line in ran.err.splitlines(True) if line.startswith("{")))
    assert ran.code == 1
    assert "MemoryError: wounded" in ran.err
    assert (await scene.drain()).unfinished == []
    assert len(scene.home.files()) == 1
