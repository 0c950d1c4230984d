"""``harvester sandbox`` starts a server, says how to use it, and ends when told to."""

from __future__ import annotations

import asyncio
import signal
import sys
import tomllib
from asyncio.subprocess import PIPE, Process

import aiohttp
import pytest
from click.testing import CliRunner

from harvester.cli.sandbox import command
from harvester.sandbox import KINDS, Sandbox, SandboxOptions

START = "from harvester.cli.sandbox import command; command()"


async def started(*arguments: str) -> tuple[Process, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", START, "--port", "0", *arguments, stdout=PIPE, stderr=PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(30):
        said = (await process.stdout.readuntil(b"accounts = [")).decode()
        said += (await process.stdout.readline()).decode()
    return process, said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_serves_until_a_signal_and_exits_0(number: signal.Signals) -> None:
    process, said = await started("--key", "s3cret", "--fault", "rate-limit=4,times=1")
    try:
        lune = tomllib.loads(said[said.index("[lune]") :])["lune"]
        assert lune["api_key"] == "s3cret"
        assert lune["accounts"] == ["all"]
        headers = {"Authorization": f"Bearer {lune['api_key']}"}
        async with aiohttp.ClientSession(headers=headers) as session:
            async with session.get(f"{lune['base_url']}/accounts/me") as response:
                assert (response.status, response.headers["Retry-After"]) == (429, "4")
            async with session.get(f"{lune['base_url']}/accounts/me") as response:
                assert (await response.json())["id"] in said
    finally:
        process.send_signal(number)
        _, errors = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, errors) == (0, b"")


async def test_a_taken_port_is_said_in_one_line() -> None:
    async with Sandbox(SandboxOptions(orders=0)) as running:
        port = running.base_url.removesuffix("/v1").rsplit(":", 1)[1]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", START, "--port", port, stdout=PIPE, stderr=PIPE
        )
        said, errors = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, said) == (1, b"")
    assert errors.startswith(f"Error: cannot listen on 127.0.0.1:{port}: ".encode())
    assert errors.count(b"\n") == 1


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--host", "0.0.0.0"], "loopback only"),
        (["--host", "example.com"], "loopback only"),
        (["--speed", "-1"], "not in the range"),
        (["--speed", "nan"], "speed is between"),
        (["--key", "two words"], "key is printable ASCII"),
        (["--accounts", "0"], "not in the range"),
        (["--certificate-at", "paid"], "is not one of"),
        (["--fault", "nope"], "no fault is called 'nope'"),
        (["--fault", "slow=soon"], "'soon' is no SECONDS for slow"),
    ],
)
def test_a_bad_option_exits_2_with_the_rule(arguments: list[str], rule: str) -> None:
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 2
    assert rule in result.output


def test_the_help_lists_every_fault() -> None:
    result = CliRunner().invoke(command, ["--help"])
    assert result.exit_code == 0
    words = result.output.split()
    assert all(any(word.startswith(name) for word in words) for name in KINDS)
