"""A sample of the kill sweep: three calls of each flow, and that it would report."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import pytest

from tests.faults.flows import FLOWS
from tests.faults.injected_faults import ForkServer
from tests.faults.invariants import BrokenError
from tests.faults.kill_sweep import parse_sample, sweep
from tests.faults.scene import Scene
from tests.faults.tracer import InjectedFault

pytestmark = pytest.mark.usefixtures("traceable")

CHECKOUT = Path(__file__).parents[3]
SAMPLE = {
    "first-drain": ("unlink:1", "fsync:4", "linkat:2", "fdatasync:12"),
    "one-certificate": ("fdatasync:2", "linkat:1", "unlinkat:1"),
    "status-change": ("openat:2", "pwrite64:15", "fdatasync:1"),
    "migration": ("pwrite64:30", "unlink:1", "fdatasync:2"),
    "backup": ("pwrite64:3", "fsync:1", "unlink:2"),
    "repair": ("renameat:1", "linkat:2", "fdatasync:3"),
    "recovery": ("unlinkat:1", "linkat:1", "fdatasync:2"),
}
"""The calls at which the suite kills: the name, and which of that name."""


@pytest.mark.parametrize("flow", FLOWS)
async def test_killed_at_a_call_it_goes_on_from_what_it_left(
    flow: str, fork_server: ForkServer
) -> None:
    calls = (call.split(":") for call in SAMPLE[flow])
    swept = await sweep(
        FLOWS[flow], [InjectedFault(int(at), only=name) for name, at in calls], fork_server
    )
    assert swept.violations == {}
    assert swept.killed == len(SAMPLE[flow])


async def test_a_sweep_ends_with_the_run_that_is_not_killed(fork_server: ForkServer) -> None:
    swept = await sweep(FLOWS["backup"], [InjectedFault(10_000), InjectedFault(1)], fork_server)
    assert (swept.killed, swept.violations) == (0, {})


async def test_what_does_not_hold_is_reported_and_its_files_are_kept(
    fork_server: ForkServer,
) -> None:
    async def never(scene: Scene) -> int:
        raise BrokenError("this never holds")

    swept = await sweep(replace(FLOWS["backup"], finish=never), [InjectedFault(30)], fork_server)
    [(where, what)] = swept.violations.items()
    assert where.startswith("30: ")
    assert "this never holds" in what
    folder = Path(what.rpartition("\nin ")[2])
    assert (folder / "data" / "harvester.db").exists()
    shutil.rmtree(folder.parent)


def test_the_command_prints_what_it_did() -> None:
    arguments = ("--flow", "backup", "--sample", "80/1000", "--json")
    command = (sys.executable, "-m", "tests.faults.kill_sweep", *arguments)
    ran = subprocess.run(
        command, cwd=CHECKOUT, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    printed = json.loads(ran.stdout)
    assert (printed["flow"], printed["killed"], printed["violations"]) == ("backup", 1, {})


def test_a_sample_is_some_of_the_calls() -> None:
    assert parse_sample(None, None) == (1, 1)
    assert parse_sample("2/5", None) == (2, 5)
    assert parse_sample(None, 7) == (1, 7)


@pytest.mark.parametrize("sample", ["0/5", "6/5", "5", "a/b"])
def test_a_sample_that_is_none_is_refused(sample: str) -> None:
    with pytest.raises(click.UsageError):
        parse_sample(sample, None)
