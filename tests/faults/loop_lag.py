"""Is the loop prompt while the disk is not: measured.

    python -m tests.faults.loop_lag

prints the event loop's lag while the daemon works: undisturbed, while an fsync takes five seconds,
and while another program keeps the ledger locked for thirty. Lag is measured in the daemon's own
process, by a task that wants to run every five milliseconds. Then, how 100,000 due orders are
asked for after an outage, on a clock that need not be waited for.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import selectors
import shutil
import sqlite3
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from harvester import logs
from harvester.app import open_app
from harvester.config.load import load
from harvester.context import Stop
from harvester.lune import RateLimiter
from harvester.runtime.service import serve
from harvester.sandbox import Sandbox, SandboxOptions
from tests.acceptance.harness import Home, until
from tests.faults.proxy import Proxy
from tests.faults.scene import Scene

ORDERS = 6
AT_ONCE = 12
_EVERY = 0.005
_MORE = 0.5


@dataclass(frozen=True, slots=True)
class Lags:
    """How late the loop was, in seconds, over so many measurements."""

    count: int
    p50: float
    p99: float
    most: float


@dataclass(frozen=True, slots=True)
class Flood:
    """What a server saw of very many due orders: how many requests, how dense, how long it took."""

    served: int
    most_in_a_second: int
    seconds: float


async def measure(scene: Scene, scenario: str, seconds: float) -> Lags:
    """Run the daemon in a process of its own and return the lag of its loop meanwhile.

    ``scenario`` is ``idle``, ``fsync`` (the next two of each thread take ``seconds``) or
    ``locked`` (the ledger is, for so long).
    """
    scene.home.configure(harvest__sweep_interval="300ms")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.loop_lag", scene.home.config),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env=scene.home.environment(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    await process.stdout.readline()  # it is open
    process.stdin.write(b"go\n")
    for _ in range(ORDERS):
        scene.order()
    disturb = {"idle": _wait, "fsync": _delay_fsync, "locked": _lock}[scenario]
    try:
        await disturb(scene, process, seconds)
        await until(lambda: len(scene.home.files()) == ORDERS)
        process.stdin.close()
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    scene.keep(err.decode())
    return Lags(**json.loads(out))


async def _wait(scene: Scene, process: Process, seconds: float) -> None:
    await asyncio.sleep(seconds)


async def _delay_fsync(scene: Scene, process: Process, seconds: float) -> None:
    strace = shutil.which("strace")
    assert strace is not None
    calls = "fsync,fdatasync"
    delay = f"inject={calls}:delay_enter={seconds * 1e6:.0f}us:when=1..2"
    tracer = await asyncio.create_subprocess_exec(
        *(strace, "-f", "-qq", "-o", os.devnull, "-p", str(process.pid)),
        *("-e", f"trace={calls}", "-e", delay),
        stderr=DEVNULL,
    )
    try:
        await asyncio.sleep(2 * seconds + _MORE)
    finally:
        if tracer.returncode is None:
            tracer.terminate()
        await tracer.wait()


async def _lock(scene: Scene, process: Process, seconds: float) -> None:
    with closing(sqlite3.connect(scene.home.ledger, isolation_level=None)) as other:
        other.execute("PRAGMA busy_timeout = 5000")
        other.execute("BEGIN IMMEDIATE")
        await asyncio.sleep(seconds)
        other.execute("ROLLBACK")


async def _be_measured(config: Path) -> Lags:
    """Run the daemon until stdin ends; measure from its first line on."""
    stop = Stop()
    logs.configure("info", "json")
    async with open_app(load(config), stop, "loop lag") as app:
        running = asyncio.create_task(serve(app), name="daemon")
        print("open", flush=True)  # noqa: T201 - the other process waits for it
        await asyncio.to_thread(sys.stdin.readline)
        measuring = asyncio.create_task(_measure_lag(stop), name="measuring")
        await asyncio.to_thread(sys.stdin.read)
        stop.request()
        await running
        late = sorted(await measuring)
    at = len(late) - 1
    return Lags(len(late), *(round(late[round(at * share)], 4) for share in (0.5, 0.99, 1.0)))


async def _measure_lag(stop: Stop) -> list[float]:
    late = []
    while not stop.requested:
        before = time.monotonic()
        await asyncio.sleep(_EVERY)
        late.append(time.monotonic() - before - _EVERY)
    return late


class _Skipping(selectors.SelectSelector):
    """Where a loop would wait, time passes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += max(timeout or 0.0, 0.0)
        return super().select(0)


class _VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on a clock that need not be waited for."""

    def __init__(self) -> None:
        self._skipping = _Skipping()
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._skipping.now


def flood(orders: int, rate: float) -> Flood:
    """Send this many requests through the real rate limiter, as the steps do after an outage."""
    loop = _VirtualLoop()
    draw = random.Random(5)
    counted: list[float] = []
    left = iter(range(orders))
    rate_limiter = RateLimiter(rate, clock=loop.time)

    async def worker() -> None:
        for _ in left:
            async with rate_limiter.turn():
                way = draw.uniform(0.02, 0.6)
                counted.append(loop.time() + draw.random() * way)
                await asyncio.sleep(way)

    async def recover() -> None:
        rate_limiter.pause(300)  # what Lune last said before it went away
        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))

    try:
        loop.run_until_complete(recover())
    finally:
        loop.close()
    return Flood(len(counted), _most_in_a_second(sorted(counted)), counted[-1] - 300)


def _most_in_a_second(instants: list[float]) -> int:
    window: deque[float] = deque()
    most = 0
    for at in instants:
        window.append(at)
        while window[0] <= at - 1.0:
            window.popleft()
        most = max(most, len(window))
    return most


async def _report() -> None:
    options = SandboxOptions(orders=0, client_accounts=1, speed=0, rate_limit=0)
    for scenario, seconds in (("idle", 5.0), ("fsync", 5.0), ("locked", 30.0)):
        with TemporaryDirectory(prefix="harvester-loop-lag-") as folder:
            async with Sandbox(options) as lune, Proxy(lune.base_url, lune.accounts[0].id) as proxy:
                home = Home(Path(folder), lune, lune__base_url=proxy.base_url)
                lags = await measure(Scene(home, lune, proxy), scenario, seconds)
        times = [f"{1000 * one:8.1f} ms" for one in (lags.p50, lags.p99, lags.most)]
        print(f"{scenario:8}", "p50", times[0], " p99", times[1], " max", times[2])  # noqa: T201 - the command's output


def main() -> None:
    """Measure everything; or, given a configuration, be what is measured."""
    if len(sys.argv) > 1:
        print(json.dumps(asdict(asyncio.run(_be_measured(Path(sys.argv[1]))))))  # noqa: T201 - for the other process
        return
    asyncio.run(_report())
    after = flood(100_000, rate=12.0)
    print(f"100,000 due orders: {after.most_in_a_second} in the fullest second of 12 allowed")  # noqa: T201 - the command's output


if __name__ == "__main__":
    main()
