"""Kill the harvester at every call that changes a file, one after the other; start it again.

    python -m tests.faults.kill_sweep [--flow NAME]... [--sample N/M | --every K] [--jobs J]

The N-th run of a flow is killed at its N-th call, for N = 1, 2, 3, ... until a run gets to its
end. After each kill the invariants are checked on what was left, the flow is brought to its end,
and they are checked again. A boundary is a call at which the process died: see ``tracer.py`` for
which calls count.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import count
from multiprocessing import get_context

import click

from tests.faults.flows import FLOWS
from tests.faults.injected_faults import ForkServer, start_fork_server
from tests.faults.invariants import BrokenError
from tests.faults.replayed_flow import Flow, ReplayedFlow, open_replayed_flow, require_done
from tests.faults.tracer import InjectedFault


@dataclass(slots=True)
class Sweep:
    """What came of one flow: ``killed`` boundaries, and what did not hold, by (N, call)."""

    flow: str
    killed: int = 0
    violations: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


async def sweep(flow: Flow, faults: Iterable[InjectedFault], fork_server: ForkServer) -> Sweep:
    """Kill a flow again and again, each time as the next fault says, until one does not come."""
    began = time.monotonic()
    swept = Sweep(flow.name)
    async with open_replayed_flow(flow, fork_server) as replayed:
        for fault in faults:
            if not await _kill(replayed, fault, swept):
                break
    swept.seconds = time.monotonic() - began
    return swept


async def _kill(replayed: ReplayedFlow, fault: InjectedFault, swept: Sweep) -> bool:
    """Kill one run; False when it came to its end first, as it should."""
    async with replayed.at_its_beginning() as scene:
        run = await scene.run_with_fault(replayed.flow.command, fault)
        try:
            if run.hit is None:
                require_done(run)
            await replayed.check_and_finish(scene)
        except BrokenError as broken:
            swept.violations[f"{fault.at}: {run.hit or 'not killed'}"] = str(broken)
    swept.killed += run.hit is not None
    return run.hit is not None


def _shard(flow: str, first: int, step: int, fork_server: ForkServer) -> Sweep:
    return asyncio.run(sweep(FLOWS[flow], map(InjectedFault, count(first, step)), fork_server))


def sweep_all(flows: Iterable[str], first: int, step: int, jobs: int) -> Iterator[Sweep]:
    """Sweep flows with so many processes at a time; yield each flow's sweep as it ends."""
    pool_of = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    with start_fork_server() as fork_server, pool_of as pool:
        shards = {
            flow: [
                pool.submit(_shard, flow, first + step * job, step * jobs, fork_server)
                for job in range(jobs)
            ]
            for flow in flows
        }
        for flow, futures in shards.items():
            whole = Sweep(flow)
            for part in (future.result() for future in futures):
                whole.killed += part.killed
                whole.violations |= part.violations
                whole.seconds = max(whole.seconds, part.seconds)
            yield whole


def parse_sample(text: str | None, every: int | None) -> tuple[int, int]:
    """Return the first number and the step that ``--sample N/M`` or ``--every K`` mean."""
    if text is None:
        return 1, every or 1
    first, _, step = text.partition("/")
    if every or not (first.isdecimal() and step.isdecimal() and 1 <= int(first) <= int(step)):
        raise click.UsageError("--sample is N/M with N from 1 to M, or --every is K; not both")
    return int(first), int(step)


@click.command(help=__doc__)
@click.option("--flow", "flows", type=click.Choice(list(FLOWS)), multiple=True)
@click.option("--sample", metavar="N/M", help="Calls N, N+M, N+2M, ... only.")
@click.option("--every", type=click.IntRange(1), help="Every K-th call, beginning with the first.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="JSON Lines on stdout.")
def main(
    flows: tuple[str, ...], sample: str | None, every: int | None, jobs: int, as_json: bool
) -> None:
    """Sweep and report; exit 1 when anything did not hold."""
    broken = 0
    for one in sweep_all(flows or FLOWS, *parse_sample(sample, every), jobs):
        broken += len(one.violations)
        if as_json:
            click.echo(json.dumps(asdict(one)))
            continue
        found = f"{one.killed} boundaries killed, {len(one.violations)} violations"
        click.echo(f"{one.flow}: {found}, {one.seconds:.1f} s")
        for where, what in one.violations.items():
            click.echo(f"  {where}: {what}")
    sys.exit(min(broken, 1))


if __name__ == "__main__":
    main()
