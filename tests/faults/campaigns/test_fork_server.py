"""What a fork server becomes is the installed command, but for its start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.acceptance.harness import Home
from tests.faults.injected_faults import ForkServer


@pytest.mark.parametrize(
    "command",
    [("--version",), ("run", "--report", "x.json"), ("db", "current"), ("db", "backup", "x/y")],
    ids=["done", "usage", "answer", "fault"],
)
async def test_a_fork_prints_and_ends_as_the_installed_command_does(
    tmp_path: Path, fork_server: ForkServer, command: tuple[str, ...]
) -> None:
    home = Home(tmp_path)
    assert (await fork_server.run(home, command)).ran == await home.run(*command)


async def test_a_command_that_does_not_end_is_ended(
    tmp_path: Path, fork_server: ForkServer
) -> None:
    impatient = replace(fork_server, timeout=2)
    with pytest.raises(TimeoutError, match="sandbox"):
        await impatient.run(Home(tmp_path), ("sandbox", "--port", "0"))
