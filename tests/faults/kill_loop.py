"""Kill the installed command at random, over and over, on one ledger and one archive.

    python -m tests.faults.kill_loop --rounds N [--seed S] [--json]

Lune misbehaves in several ways meanwhile, and its orders keep being made and moving on. A third of
the kills comes at any moment from the start of the process on, a third after some requests, and a
third as soon as a certificate's file has its name, before the ledger knows. Every few rounds Lune
behaves, a run comes to its end and the invariants are checked; at the end too, and that all is
there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import click

from harvester.sandbox import Sandbox, SandboxOptions
from tests.acceptance.harness import PATIENCE, Home, Running, until
from tests.faults.invariants import BrokenError, check_invariants
from tests.faults.proxy import Proxy
from tests.faults.scene import Scene

ROUNDS_TO_A_CHECK = 20
FAULTS = (
    "slow=0.05,share=0.2",
    "reset,share=0.1",
    "server-errors,share=0.1",
    "rate-limit,share=0.03",
    "truncate,share=0.1",
    "not-pdf=cut,share=0.1",
    "certificate-missing,share=0.1",
    "backward,share=0.05",
)
_NEXT = {"received": "placed", "placed": "paid", "paid": "retiring", "retiring": "complete"}
_STARTING_S = 1.0
_WORKING_S = 0.15
_LOOKING_S = 0.001


@dataclass(slots=True)
class Loop:
    """What came of the rounds: ``killed`` of them were, the others had ended by themselves.

    ``idle`` were killed after a minute in which they had asked for less than was waited for.
    """

    rounds: int = 0
    killed: int = 0
    idle: int = 0
    orders: int = 0
    certificates: int = 0
    recovered: int = 0
    checks: int = 0
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0


async def kill_over_and_over(folder: Path, rounds: int, seed: int) -> Loop:
    """Go through the rounds; return what came of them, and every check that failed."""
    began = time.monotonic()
    draw = random.Random(seed)
    loop = Loop()
    async with _scene(folder, seed) as scene:
        _misbehave(scene)
        for number in range(1, rounds + 1):
            _live_on(scene, draw)
            await _round(scene, draw, loop)
            if number % ROUNDS_TO_A_CHECK == 0 or number == rounds:
                await _check(scene, loop)
                _misbehave(scene)
        loop.orders = sum(len(scene.lune.orders(one.id)) for one in scene.lune.accounts)
    loop.seconds = time.monotonic() - began
    return loop


@asynccontextmanager
async def _scene(folder: Path, seed: int) -> AsyncIterator[Scene]:
    options = SandboxOptions(orders=0, client_accounts=1, speed=0, rate_limit=0, seed=seed)
    async with Sandbox(options) as lune, Proxy(lune.base_url, lune.accounts[0].id) as proxy:
        often = {"harvest__sweep_interval": "500ms", "harvest__longest_interval": "5s"}
        yield Scene(Home(folder, lune, lune__base_url=proxy.base_url, **often), lune, proxy)


def _misbehave(scene: Scene) -> None:
    for fault in FAULTS:
        scene.lune.faults.add(fault)


def _live_on(scene: Scene, draw: random.Random) -> None:
    """Make two orders, one of them complete, and move some of the open ones a step on."""
    for status in ("complete", draw.choice(list(_NEXT))):
        scene.order(status, account_id=draw.choice(scene.lune.accounts).id)
    for account in scene.lune.accounts:
        for order in scene.lune.orders(account.id)[:20]:
            status = scene.lune.status(order.id)
            if status in _NEXT and draw.random() < 0.3:
                scene.lune.move_order(order.id, _NEXT[status])


async def _round(scene: Scene, draw: random.Random, loop: Loop) -> None:
    command = draw.choice((("run", "--drain"), ("run",)))
    async with scene.home.running(*command) as running:
        try:
            await _wait_for_a_moment(scene, running, draw)
        except TimeoutError:
            loop.idle += 1  # it keeps a pause that Lune asked for, or the machine is overloaded
        if not running.ended:
            running.process.kill()
        ran = await running.result()
    loop.rounds += 1
    loop.killed += ran.code == -signal.SIGKILL
    scene.keep("".join(running.err))
    loop.recovered += len(running.events("certificate recovered"))
    scene.clean_end = False


async def _wait_for_a_moment(scene: Scene, running: Running, draw: random.Random) -> None:
    kind = draw.choice(("start", "requests", "file"))
    if kind == "start":
        await asyncio.sleep(draw.uniform(0, _STARTING_S))
    elif kind == "requests":
        enough = scene.proxy.count() + draw.randrange(1, 12)
        await until(lambda: running.ended or scene.proxy.count() >= enough)
        await asyncio.sleep(draw.uniform(0, _WORKING_S))
    else:
        stored = {Path(name).stem for name in scene.home.files()}
        orders = [order.id for one in scene.lune.accounts for order in scene.lune.orders(one.id)]
        complete = {one for one in orders if scene.lune.status(one) == "complete"}
        # In a thread, to be quicker than the row in the ledger.
        await asyncio.to_thread(_kill_at_a_file, scene.home, complete - stored, running)


def _kill_at_a_file(home: Home, orders: Collection[str], running: Running) -> None:
    """Kill a command as soon as one of these orders has its certificate's file."""
    ends_at = time.monotonic() + PATIENCE
    while not running.ended:
        if any(any(home.archive.glob(f"*/*/{one}.pdf")) for one in orders):
            with contextlib.suppress(ProcessLookupError):
                running.process.kill()
            return
        if time.monotonic() > ends_at:
            raise TimeoutError
        time.sleep(_LOOKING_S)


async def _check(scene: Scene, loop: Loop) -> None:
    """Let Lune behave, run to the end, and see that all is there and everything agrees."""
    scene.lune.faults.clear()
    loop.checks += 1
    try:
        await check_invariants(scene)
        loop.recovered += await _finish(scene)
        await check_invariants(scene)
    except BrokenError as broken:
        loop.violations.append(f"round {loop.rounds}: {broken}")
    loop.certificates = len(scene.home.files())
    # What was checked need not be checked again: else it takes longer each time.
    scene.proxy.requests.clear()
    scene.proxy.served[:] = {replace(one, at=0.0): one for one in scene.proxy.served}.values()
    for log in scene.home.folder.glob("*.log"):
        log.unlink()


async def _finish(scene: Scene) -> int:
    """Drain to the end; return how many certificates were recovered."""
    report = await scene.drain()
    scene.clean_end = True
    if report.unfinished:
        raise BrokenError(f"a drain without faults left {report.unfinished}")
    return report.collected.recovered


@click.command(help=__doc__)
@click.option("--rounds", type=click.IntRange(1), required=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def main(rounds: int, seed: int, as_json: bool) -> None:
    """Loop and report; exit 1 when anything did not hold."""
    folder = Path(tempfile.mkdtemp(prefix="harvester-kill-loop-"))
    loop = asyncio.run(kill_over_and_over(folder, rounds, seed))
    if as_json:
        click.echo(json.dumps(asdict(loop)))
    else:
        click.echo(
            f"{loop.rounds} rounds, {loop.killed} killed, {loop.idle} of them idle, "
            f"{loop.certificates} certificates of {loop.orders} orders, "
            f"{loop.recovered} recovered, {loop.checks} checks, "
            f"{len(loop.violations)} violations, {loop.rounds / loop.seconds:.2f} rounds/s"
        )
        for line in loop.violations:
            click.echo(f"  {line}")
    click.echo(f"the ledger and the archive are in {folder}", err=True)
    sys.exit(min(len(loop.violations), 1))


if __name__ == "__main__":
    main()
