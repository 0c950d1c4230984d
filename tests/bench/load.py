"""What floods at the listener cost the harvest: its rate under load beside its rate without.

The installed daemon fetches a backlog of certificates from the sandbox, at the rate that it would
have in production, and takes webhooks. Quiet phases and loads take turns in one run: a thousand
genuine webhooks a second, slow and oversized requests, thousands of idle connections, and all
together. All along an open order moves now and then, and a webhook says so: sent again until it is
taken, as Lune does. The load comes from a process of its own (:mod:`tests.bench.flood`).

    python -m tests.bench.load [--seconds N] [--quiet N] [--rate-limit N] [--webhooks N]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harvester.domain.orders import Source
from harvester.ledger.database import open_reader
from harvester.ledger.queries import find_orders
from harvester.sandbox import Sandbox, SandboxOptions
from tests.acceptance.harness import HARVESTER
from tests.bench.__main__ import print_table
from tests.bench.flood import event, percentile, read_answer, signed
from tests.bench.installation import Installation
from tests.bench.processes import glance
from tests.bench.static_lune import KEY

LOADS = {
    "webhooks": ("webhooks",),
    "slow and oversized": ("slow", "oversized"),
    "idle connections": ("idle",),
    "all together": ("webhooks", "slow", "oversized", "idle"),
}
_SECRET = "secret-of-the-benchmark"
_FLOOD = Path(__file__).with_name("flood.py")
_PROBE_SECONDS = 1.0
_LATE_CHECKS = 10.0
_RESET_PEAK = "5"
"""What proc(5) takes at ``clear_refs`` to begin a new peak of memory."""

Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class Setting:
    """How long and how much; ``loads`` names what is measured between quiet phases."""

    seconds: float = 60.0
    quiet: float = 30.0
    rate_limit: int = 15
    webhooks: int = 1000
    idle: int = 10_000
    loads: tuple[str, ...] = tuple(LOADS)

    @property
    def orders(self) -> int:
        """How many certificates last for the whole run, its beginning included."""
        loads = len(self.loads)
        whole = (loads + 1) * self.quiet + loads * self.seconds + (2 * loads + 1) * _LATE_CHECKS
        return int(self.rate_limit * (whole + 20))


SMALL = Setting(seconds=2, quiet=2, webhooks=50, idle=300, loads=("webhooks", "all together"))


@dataclass(slots=True)
class Bench:
    """The running daemon, its Lune, and the webhooks that say what truly moved."""

    setting: Setting
    home: Installation
    lune: Sandbox
    pid: int
    port: int
    complete: list[str]
    movable: list[str]
    sent: dict[str, float] = field(default_factory=dict)
    refused: int = 0

    @property
    def account_id(self) -> str:
        return self.lune.accounts[0].id

    async def probe(self) -> None:
        """Move an order now and then, and tell of it by new connections until that is taken."""
        for order_id in self.movable:
            self.lune.move_order(order_id, "retiring")
            self.sent[order_id] = time.time()
            body = event(f"probe-{order_id}", "order.retiring", self.account_id, order_id)
            while await self._post(body) != "200":
                self.refused += 1
                await asyncio.sleep(0.2)
            await asyncio.sleep(_PROBE_SECONDS)

    async def _post(self, body: bytes) -> str:
        with suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                writer.write(signed(body, _SECRET.encode()))
                return await read_answer(reader)
            finally:
                writer.close()
        return ""


@dataclass(frozen=True, slots=True)
class Phase:
    """What so much time brought; ``flood`` is what the load tells of itself."""

    name: str
    seconds: float
    certificates: float
    requests: float
    cores: float
    peak_mb: float
    checks: list[float]
    refused: int
    flood: dict[str, Any]


def measure(*, small: bool = False, setting: Setting | None = None) -> list[Row]:
    """Return a row a phase, in their order."""
    chosen = setting or (SMALL if small else Setting())
    with TemporaryDirectory(prefix="harvester-bench-") as folder:
        phases = asyncio.run(_run(Path(folder), chosen))
    rows = []
    for number, one in enumerate(phases):
        beside = phases[max(0, number - 1) : number + 2 : 2]
        quiet = sum(other.certificates for other in beside) / len(beside)
        rows.append(_row(one, quiet if one.flood else None))
    return rows


def _row(one: Phase, quiet: float | None) -> Row:
    answers = one.flood.get("answers", {})
    others = sum(answers.values()) - answers.get("200", 0) - answers.get("503", 0)
    row: Row = {
        "phase": one.name,
        "certificates/s": round(one.certificates, 2),
        "of quiet": "" if quiet is None else f"{one.certificates / quiet:.0%}",
        "requests/s": round(one.requests, 2),
        "cores": round(one.cores, 2),
        "peak MB": round(one.peak_mb),
        "webhook to check p50, ms": percentile(one.checks, 0.5),
        "p95, ms": percentile(one.checks, 0.95),
        "probes refused": one.refused,
    }
    if answers:
        row |= {
            "200": answers.get("200", 0),
            "503": answers.get("503", 0),
            "other": others,
            "p50 ms": one.flood["p50 ms"],
            "p99 ms": one.flood["p99 ms"],
        }
    if one.flood:
        row["load's cores"] = round(one.flood["cpu"] / one.seconds, 2)
        row["others' ends"] = ", ".join(f"{k} {n}" for k, n in sorted(one.flood["ends"].items()))
    return row


async def _run(folder: Path, setting: Setting) -> list[Phase]:
    async with _running(folder, setting) as bench:
        probing = asyncio.create_task(bench.probe())
        try:
            measured = [await _measure(bench, "quiet", ())]
            for name in setting.loads:
                measured.append(await _measure(bench, name, LOADS[name]))
                measured.append(await _measure(bench, "quiet", ()))
            return measured
        finally:
            probing.cancel()
            await asyncio.wait({probing})


async def _measure(bench: Bench, name: str, kinds: tuple[str, ...]) -> Phase:
    seconds = bench.setting.seconds if kinds else bench.setting.quiet
    Path("/proc", str(bench.pid), "clear_refs").write_text(_RESET_PEAK)
    before, asked, known = glance(bench.pid), bench.lune.journal.count(), len(bench.sent)
    stored, refused, began = _stored(bench), bench.refused, time.monotonic()
    flooding = asyncio.create_task(_flood(bench, kinds, seconds))
    await asyncio.sleep(seconds)
    lasted = time.monotonic() - began
    after, stored_after, asked_after = glance(bench.pid), _stored(bench), bench.lune.journal.count()
    sent = dict(list(bench.sent.items())[known:])
    refused = bench.refused - refused
    flood = await flooding
    return Phase(
        name,
        lasted,
        (stored_after - stored) / lasted,
        (asked_after - asked) / lasted,
        (after.cpu - before.cpu) / lasted,
        after.peak_mb,
        await _checks(bench, sent),
        refused,
        flood,
    )


def _stored(bench: Bench) -> int:
    return sum(1 for _ in bench.home.archive.rglob("*.pdf"))


async def _checks(bench: Bench, sent: dict[str, float]) -> list[float]:
    """Return how long after its webhook each order was seen to have moved, in seconds."""
    found: dict[str, float] = {}
    deadline = time.monotonic() + _LATE_CHECKS
    while len(found) < len(sent) and time.monotonic() < deadline:
        async with open_reader(bench.home.ledger) as database:
            for order_id in sent.keys() - found.keys():
                (order,) = await find_orders(database, order_id)
                moved = [one for one in order.transitions if one.source == Source.WEBHOOK]
                if moved:
                    found[order_id] = moved[-1].observed_at.timestamp() - sent[order_id]
        await asyncio.sleep(0.2)
    return [found.get(order_id, _LATE_CHECKS) for order_id in sent]


async def _flood(bench: Bench, kinds: tuple[str, ...], seconds: float) -> dict[str, Any]:
    if not kinds:
        return {}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", _FLOOD, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    told = {
        "port": bench.port,
        "seconds": seconds,
        "kinds": kinds,
        "secret": _SECRET,
        "account_id": bench.account_id,
        "order_ids": bench.complete,
        "rate": bench.setting.webhooks,
        "idle": bench.setting.idle,
        "series": "-".join(kinds),
    }
    out, _ = await process.communicate(json.dumps(told).encode())
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, "flood.py")
    answered: dict[str, Any] = json.loads(out)
    return answered


@asynccontextmanager
async def _running(folder: Path, setting: Setting) -> AsyncIterator[Bench]:
    """Run Lune and the daemon; the block begins when all orders are known."""
    options = SandboxOptions(orders=0, client_accounts=0, speed=0, rate_limit=0, key=KEY)
    async with Sandbox(options) as lune:
        complete = [lune.create_order("complete", hold=True).id for _ in range(setting.orders)]
        probes = int(setting.orders / setting.rate_limit / _PROBE_SECONDS)
        movable = [lune.create_order("paid", hold=True).id for _ in range(probes)]
        home = Installation(
            folder,
            lune__base_url=lune.base_url,
            lune__rate_limit=setting.rate_limit,
            http__listen="127.0.0.1:0",
            webhook__secret=_SECRET,
            harvest__sweep_interval="6h",
            log__format="json",
        )
        log = folder / "log"
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                HARVESTER, "run", cwd=folder, env=home.environment(), stderr=stderr
            )
        try:
            started = await _logged(log, process, "listening")
            await _logged(log, process, "sweep finished")
            port = int(started["address"].rpartition(":")[2])
            yield Bench(setting, home, lune, process.pid, port, complete, movable)
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            await process.wait()


async def _logged(log: Path, process: asyncio.subprocess.Process, name: str) -> dict[str, Any]:
    async with asyncio.timeout(300):
        while process.returncode is None:
            for line in log.read_text().splitlines():
                if f'"event": "{name}"' in line:
                    found: dict[str, Any] = json.loads(line)
                    return found
            await asyncio.sleep(0.2)
    raise subprocess.CalledProcessError(process.returncode or 0, "harvester run")


def main() -> int:
    """Measure as the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.load")
    default = Setting()
    for name, text in (
        ("seconds", "of each load"),
        ("quiet", "seconds between loads"),
        ("rate-limit", "requests a second"),
        ("webhooks", "a second"),
        ("idle", "connections"),
    ):
        value = getattr(default, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=type(value), default=value, help=text)
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=tuple(LOADS))
    arguments = vars(parser.parse_args())
    setting = Setting(**arguments | {"loads": tuple(arguments["loads"])})
    print_table(measure(setting=setting))
    return 0


if __name__ == "__main__":
    sys.exit(main())
