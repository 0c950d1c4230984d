"""A sample of the error sweep: each error, once and for ever, somewhere in every flow."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.faults.error_sweep import sweep
from tests.faults.flows import FLOWS
from tests.faults.scene import Scene

pytestmark = pytest.mark.usefixtures("traceable")

SAMPLE = [
    ("first-drain", "EIO", "once", (3, 200)),
    ("first-drain", "ENOSPC", "ever", (62, 250)),
    ("first-drain", "EMFILE", "ever", (2, 123)),
    ("one-certificate", "EIO", "ever", (1, 40)),
    ("one-certificate", "EROFS", "ever", (1, 75)),
    ("one-certificate", "ENOSPC", "once", (50, 100)),
    ("status-change", "ENOSPC", "once", (30,)),
    ("migration", "EROFS", "ever", (62,)),
    ("migration", "EIO", "once", (123,)),
    ("backup", "ENOSPC", "ever", (30,)),
    ("repair", "EIO", "once", (40,)),
    ("repair", "EMFILE", "once", (80,)),
    ("recovery", "EROFS", "once", (60,)),
]


@pytest.mark.parametrize(("flow", "error", "mode", "numbers"), SAMPLE)
async def test_a_call_that_fails_ends_in_an_honest_code_and_the_next_run_goes_on(
    flow: str, error: str, mode: str, numbers: tuple[int, ...]
) -> None:
    swept = await sweep(FLOWS[flow], error, mode, numbers)
    assert swept.violations == {}
    assert swept.runs == sum(swept.codes.values()) == len(numbers)


async def test_an_exit_code_that_says_done_while_something_is_left_is_told() -> None:
    async def there_is_always_more(scene: Scene) -> int:
        return 1

    flow = replace(FLOWS["backup"], finish=there_is_always_more)
    swept = await sweep(flow, "EIO", "once", [20, 81])
    assert swept.codes == {0: 2}
    assert [what for what in swept.violations.values() if "left 1 things to do" not in what] == []
    assert len(swept.violations) == 2
