"""Cut the power at every step of a real run, in every way a disk may be left, and check.

``python -m tests.faults.power_loss [--states N] [--weaken NAME]``. A run of the installed command
is recorded with strace, with all it writes: two drains that store three certificates and see one
order move on. It is then played on a model of a disk. After each step every state is checked that
a crash may leave; a sample of them is given back to the program, which has to recover, and to a
second crash while it does. Weaker variants, made of the same recording, must each be caught.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import click

from harvester.sandbox import Sandbox, SandboxOptions
from tests.acceptance.harness import HARVESTER, Home
from tests.faults.campaigns.disk_model import Disk, State
from tests.faults.campaigns.power_cuts import Extent, Outcome, crash
from tests.faults.campaigns.state_check import ARCHIVE, Promises, StateCheck
from tests.faults.campaigns.storage_variants import VARIANTS, apply
from tests.faults.campaigns.strace_log import Op, read_trace, strace
from tests.faults.invariants import check_invariants
from tests.faults.proxy import Proxy
from tests.faults.scene import Scene


class Campaign:
    """A live Lune, a recorded run against it, and crashes of that."""

    def __init__(self, folder: Path, lune: Sandbox, proxy: Proxy) -> None:
        self._folder = folder
        self._lune = lune
        self._wire = proxy
        self._check = StateCheck({}, folder)
        self._recorded = self._home("recorded")
        self._steps: list[Op] = []

    async def record(self) -> None:
        """Record two drains: three certificates are stored, and an order becomes complete."""
        for status in ("complete", "complete"):
            self._lune.create_order(status, hold=True)
        moving = self._lune.create_order("placed", hold=True)
        self._steps = await self._drain_traced(self._recorded)
        self._lune.move_order(moving.id, "complete")
        before = len(self._steps)
        for op in await self._drain_traced(self._recorded):
            self._steps.append(replace(op, began=op.began + before))
        scratch = self._folder / "scratch"
        scratch.mkdir()
        found = {one.id: self._lune.certificate(one.id) or b"" for one in self._lune.orders()}
        hashes = {order: hashlib.sha256(data).hexdigest() for order, data in found.items()}
        self._check = StateCheck(hashes, scratch)

    def crash(self, variant: str, extent: Extent) -> Outcome:
        """Cut the power everywhere in the recorded run, done the variant's way."""
        root = self._recorded.folder
        steps = apply(VARIANTS[variant], self._steps, str(root / ARCHIVE))
        return crash(steps, lambda: Disk(root), Promises(), self._check, extent)

    async def crash_again(self, state: State, promises: Promises, extent: Extent) -> Outcome:
        """Let the program recover from a state, and cut the power everywhere in that."""
        home = self._home("again", state)
        steps = await self._drain_traced(home)
        return crash(steps, lambda: Disk(home.folder, state), promises, self._check, extent)

    async def recover(self, state: State) -> None:
        """Let the program recover: everything must be brought in, and every invariant hold."""
        scene = Scene(self._home("recovering", state), self._lune, self._wire)
        report = await scene.drain()
        assert report.unfinished == [], report.unfinished
        names = {Path(name).stem for name in scene.home.files()}
        assert names == {order.id for order in self._lune.orders()}
        await check_invariants(scene)

    def _home(self, name: str, state: State | None = None) -> Home:
        folder = self._folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if state is not None:
            state.write_to(folder)
        home = Home(folder, self._lune, lune__base_url=self._wire.base_url)
        home.archive = folder / ARCHIVE
        home.configure(storage__url=home.archive.as_uri())
        return home

    async def _drain_traced(self, home: Home) -> list[Op]:
        trace = self._folder / "strace"
        ran = await home.run("run", "--drain", program=(*strace(trace), HARVESTER))
        assert ran.code == 0, ran.err
        statuses = {order.id: self._lune.status(order.id) for order in self._lune.orders()}
        return read_trace(trace.read_text("ascii"), home.folder, json.dumps(statuses).encode())


@asynccontextmanager
async def recorded_campaign(folder: Path) -> AsyncIterator[Campaign]:
    """Record a run in an empty folder; its Lune is there as long as the context is open."""
    options = SandboxOptions(orders=0, speed=0, rate_limit=0)
    async with Sandbox(options) as lune, Proxy(lune.base_url, lune.accounts[0].id) as proxy:
        campaign = Campaign(folder, lune, proxy)
        await campaign.record()
        yield campaign


def row(variant: str, outcome: Outcome) -> str:
    """Return a variant's line of the table."""
    broken = ", ".join(f"{kind} {count}" for kind, count in outcome.violations.items()) or "none"
    return f"{variant:20} {outcome.steps:5} {outcome.places:6} {outcome.states:8}  {broken}"


async def _campaign(folder: Path, chosen: argparse.Namespace) -> bool:
    """Run everything and print the table; tell whether all came out as it must."""
    good = True
    async with recorded_campaign(folder) as campaign:
        click.echo(f"{'variant':20} {'steps':>5} {'places':>6} {'states':>8}  violations")
        for name in [chosen.weaken] if chosen.weaken else VARIANTS:
            of_full = Extent(chosen.states, keep=chosen.recoveries, seed=chosen.seed)
            outcome = campaign.crash(name, of_full if name in {"full", chosen.weaken} else Extent())
            click.echo(row(name, outcome))
            for example in outcome.examples.values() if name == "full" else ():
                click.echo(f"  {example}")
            breaks = VARIANTS[name].breaks
            good &= breaks in outcome.violations if breaks else not outcome.violations
            if name == "full":
                again = await _recoveries(campaign, outcome, chosen.again)
                good &= not again.violations
                click.echo(f"{len(outcome.kept)} states recovered from, every invariant holds")
                click.echo(row("crashed again", again))
    return good


async def _recoveries(campaign: Campaign, outcome: Outcome, again: int) -> Outcome:
    for state, _ in outcome.kept:
        await campaign.recover(state)
    total = Outcome(0)
    for state, promised in outcome.kept[:again]:
        second = await campaign.crash_again(state, promised, Extent(keep=1))
        for left, _ in second.kept:
            await campaign.recover(left)
        total.steps += second.steps
        total.places += second.places
        total.states += second.states
        total.violations += second.violations
    return total


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.power_loss", description=__doc__)
    parser.add_argument("--states", type=int, default=10_000, help="distinct states to check")
    parser.add_argument("--weaken", choices=[name for name in VARIANTS if name != "full"])
    parser.add_argument("--recoveries", type=int, default=20, help="states to recover from")
    parser.add_argument("--again", type=int, default=3, help="recoveries to crash again")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="harvester-power-loss-") as folder:
        good = asyncio.run(_campaign(Path(folder), chosen))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
