"""Fail every call that changes a file, one after the other, once or from there on for ever.

    python -m tests.faults.error_sweep [--flow NAME]... [--error NAME]... [--mode once|ever]...
                                       [--sample N/M | --every K] [--jobs J] [--json]

A command whose N-th call fails has to come to an end by itself, with an exit code of the table
that is true (0 only when nothing was left to do) and without a traceback. Then the fault is gone:
the invariants are checked on what was left, the flow is brought to its end, and again. EMFILE
is given to the calls that open a file, and counts those alone: no other can fail with it.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from itertools import count, product
from multiprocessing import get_context

import click

from harvester.cli.exits import CONFIGURATION, DONE, FAULT, UNFINISHED
from tests.acceptance.harness import events
from tests.faults.flows import FLOWS
from tests.faults.injected_faults import FaultyRun, ForkServer, start_fork_server
from tests.faults.invariants import BrokenError
from tests.faults.kill_sweep import parse_sample
from tests.faults.replayed_flow import Flow, ReplayedFlow, open_replayed_flow
from tests.faults.tracer import InjectedFault

ERRORS = ("EIO", "ENOSPC", "EMFILE", "EROFS")
MODES = ("once", "ever")
_ONLY = {"EMFILE": "openat"}
_HONEST = (DONE, FAULT, UNFINISHED, CONFIGURATION)


@dataclass(slots=True)
class Sweep:
    """What came of a flow's calls failing: how many ``runs`` met it, and what did not hold."""

    flow: str
    fault: str = ""
    runs: int = 0
    codes: Counter[int] = field(default_factory=Counter)
    violations: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


async def sweep(flow: Flow, faults: Iterable[InjectedFault], fork_server: ForkServer) -> Sweep:
    """Have a flow's calls fail, each time as the next fault says, until one does not come."""
    began = time.monotonic()
    swept = Sweep(flow.name)
    async with open_replayed_flow(flow, fork_server) as replayed:
        for fault in faults:
            if not await _fail(replayed, fault, swept):
                break
    swept.seconds = time.monotonic() - began
    return swept


async def _fail(replayed: ReplayedFlow, fault: InjectedFault, swept: Sweep) -> bool:
    """Run once under the error; False when the command ended before it met it."""
    mode = "ever" if fault.ever else "once"
    where = f"{fault.what} {mode} from {fault.at}"
    async with replayed.at_its_beginning() as scene:
        try:
            run = await scene.run_with_fault(replayed.flow.command, fault)
        except TimeoutError:
            swept.violations[where] = "it did not end by itself"
            return True
        if run.hit is None:
            return False
        swept.runs += 1
        swept.codes[run.code] += 1
        problems = list(_dishonest(run))
        try:
            left = await replayed.check_and_finish(scene)
        except BrokenError as broken:
            problems.append(str(broken))
        else:
            if left and run.code == DONE:
                problems.append(f"it ended with 0 and left {left} things to do")
    if problems:
        swept.violations[f"{where}: {run.hit}"] = "; ".join([f"code {run.code}", *problems])
        # The end may be an hour away.
        click.echo(f"{swept.flow} {where}: {run.hit}: {problems}", err=True)
    return True


def _dishonest(run: FaultyRun) -> Iterator[str]:
    """Yield what is wrong with the code a command ended with, and with what it logged."""
    if run.code not in _HONEST:
        yield f"no exit code for a fault of the disk: {run.ran.err}"
    traces = [event["exception"] for event in events(run.ran.err) if "exception" in event]
    for trace in (*traces, *re.findall(r"(?ms)^Traceback .*", run.ran.err)):
        frames = [line.strip() for line in trace.splitlines() if "/harvester/" in line]
        yield " in ".join([trace.strip().splitlines()[-1], *frames[-1:]])


def _shard(
    flow: str, error: str, mode: str, first: int, step: int, fork_server: ForkServer
) -> Sweep:
    ever, only = mode == "ever", _ONLY.get(error)
    faults = (InjectedFault(number, error, ever, only) for number in count(first, step))
    swept = asyncio.run(sweep(FLOWS[flow], faults, fork_server))
    swept.fault = f"{error} {mode}"
    return swept


def sweep_all(
    flows: Iterable[str], faults: Iterable[tuple[str, str]], first: int, step: int, jobs: int
) -> Iterator[Sweep]:
    """Sweep flows with so many processes at a time; yield sweeps by flow and fault."""
    pool_of = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    with start_fork_server() as fork_server, pool_of as pool:
        shards = [
            pool.submit(_shard, flow, *fault, first, step, fork_server)
            for flow, fault in product(flows, faults)
        ]
        yield from (shard.result() for shard in as_completed(shards))


@click.command(help=__doc__)
@click.option("--flow", "flows", type=click.Choice(list(FLOWS)), multiple=True)
@click.option("--error", "errors", type=click.Choice(ERRORS), multiple=True)
@click.option("--mode", "modes", type=click.Choice(MODES), multiple=True)
@click.option("--sample", metavar="N/M", help="Calls N, N+M, N+2M, ... only.")
@click.option("--every", type=click.IntRange(1), help="Every K-th call, beginning with the first.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="JSON Lines on stdout.")
def main(
    flows: tuple[str, ...],
    errors: tuple[str, ...],
    modes: tuple[str, ...],
    sample: str | None,
    every: int | None,
    jobs: int,
    as_json: bool,
) -> None:
    """Sweep and report; exit 1 when anything did not hold."""
    faults = list(product(errors or ERRORS, modes or MODES))
    broken = 0
    for one in sweep_all(flows or FLOWS, faults, *parse_sample(sample, every), jobs):
        broken += len(one.violations)
        if as_json:
            # asdict() counts a counter's pairs.
            click.echo(json.dumps(asdict(one) | {"codes": one.codes}))
            continue
        codes = ", ".join(f"{times} x {code}" for code, times in sorted(one.codes.items()))
        found = f"{one.runs} runs ended with {codes}; {len(one.violations)} violations"
        click.echo(f"{one.flow} {one.fault}: {found}, {one.seconds:.1f} s")
        for where, what in one.violations.items():
            click.echo(f"  {where}: {what}")
    sys.exit(min(broken, 1))


if __name__ == "__main__":
    main()
