"""What a large ledger costs: its size, the start, planning, commands, an export.

The ledger is :mod:`tests.bench.large_ledger`'s. Commands are the installed ones; a start counts
from the moment it is asked for to the first connection to Lune; planning runs the ledger's own
queries and the program's own planner, as each round of the sweep does.

    python -m tests.bench.ledger [--orders N] [--accounts N] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from harvester.domain.polling import plan_requests
from harvester.domain.schedule import Schedule
from harvester.ledger.accounts import due_accounts, parked_accounts, read_accounts
from harvester.ledger.database import Database
from harvester.ledger.hints import hinted_accounts
from harvester.ledger.schedule import due_checks, newest_positions
from tests.acceptance.harness import HARVESTER
from tests.bench.__main__ import print_table
from tests.bench.installation import Installation
from tests.bench.large_ledger import LargeLedger, make_large_ledger
from tests.bench.processes import Cost, glance, medians, run

ORDERS = 1_000_000
ACCOUNTS = 1_000
_SMALL = (2_000, 20)
_TIMES = 5
_LONGEST_START = 120.0
_GLANCING = 0.5  # seconds between two questions whether a command still runs
_SAMPLE = 10_000
_LONGEST_EXPORT = 300.0

Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds by the wall and of CPU."""

    wall: float
    cpu: float

    def row(self, what: str, aim: str) -> Row:
        """Return the table's row."""
        return {
            "what": what,
            "aim": aim,
            "wall ms": round(1000 * self.wall),
            "CPU ms": round(1000 * self.cpu),
        }


def measure(
    *,
    small: bool = False,
    orders: int = ORDERS,
    accounts: int = ACCOUNTS,
    folder: Path | None = None,
) -> list[Row]:
    """Return a row a figure; the ledger is left in ``folder`` when one is given."""
    if small:
        orders, accounts = _SMALL
    chosen = nullcontext(str(folder)) if folder else TemporaryDirectory(prefix="harvester-bench-")
    with chosen as name:
        home = Installation(Path(name))
        (home.archive / ".incoming").mkdir()  # what makes an empty folder an archive
        ledger = make_large_ledger(home.ledger, orders, accounts)
        times = 1 if small else _TIMES
        return [
            *_sizes(ledger),
            *_planning(ledger),
            *_starts(home, times),
            *_commands(home, ledger, times),
        ]


def _sizes(ledger: LargeLedger) -> Iterator[Row]:
    bare = ledger.bare_bytes / ledger.orders
    yield {"what": "file, documents apart", "aim": "< 600", "bytes an order": round(bare)}
    yield {"what": "file", "bytes an order": round(ledger.bytes / ledger.orders)}


def _planning(ledger: LargeLedger) -> Iterator[Row]:
    for what, later in (
        ("planning, nothing due", timedelta(0)),
        ("planning, a minute's checks due", timedelta(minutes=1)),
        ("planning, all checks due", timedelta(hours=6)),
    ):
        timed, checks = asyncio.run(_plan(ledger.path, ledger.opens_at + later))
        yield timed.row(what, "< 50 ms") | {"rows": checks}


async def _plan(path: Path, now: datetime) -> tuple[Timed, int]:
    """Plan as a sweep's round does, thrice; return the median cost and the checks that were due."""
    schedule = Schedule(timedelta(minutes=5), timedelta(hours=6))
    horizon = schedule.horizon(now)
    database = Database(path, readonly=True)
    timed = []
    try:
        for _ in range(4):
            wall, cpu, checks = time.perf_counter(), time.process_time(), 0
            listed = await due_accounts(database, now, horizon)
            hinted = await hinted_accounts(database, now)
            due = await due_checks(database, now, horizon)
            newest = await newest_positions(database, due.keys())
            checked = due.keys() - await parked_accounts(database)
            for account in await read_accounts(database, listed | hinted | checked):
                mine = due.get(account.id, ())
                positions = [check.position for check in mine if check.position is not None]
                top = newest.get(account.id, 0)
                plan_requests(positions, top, read_newest=account.id in listed)
                checks += len(mine)
            timed.append(Timed(time.perf_counter() - wall, time.process_time() - cpu))
    finally:
        await database.close()
    warm = timed[1:]  # the first opened the connections and compiled the statements
    return (
        Timed(
            statistics.median(one.wall for one in warm), statistics.median(one.cpu for one in warm)
        ),
        checks,
    )


def _starts(home: Installation, times: int) -> Iterator[Row]:
    for command in (("run", "--drain"), ("run",)):
        found = [_start(home, *command) for _ in range(times)]
        middle = Timed(
            statistics.median(one.wall for one in found),
            statistics.median(one.cpu for one in found),
        )
        yield middle.row(f"{' '.join(command)}, to the first request", "< 2 s")


def _start(home: Installation, *command: str) -> Timed:
    """Start a command and kill it when it connects to Lune; return what it took until then."""
    with socket.create_server(("127.0.0.1", 0)) as lune:
        lune.settimeout(_GLANCING)
        port = lune.getsockname()[1]
        home.configure(lune__base_url=f"http://127.0.0.1:{port}/v1")
        began = time.monotonic()
        process = subprocess.Popen(
            [HARVESTER, *command],
            cwd=home.folder,
            env=home.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while process.poll() is None and time.monotonic() - began < _LONGEST_START:
                with suppress(TimeoutError):
                    lune.accept()[0].close()
                    return Timed(time.monotonic() - began, glance(process.pid).cpu)
            raise TimeoutError(f"{command}: connects to nothing, and left with {process.poll()}")
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def _commands(home: Installation, ledger: LargeLedger, times: int) -> Iterator[Row]:
    some = ledger.order_id(ledger.orders // 3 + 1)
    for arguments in (("orders", "--limit", "50"), ("show", some), ("status",)):
        cost = medians([_run(home, *arguments) for _ in range(times)])
        name = " ".join(arguments).replace(some, "ID")
        yield Timed(cost.wall, cost.cpu).row(name, "< 0.5 s") | {"peak MB": round(cost.peak_mb)}
    yield from _exports(lambda rows: _run(home, "export", "--limit", str(rows)), ledger.orders)


def _exports(export: Callable[[int], Cost], orders: int) -> Iterator[Row]:
    """Export twice as many rows each time, until it is all or would take too long."""
    rows = min(_SAMPLE, orders)
    while True:
        cost = export(rows)
        yield Timed(cost.wall, cost.cpu).row("export", "20,000 rows/s") | {
            "rows": rows,
            "rows/s": round(rows / cost.wall),
            "rows/s of CPU": round(rows / cost.cpu),
            "peak MB": round(cost.peak_mb),
        }
        # Reading on from where the last chunk ended may cost more the more there is.
        if rows == orders or cost.wall * 100 > _LONGEST_EXPORT:
            return
        rows = min(10 * rows, orders)


def _run(home: Installation, *arguments: str) -> Cost:
    return run([HARVESTER, *arguments], folder=home.folder, environment=home.environment())


def main() -> int:
    """Measure as the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ledger")
    parser.add_argument("--orders", type=int, default=ORDERS)
    parser.add_argument("--accounts", type=int, default=ACCOUNTS)
    parser.add_argument("--folder", type=Path, help="make the ledger here and leave it")
    print_table(measure(**vars(parser.parse_args())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
