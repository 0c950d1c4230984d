"""A sample of the kill sweep: three calls of each flow, and that it would tell."""

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
from tests.faults.invariants import BrokenError
from tests.faults.kill_sweep import parse_sample, sweep
from tests.faults.scene import Scene

pytestmark = pytest.mark.usefixtures("traceable")

CHECKOUT = Path(__file__).parents[3]
SAMPLE = {
    "first-drain": (17, 150, 270),
    "one-certificate": (30, 70, 110),
    "status-change": (20, 50, 85),
    "migration": (20, 60, 130),
    "backup": (15, 55, 90),
    "repair": (10, 60, 150),
    "recovery": (12, 80, 150),
}


@pytest.mark.parametrize("flow", FLOWS)
async def test_killed_at_a_call_it_goes_on_from_what_it_left(flow: str) -> None:
    swept = await sweep(FLOWS[flow], SAMPLE[flow])
    assert swept.violations == {}
    assert swept.killed == len(SAMPLE[flow])


async def test_a_sweep_ends_with_the_run_that_is_not_killed() -> None:
    swept = await sweep(FLOWS["backup"], [10_000, 1])
    assert (swept.killed, swept.violations) == (0, {})


async def test_what_does_not_hold_is_told_and_its_files_are_kept() -> None:
    async def never(scene: Scene) -> int:
        raise BrokenError("this never holds")

    swept = await sweep(replace(FLOWS["backup"], finish=never), [30])
    [(where, what)] = swept.violations.items()
    assert where.startswith("30: ")
    assert "this never holds" in what
    folder = Path(what.rpartition("\nin ")[2])
    assert (folder / "data" / "harvester.db").exists()
    shutil.rmtree(folder.parent)


def test_the_command_tells_what_it_did() -> None:
    arguments = ("--flow", "backup", "--sample", "95/1000", "--json")
    command = (sys.executable, "-m", "tests.faults.kill_sweep", *arguments)
    ran = subprocess.run(
        command, cwd=CHECKOUT, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert (told["flow"], told["killed"], told["violations"]) == ("backup", 1, {})


def test_a_sample_is_some_of_the_calls() -> None:
    assert parse_sample(None, None) == (1, 1)
    assert parse_sample("2/5", None) == (2, 5)
    assert parse_sample(None, 7) == (1, 7)


@pytest.mark.parametrize("sample", ["0/5", "6/5", "5", "a/b"])
def test_a_sample_that_is_none_is_refused(sample: str) -> None:
    with pytest.raises(click.UsageError):
        parse_sample(sample, None)
