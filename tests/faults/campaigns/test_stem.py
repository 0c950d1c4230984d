"""What branches off a stem is the installed command, but for its start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.acceptance.harness import Home
from tests.faults.striking import Stem, Strike


@pytest.mark.parametrize(
    "command",
    [("--version",), ("run", "--report", "x.json"), ("db", "current"), ("db", "backup", "x/y")],
    ids=["done", "usage", "answer", "fault"],
)
async def test_a_branch_says_and_ends_as_the_installed_command_does(
    tmp_path: Path, stem: Stem, command: tuple[str, ...]
) -> None:
    home = Home(tmp_path)
    assert (await stem.run(home, command, Strike(0))).ran == await home.run(*command)


async def test_a_command_that_does_not_end_is_ended(tmp_path: Path, stem: Stem) -> None:
    impatient = replace(stem, patience=2)
    with pytest.raises(TimeoutError, match="sandbox"):
        await impatient.run(Home(tmp_path), ("sandbox", "--port", "0"), Strike(0))
