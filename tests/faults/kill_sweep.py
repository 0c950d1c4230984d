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
from tests.faults.invariants import BrokenError
from tests.faults.stage import Flow, Stage, open_stage, require_done
from tests.faults.striking import Stem, Strike, grow_stem


@dataclass(slots=True)
class Sweep:
    """What came of one flow: ``killed`` boundaries, and what did not hold, by (N, call)."""

    flow: str
    killed: int = 0
    violations: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


async def sweep(flow: Flow, strikes: Iterable[Strike], stem: Stem) -> Sweep:
    """Kill a flow again and again, each time as the next strike says, until one does not come."""
    began = time.monotonic()
    swept = Sweep(flow.name)
    async with open_stage(flow, stem) as stage:
        for strike in strikes:
            if not await _kill(stage, strike, swept):
                break
    swept.seconds = time.monotonic() - began
    return swept


async def _kill(stage: Stage, strike: Strike, swept: Sweep) -> bool:
    """Kill one run; False when it came to its end first, as it should."""
    async with stage.play() as act:
        struck = await act.strike(stage.flow.command, strike)
        try:
            if struck.hit is None:
                require_done(struck)
            await stage.end(act)
        except BrokenError as broken:
            swept.violations[f"{strike.at}: {struck.hit or 'not killed'}"] = str(broken)
    swept.killed += struck.hit is not None
    return struck.hit is not None


def _shard(flow: str, first: int, step: int, stem: Stem) -> Sweep:
    return asyncio.run(sweep(FLOWS[flow], map(Strike, count(first, step)), stem))


def sweep_all(flows: Iterable[str], first: int, step: int, jobs: int) -> Iterator[Sweep]:
    """Sweep flows with so many processes at a time; yield each flow's figures as they are had."""
    pool_of = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    with grow_stem() as stem, pool_of as pool:
        shards = {
            flow: [
                pool.submit(_shard, flow, first + step * job, step * jobs, stem)
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
    """Sweep and tell; exit 1 when anything did not hold."""
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
