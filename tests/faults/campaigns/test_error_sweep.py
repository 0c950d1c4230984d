"""A sample of the error sweep: each error, once and for ever, somewhere in every flow."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.error_sweep import sweep
from tests.faults.flows import FLOWS
from tests.faults.injected_faults import ForkServer
from tests.faults.scene import Scene
from tests.faults.tracer import InjectedFault

pytestmark = pytest.mark.usefixtures("traceable")

CHECKOUT = Path(__file__).parents[3]
SAMPLE = [
    ("first-drain", "EIO", "once", ("mkdirat:1", "fsync:4")),
    ("first-drain", "ENOSPC", "ever", ("pwrite64:40", "fdatasync:12")),
    ("first-drain", "EMFILE", "ever", ("openat:1", "openat:8")),
    ("one-certificate", "EIO", "ever", ("ftruncate:1", "linkat:1")),
    ("one-certificate", "EROFS", "ever", ("openat:1", "pwrite64:20")),
    ("one-certificate", "ENOSPC", "once", ("write:1", "fdatasync:2")),
    ("status-change", "ENOSPC", "once", ("pwrite64:15",)),
    ("migration", "EROFS", "ever", ("pwrite64:10", "unlink:1")),
    ("migration", "EIO", "once", ("fdatasync:2",)),
    ("backup", "ENOSPC", "ever", ("pwrite64:10",)),
    ("repair", "EIO", "once", ("renameat:1",)),
    ("repair", "EMFILE", "once", ("openat:6",)),
    ("recovery", "EROFS", "once", ("unlinkat:1", "linkat:1")),
]


@pytest.mark.parametrize(("flow", "error", "mode", "calls"), SAMPLE)
async def test_a_call_that_fails_ends_in_an_honest_code_and_the_next_run_goes_on(
    flow: str, error: str, mode: str, calls: tuple[str, ...], fork_server: ForkServer
) -> None:
    faults = [
        InjectedFault(int(at), error, ever=mode == "ever", only=name)
        for name, at in (call.split(":") for call in calls)
    ]
    swept = await sweep(FLOWS[flow], faults, fork_server)
    assert swept.violations == {}
    assert swept.runs == sum(swept.codes.values()) == len(calls)


async def test_an_exit_code_that_says_done_while_something_is_left_is_reported(
    fork_server: ForkServer,
) -> None:
    async def there_is_always_more(scene: Scene) -> int:
        return 1

    flow = replace(FLOWS["backup"], finish=there_is_always_more)
    # SQLite makes do without the sync of a folder.
    swept = await sweep(
        flow, [InjectedFault(at, "EIO", only="fdatasync") for at in (2, 6)], fork_server
    )
    assert swept.codes == {0: 2}
    assert [what for what in swept.violations.values() if "left 1 things to do" not in what] == []
    assert len(swept.violations) == 2


def test_the_command_prints_its_results_as_json() -> None:
    chosen = ("--flow", "backup", "--error", "EMFILE", "--mode", "once", "--sample", "3/1000")
    command = (sys.executable, "-m", "tests.faults.error_sweep", *chosen, "--json")
    ran = subprocess.run(
        command, cwd=CHECKOUT, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    printed = json.loads(ran.stdout)
    assert (printed["flow"], printed["fault"], printed["runs"]) == ("backup", "EMFILE once", 1)
    assert printed["codes"] == {"1": 1}
    assert printed["violations"] == {}
