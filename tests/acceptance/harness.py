"""Run the installed command as a stranger would: a subprocess, in a folder of its own.

A sandbox lives in the test's event loop, so subprocesses are awaited and never waited for.
"""

from __future__ import annotations

import asyncio
import compileall
import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import sys
import termios
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import harvester
from harvester.sandbox import Sandbox
from tests import canaries

T = TypeVar("T")

HARVESTER = Path(sys.executable).with_name("harvester")
PATIENCE = 60.0
"""Seconds after which a command hangs, on the slowest of machines."""

# Where PYTHONDONTWRITEBYTECODE is set, each of thousands of commands would compile all it imports.
compileall.compile_dir(Path(harvester.__file__).parent, quiet=1)


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    def __post_init__(self) -> None:
        canaries.hear(self.out, self.err)

    def document(self) -> Any:
        """Return stdout as the one JSON document it should be."""
        return json.loads(self.out)

    def rows(self) -> list[Any]:
        """Return stdout as JSON Lines."""
        return [json.loads(line) for line in self.out.splitlines()]


def events(text: str, name: str | None = None) -> list[dict[str, Any]]:
    """Return the JSON log lines in a text, all or those of one event."""
    found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [event for event in found if name in (None, event["event"])]


class Home:
    """A folder with a ``config.toml``, a ledger and an archive; commands run in it."""

    def __init__(self, folder: Path, lune: Sandbox | None = None, **settings: object) -> None:
        self.folder = folder
        self.config = folder / "config.toml"
        self.ledger = folder / "data" / "harvester.db"
        self.archive = folder / "certificates"
        self._settings: dict[str, object] = {
            "database__url": f"sqlite:///{self.ledger}",
            "storage__url": self.archive.as_uri(),
            "http__listen": "",  # one port is not shared by many tests
        }
        if lune is not None:
            key = folder / "lune_api_key"
            key.write_text(lune.key)
            key.chmod(0o600)
            self._settings |= {
                "lune__base_url": lune.base_url,
                "lune__api_key_file": str(key),
                "lune__accounts": ["all"],
                "lune__rate_limit": 1000,
            }
        self.configure(**settings)

    def configure(self, **settings: object) -> None:
        """Write the configuration with changes, such as ``harvest__interim=True``."""
        self._settings |= settings
        sections: dict[str, list[str]] = {}
        for name, value in self._settings.items():
            section, _, key = name.partition("__")
            # A JSON value is a TOML value.
            sections.setdefault(section, []).append(f"{key} = {json.dumps(value)}")
        text = [line for name, keys in sections.items() for line in (f"[{name}]", *keys)]
        self.config.write_text("\n".join(text) + "\n")

    def environment(self, env: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return this process's environment without what would configure the command."""
        foreign = ("HARVESTER_", "CREDENTIALS_DIRECTORY")
        kept = {name: text for name, text in os.environ.items() if not name.startswith(foreign)}
        return {**kept, **(env or {})}

    async def run(
        self,
        *arguments: str | Path,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        program: tuple[str | Path, ...] = (HARVESTER,),
    ) -> Ran:
        """Run a command to its end."""
        process = await asyncio.create_subprocess_exec(
            *program,
            *arguments,
            cwd=self.folder,
            env=self.environment(env),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
        )
        async with _ended(process), asyncio.timeout(PATIENCE):
            out, err = await process.communicate(stdin.encode())
        assert process.returncode is not None
        return Ran(process.returncode, out.decode(), err.decode())

    async def orders(self, *filters: str) -> dict[str, Any]:
        """Return the rows of ``orders --json`` by order id."""
        ran = await self.run("orders", "--json", *filters)
        assert ran.code == 0, ran.err
        return {row["id"]: row for row in ran.rows()}

    async def show(self, reference: str) -> Any:
        """Return the document of ``show --json``."""
        ran = await self.run("show", reference, "--json")
        assert ran.code == 0, ran.err
        return ran.document()

    def files(self) -> set[str]:
        """Return the names of the certificates in the archive, below its folder."""
        found = self.archive.glob("*/*/*.pdf")
        return {str(path.relative_to(self.archive)) for path in found}

    @asynccontextmanager
    async def running(self, *arguments: str | Path) -> AsyncIterator[Running]:
        """Start a command that goes on; it is killed at the end unless it was ended."""
        process = await asyncio.create_subprocess_exec(
            HARVESTER,
            *arguments,
            cwd=self.folder,
            env=self.environment(),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
        )
        running = Running(process)
        readers = [
            asyncio.create_task(running.listen(process.stdout, running.out)),
            asyncio.create_task(running.listen(process.stderr, running.err)),
        ]
        async with _ended(process):
            yield running
        await asyncio.gather(*readers)

    @asynccontextmanager
    async def daemon(self) -> AsyncIterator[Running]:
        """Start the daemon and wait until it listens on its socket."""
        async with self.running("run") as running:
            await until(lambda: running.events("started") or running.ended)
            assert not running.ended, "".join(running.err)
            yield running


@dataclass(slots=True)
class Running:
    """A command that goes on, with the lines it printed so far."""

    process: Process
    out: list[str] = field(default_factory=list)
    err: list[str] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self.process.returncode is not None

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """Return the log lines so far."""
        return events("".join(self.err), name)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> Ran:
        """Send a signal and return how the command ended."""
        if not self.ended:
            self.process.send_signal(number)
        return await self.result()

    async def result(self) -> Ran:
        """Return how the command ended, once it has."""
        async with asyncio.timeout(PATIENCE):
            code = await self.process.wait()
        return Ran(code, "".join(self.out), "".join(self.err))

    async def listen(self, stream: asyncio.StreamReader | None, lines: list[str]) -> None:
        """Keep the lines of a stream as they come, to its end."""
        assert stream is not None
        while line := await stream.readline():
            lines.append(line.decode())


@asynccontextmanager
async def _ended(process: Process) -> AsyncIterator[None]:
    try:
        yield
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def until(condition: Callable[[], T | Awaitable[T]], patience: float = PATIENCE) -> T:
    """Return what a condition gives as soon as that is true; a ``TimeoutError`` otherwise."""
    async with asyncio.timeout(patience):
        while True:
            found = condition()
            value = await found if isinstance(found, Awaitable) else found
            if value:
                return value
            await asyncio.sleep(0.05)


async def on_a_terminal(home: Home, *arguments: str | Path) -> tuple[int, str]:
    """Run a command on a pseudo-terminal of 160 columns; return its code and all it drew."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
    try:
        process = await asyncio.create_subprocess_exec(
            HARVESTER,
            *arguments,
            cwd=home.folder,
            env=home.environment({"TERM": "xterm-256color"}),
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
    finally:
        os.close(slave)
    drawn = asyncio.create_task(asyncio.to_thread(lambda: b"".join(_drawn(master))))
    try:
        async with _ended(process), asyncio.timeout(PATIENCE):
            code = await process.wait()
    finally:
        text = (await drawn).decode()
        os.close(master)
    return code, text


def _drawn(master: int) -> Iterator[bytes]:
    with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
        while data := os.read(master, 65536):
            yield data


def hurry(lune: Sandbox, seconds: float) -> None:
    """Run the sandbox's clock so that every order ends within some seconds."""
    ends = [order.life.starts[-1] for one in lune.accounts for order in lune.orders(one.id)]
    lune.clock.run_at(max(max(ends) - lune.clock.now(), 1.0) / seconds)
