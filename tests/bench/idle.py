"""What the program costs when there is nothing to do: commands that only start, a daemon at rest.

Commands run on a ledger with a few orders. The daemon follows one account of the sandbox that has
no orders, is left alone until its first sweep is over, and is then watched from outside: its CPU
and its threads' voluntary context switches, each of which is a wake-up, by proc(5). A step that
reads the ledger wakes threads many times within a few milliseconds, so beside the mean stands what
the median second sees.

    python -m tests.bench.idle [--seconds N] [--times N]
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory

from harvester.ledger import migrate
from harvester.sandbox import Sandbox, SandboxOptions
from tests.acceptance.harness import HARVESTER
from tests.bench.__main__ import print_table
from tests.bench.installation import Installation
from tests.bench.large_ledger import make_large_ledger
from tests.bench.processes import glance, medians, run
from tests.bench.static_lune import KEY

SECONDS = 60.0
TIMES = 21
_SMALL_SECONDS = 5.0
_SMALL_TIMES = 1
_SETTLING = 3.0
_LONGEST_START = 60.0
_ORDERS, _ACCOUNTS = 100, 2

Row = dict[str, object]


def measure(*, small: bool = False, seconds: float = SECONDS, times: int = TIMES) -> list[Row]:
    """Return a row a command, and one for the daemon over so many seconds."""
    if small:
        seconds, times = _SMALL_SECONDS, _SMALL_TIMES
    with TemporaryDirectory(prefix="harvester-bench-") as folder:
        return [
            *_commands(Path(folder, "commands"), times),
            asyncio.run(_daemon(Path(folder, "daemon"), seconds)),
        ]


def _commands(folder: Path, times: int) -> list[Row]:
    home = Installation(folder)
    make_large_ledger(home.ledger, _ORDERS, _ACCOUNTS)
    rows: list[Row] = []
    for arguments, aim in (
        (("--help",), "< 0.15 s"),
        (("--version",), "< 0.15 s"),
        (("status",), "< 0.5 s"),
        (("orders", "--limit", "50"), "< 0.5 s"),
    ):
        command = [HARVESTER, *arguments]
        costs = [run(command, folder=folder, environment=home.environment()) for _ in range(times)]
        middle = medians(costs)
        rows.append(
            {
                "what": " ".join(arguments),
                "aim": aim,
                "wall ms": round(1000 * middle.wall),
                "CPU ms": round(1000 * middle.cpu),
                "CPU ms, min-max": f"{1000 * min(one.cpu for one in costs):.0f}-"
                f"{1000 * max(one.cpu for one in costs):.0f}",
                "peak MB": round(middle.peak_mb),
            }
        )
    return rows


async def _daemon(folder: Path, seconds: float) -> Row:
    options = SandboxOptions(orders=0, client_accounts=0, key=KEY)
    async with Sandbox(options) as lune, _running(folder, lune.base_url) as pid:
        asked = lune.journal.count()
        glances = [glance(pid)]
        for _ in range(round(seconds)):
            await asyncio.sleep(1)
            glances.append(glance(pid))
        before, after = glances[0], glances[-1]
        switches = [new.switches - old.switches for old, new in pairwise(glances)]
        return {
            "what": f"run, {seconds:.0f} s with nothing due",
            "aim": "< 0.5 % of a core, < 90 MB, <= 1 wake-up/s",
            "% of a core": round(100 * (after.cpu - before.cpu) / seconds, 2),
            "wake-ups/s": round(mean(switches), 1),
            "of the median second": median(switches),
            "MB": round(after.rss_mb, 1),
            "peak MB": round(after.peak_mb, 1),
            "requests": lune.journal.count() - asked,
        }


@asynccontextmanager
async def _running(folder: Path, base_url: str) -> AsyncIterator[int]:
    """Run the daemon; the block begins some seconds after its first sweep."""
    home = Installation(folder, lune__base_url=base_url, log__format="json")
    migrate.upgrade(home.ledger)  # here, since what makes a ledger stays in memory
    process = await asyncio.create_subprocess_exec(
        HARVESTER,
        "run",
        cwd=folder,
        env=home.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(_LONGEST_START):
            while b'"event": "sweep finished"' not in (line := await process.stderr.readline()):
                if not line:
                    raise subprocess.CalledProcessError(await process.wait(), "harvester run")
        await asyncio.sleep(_SETTLING)
        yield process.pid
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        # What it still says is read, so that it can say it.
        await process.communicate()


def main() -> int:
    """Measure as the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.idle")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="the daemon is watched")
    parser.add_argument("--times", type=int, default=TIMES, help="each command is run")
    print_table(measure(**vars(parser.parse_args())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
