"""Let the installed daemon work for a long time under faults, and see whether it grows.

``python -m tests.faults.soak --minutes N [--json]``. The sandbox runs in this process and the
daemon in one of its own, so what is sampled is the daemon alone. Months pass in seconds, orders
are placed all the time, and answers go wrong in a dozen ways. At the end the daemon is asked to
stop, the faults cease, a drain brings in what is owed, and the invariants must hold.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import aiohttp
import click

from harvester.sandbox import Sandbox, SandboxOptions
from harvester.web.local_socket import reachable, socket_path
from tests.acceptance.harness import Home, Running, until
from tests.faults.invariants import check_invariants
from tests.faults.proxy import Exchange, Proxy
from tests.faults.scene import PRIVATE, Scene

FAULTS = (
    "slow=0.3,share=0.05",
    "reset,share=0.02",
    "rate-limit=1,share=0.005",
    "server-errors,share=0.05",
    "edge-block,share=0.005",
    "not-json,share=0.01",
    "backward,share=0.02",
    "unknown-status,share=0.02",
    "missing-order,share=0.02",
    "malformed-order,share=0.05",
    "truncate,share=0.05",
    "html-certificate,share=0.02",
    "not-pdf,share=0.02",
)
SPEED = 1_000_000
"""Simulated seconds a second: an order's month passes in two and a half seconds."""

_YEAR_S = 365.25 * 86_400
_PAUSE_S = 0.2
_RATE = 50
_PATIENCE_S = 1800.0
"""The last drain may have hours of failed downloads to make up for."""

_WIDTHS = {
    "at": 8,
    "rss_kib": 9,
    "descriptors": 11,
    "threads": 7,
    "answer_ms": 9,
    "wal_kib": 7,
    "ledger_kib": 10,
    "stored": 6,
    "requests": 8,
}
_COLUMNS = ("rss_kib", "descriptors", "threads", "answer_ms", "wal_kib")


@dataclass(frozen=True, slots=True)
class Sample:
    """The daemon at one moment, ``at`` seconds after the start.

    ``answer_ms`` is how long it takes to refuse a request on its local socket: the event loop's
    lag, seen from outside.
    """

    at: float
    rss_kib: int
    descriptors: int
    threads: int
    answer_ms: float
    wal_kib: int
    ledger_kib: int
    stored: int
    requests: int


@dataclass(slots=True)
class Soak:
    """What a soak saw; ``slopes`` are per hour, by least squares over the ``steady`` samples."""

    seconds: float
    samples: list[Sample] = field(default_factory=list)
    simulated_years: float = 0.0
    placed: int = 0
    complete: int = 0
    stored: int = 0
    requests: int = 0
    faults: dict[str, int] = field(default_factory=dict)

    @property
    def steady(self) -> list[Sample]:
        """The samples after the warm-up, which is the first fifth."""
        return [one for one in self.samples if one.at >= self.seconds / 5]

    @property
    def slopes(self) -> dict[str, float]:
        """How fast each column grows; none while there are too few samples to tell."""
        steady = self.steady
        if len(steady) < 3:
            return {}
        hours = [one.at / 3600 for one in steady]
        return {
            name: statistics.linear_regression(hours, [getattr(one, name) for one in steady]).slope
            for name in _COLUMNS
        }


async def soak(
    folder: Path,
    seconds: float,
    every: float,
    tell: Callable[[Sample], None] = lambda _: None,
    orders: int = 200,
) -> Soak:
    """Run the daemon in ``folder`` for some seconds and sample it; raises what is broken.

    ``orders`` are there at the start, and five a second are placed.

    An ``AssertionError`` when the daemon ended by itself, did not end well, or left something
    undone; a ``BrokenError`` when an invariant does not hold.
    """
    options = SandboxOptions(orders=orders, client_accounts=2, speed=SPEED, rate_limit=0)
    result = Soak(seconds)
    async with Sandbox(options) as lune, Proxy(lune.base_url, lune.accounts[0].id) as proxy:
        home = Home(
            folder,
            lune,
            lune__base_url=proxy.base_url,
            lune__rate_limit=_RATE,
            harvest__sweep_interval="1s",
            harvest__longest_interval="30s",
        )
        scene = Scene(home, lune, proxy)
        began_at = lune.clock.now()
        await _let_it_run(scene, result, every, tell)
        result.simulated_years = (lune.clock.now() - began_at) / _YEAR_S
        result.requests = proxy.count()
        await _bring_to_an_end(scene, result)
    return result


async def _let_it_run(
    scene: Scene, result: Soak, every: float, tell: Callable[[Sample], None]
) -> None:
    async with scene.home.daemon() as daemon:
        # Only now: the start asks for the accounts once, and is not what is examined here.
        for fault in FAULTS:
            scene.lune.faults.add(fault)
        scene.proxy.script(_through, times=math.inf)
        placing = asyncio.create_task(_place(scene.lune), name="placing")
        try:
            began = time.monotonic()
            while (at := time.monotonic() - began) < result.seconds:
                await asyncio.sleep(min(every, result.seconds - at))
                assert not daemon.ended, "".join(daemon.err[-5:])
                sample = await _sample(scene, daemon, time.monotonic() - began)
                result.samples.append(sample)
                tell(sample)
                _forget_repeats(scene.proxy)
        finally:
            placing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await placing
        ended = await daemon.end()
        scene.keep(ended.err)
        assert ended.code == 0, ended.err[-2000:]


async def _bring_to_an_end(scene: Scene, result: Soak) -> None:
    """Stop the clock and the faults, fetch what is owed, and hold everything against the record."""
    lune = scene.lune
    lune.clock.run_at(0)
    for fault in lune.faults.active():
        result.faults[fault.name] = lune.faults.hits[fault.name]
        lune.faults.remove(fault.name)
    retried = await scene.command("retry", "--all")
    async with scene.home.running("run", "--drain") as draining:
        await until(lambda: draining.ended, _PATIENCE_S)
        drained = await draining.result()
    scene.keep(drained.err)
    assert (retried.code, drained.code) == (0, 0), retried.err[-1000:] + drained.err[-2000:]
    orders = [order for account in lune.accounts for order in lune.orders(account.id)]
    complete = {order.id for order in orders if lune.status(order.id) == "complete"}
    result.placed, result.complete = len(orders), len(complete)
    result.stored = len(scene.home.files())
    assert {Path(name).stem for name in scene.home.files()} >= complete
    await check_invariants(scene)


async def _through(exchange: Exchange) -> None:
    """Let a request pass; hang up after an answer that the sandbox cut short, as it did."""
    answer = await exchange.upstream()
    await exchange.say(answer)
    head, _, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    if length is not None and len(body) < int(length[1]):
        exchange.writer.close()


async def _place(lune: Sandbox) -> None:
    while True:
        for account in lune.accounts:
            lune.create_order(account_id=account.id, metadata={"note": PRIVATE})
        await asyncio.sleep(_PAUSE_S * len(lune.accounts))


async def _sample(scene: Scene, daemon: Running, at: float) -> Sample:
    ledger = scene.home.ledger
    process = Path(f"/proc/{daemon.process.pid}")
    status = dict(re.findall(r"(\w+):\s+(\d+)", (process / "status").read_text()))
    return Sample(
        at=round(at, 1),
        rss_kib=int(status["VmRSS"]),
        descriptors=sum(1 for _ in (process / "fd").iterdir()),
        threads=int(status["Threads"]),
        answer_ms=round(await _refusal_ms(ledger), 1),
        wal_kib=ledger.with_name(f"{ledger.name}-wal").stat().st_size // 1024,
        ledger_kib=ledger.stat().st_size // 1024,
        stored=sum('"certificate stored"' in line for line in daemon.err),
        requests=scene.proxy.count(),
    )


async def _refusal_ms(ledger: Path) -> float:
    with reachable(socket_path(ledger)) as name:
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=name)) as session:
            began = time.monotonic()
            async with session.get("http://daemon/") as answer:
                assert answer.status == 404
            return (time.monotonic() - began) * 1000


def _forget_repeats(proxy: Proxy) -> None:
    """Keep the record of hours small: what the invariants ask is which statuses were served."""
    first = {(one.account_id, one.order_id, one.status): one for one in reversed(proxy.served)}
    proxy.served[:] = first.values()


def _row(sample: Sample) -> str:
    return " ".join(f"{getattr(sample, name):>{width}}" for name, width in _WIDTHS.items())


def _summary(result: Soak) -> Iterator[str]:
    yield (
        f"{result.simulated_years:.1f} simulated years, {result.placed} orders, {result.complete} "
        f"of them complete, {result.stored} certificates stored, {result.requests} requests"
    )
    yield "faults: " + ", ".join(f"{name} {hits}" for name, hits in result.faults.items())
    for name, slope in result.slopes.items():
        least, most = (f(getattr(one, name) for one in result.steady) for f in (min, max))
        yield f"{name}: {slope:+.1f} an hour, between {least} and {most}"
    yield "every invariant holds"


def _keep_quiet(_: str) -> None:
    """Say nothing: the document is all there is on stdout."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between samples")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")
    chosen = parser.parse_args(arguments)
    say = _keep_quiet if chosen.json else click.echo
    say(" ".join(f"{name:>{width}}" for name, width in _WIDTHS.items()))

    def tell(sample: Sample) -> None:
        say(_row(sample))

    with tempfile.TemporaryDirectory(prefix="harvester-soak-") as folder:
        result = asyncio.run(soak(Path(folder), chosen.minutes * 60, chosen.every, tell))
    if chosen.json:
        click.echo(json.dumps(asdict(result) | {"slopes_per_hour": result.slopes}))
    for line in _summary(result):
        say(line)


if __name__ == "__main__":
    main()
