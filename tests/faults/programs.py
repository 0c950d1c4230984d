"""Programs in a scene's folder that are more, or other, than the installed command."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

from harvester.context import Limits
from tests.acceptance.harness import Home, Running, until

_LIMITED_DAEMON = """
import asyncio, json, sys
from pathlib import Path

from harvester import logs
from harvester.app import open_app
from harvester.cli.run import listen_for_signals
from harvester.config.load import load
from harvester.context import Limits, Stop
from harvester.runtime.service import serve

async def main():
    stop = Stop()
    listen_for_signals(stop)
    limits = Limits(**json.loads(sys.argv[2]))
    async with open_app(load(Path(sys.argv[1])), stop, "run", limits=limits) as app:
        await serve(app)

logs.configure("info", "json")
asyncio.run(main())
"""


@asynccontextmanager
async def running(home: Home, *command: str | Path) -> AsyncIterator[Running]:
    """Start a program that goes on; it is killed at the end unless it was ended."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=home.folder, env=home.environment(), stdin=DEVNULL, stdout=PIPE, stderr=PIPE
    )
    started = Running(process)
    readers = [
        asyncio.create_task(started.listen(process.stdout, started.out)),
        asyncio.create_task(started.listen(process.stderr, started.err)),
    ]
    try:
        yield started
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await asyncio.gather(*readers)


@asynccontextmanager
async def limited_daemon(home: Home, limits: Limits) -> AsyncIterator[Running]:
    """Start a daemon under other limits than the installed one; wait until it listens."""
    given = json.dumps(asdict(limits))
    async with running(home, sys.executable, "-c", _LIMITED_DAEMON, home.config, given) as daemon:
        await until(lambda: daemon.events("started") or daemon.ended)
        assert not daemon.ended, "".join(daemon.err)
        yield daemon
