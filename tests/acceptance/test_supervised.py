"""The daemon under a service manager: a datagram socket stands in for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import stat
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from harvester.ledger.lock import holder_of
from harvester.sandbox import Sandbox, SandboxOptions
from tests.acceptance.harness import HARVESTER, PATIENCE, Home, until


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    """A Lune whose clock stands still."""
    async with Sandbox(SandboxOptions(orders=0, client_accounts=0, speed=0, rate_limit=0)) as one:
        yield one


class Manager:
    """Listens on the notify socket and keeps the messages that came."""

    def __init__(self, folder: Path) -> None:
        self.address = folder / "notify"
        self.messages: list[dict[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.address))
        self._socket.setblocking(False)

    def listen(self) -> None:
        """Take what came since."""
        with contextlib.suppress(BlockingIOError):
            while True:
                text = self._socket.recv(65536).decode()
                self.messages.append(dict(line.split("=", 1) for line in text.split("\n")))

    def received(self, name: str, text: str = "") -> bool:
        """Tell whether a message has something of this name, with this in its value."""
        self.listen()
        return any(text in one.get(name, "") for one in self.messages if name in one)

    def close(self) -> None:
        self._socket.close()


@asynccontextmanager
async def managed(
    home: Home, *, watchdog: int | None = None, **variables: str
) -> AsyncIterator[tuple[Manager, Process]]:
    """Run the daemon as a service manager does."""
    manager = Manager(home.folder)
    variables |= {"NOTIFY_SOCKET": str(manager.address)}
    if watchdog is not None:
        variables["WATCHDOG_USEC"] = str(watchdog)
    with (home.folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            HARVESTER,
            "run",
            cwd=home.folder,
            env=home.environment(variables),
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=log,
        )
    try:
        yield manager, process
    finally:
        manager.close()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def ended(process: Process) -> int:
    async with asyncio.timeout(PATIENCE):
        return await process.wait()


async def test_the_daemon_is_ready_once_the_ledger_is_open_though_lune_is_down(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    home = Home(tmp_path, sandbox, lune__base_url="http://127.0.0.1:9/v1")
    async with managed(home) as (manager, process):
        await until(lambda: manager.received("READY"))
        assert holder_of(home.ledger) is not None
        assert manager.messages[0]["READY"] == "1"
        process.send_signal(signal.SIGTERM)
        assert await ended(process) == 0
        assert manager.received("STOPPING")


async def test_the_text_follows_what_the_daemon_does(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.create_order("paid", hold=True)
    home = Home(tmp_path, sandbox, harvest__sweep_interval="300ms")
    words = "following 1 order, 0 certificates owed, last"
    async with managed(home, watchdog=2_000_000) as (manager, _):
        await until(lambda: manager.received("STATUS", words))
        assert manager.received("WATCHDOG")
        sandbox.faults.add("revoked-key")
        await until(lambda: manager.received("STATUS", "Lune refuses the key"))


async def test_a_reload_is_reported_and_a_bad_configuration_named(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    home = Home(tmp_path, sandbox)
    right = home.config.read_text()
    async with managed(home) as (manager, process):
        await until(lambda: manager.received("READY"))
        home.config.write_text(right + "[harvset]\n")
        process.send_signal(signal.SIGHUP)
        await until(lambda: manager.received("STATUS", "not reloaded"))
        home.config.write_text(right)
        manager.messages.clear()
        process.send_signal(signal.SIGHUP)
        await until(lambda: manager.received("READY"))
        assert manager.received("RELOADING")
        # What was said before it may have been about the wrong one still.
        ready = next(one for one in manager.messages if "READY" in one)
        assert "not reloaded" not in ready["STATUS"]


async def test_a_hook_does_not_inherit_the_managers_socket(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    sandbox.create_order("complete", hold=True)
    home = Home(tmp_path, sandbox)
    seen = tmp_path / "seen"
    hook = f'[[events.hooks]]\nname = "env"\ncommand = ["/bin/sh", "-c", "env > {seen}"]\n'
    home.config.write_text(home.config.read_text() + hook)
    async with managed(home, watchdog=60_000_000):
        await until(lambda: seen.exists() and "HARVESTER_EVENT_TYPE" in seen.read_text())
    assert "NOTIFY" not in seen.read_text()
    assert "WATCHDOG" not in seen.read_text()


async def test_aborted_by_the_watchdog_it_says_where_it_stood(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    home = Home(tmp_path, sandbox)
    async with managed(home) as (manager, process):
        await until(lambda: manager.received("READY"))
        process.send_signal(signal.SIGABRT)
        assert await ended(process) == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in (tmp_path / "log").read_text()


async def test_lines_for_the_journal_begin_with_their_priority(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    home = Home(tmp_path, sandbox, lune__base_url="http://127.0.0.1:9/v1")
    reading, writing = os.pipe()
    file = os.fstat(writing)
    assert stat.S_ISFIFO(file.st_mode)
    process = await asyncio.create_subprocess_exec(
        HARVESTER,
        "run",
        cwd=tmp_path,
        env=home.environment({"JOURNAL_STREAM": f"{file.st_dev}:{file.st_ino}"}),
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=writing,
    )
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as journal:
        lines = [await asyncio.to_thread(journal.readline)]
        while "step failed" not in lines[-1] and "sweep failed" not in lines[-1]:
            lines.append(await asyncio.to_thread(journal.readline))
            assert lines[-1], lines
        process.send_signal(signal.SIGTERM)
        assert await ended(process) == 0
        lines += journal.readlines()
    assert all(line.startswith(("<4>{", "<6>{")) for line in lines)
    assert lines[-1].startswith("<6>")


async def test_elsewhere_they_do_not(tmp_path: Path, sandbox: Sandbox) -> None:
    home = Home(tmp_path, sandbox)
    process = await asyncio.create_subprocess_exec(
        HARVESTER,
        "run",
        cwd=tmp_path,
        env=home.environment({"JOURNAL_STREAM": "1:1"}),  # stderr was redirected since
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=PIPE,
    )
    assert process.stderr is not None
    assert (await process.stderr.readline()).startswith(b"{")
    process.send_signal(signal.SIGTERM)
    await process.communicate()
