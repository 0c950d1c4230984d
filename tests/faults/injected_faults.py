"""A command of the harvester into which a fault is injected: a kill, or a call that fails."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.acceptance.harness import PATIENCE, Home, Ran
from tests.faults.tracer import InjectedFault

_CHECKOUT = Path(__file__).parents[2]


NO_FAULT = InjectedFault(0)


@dataclass(frozen=True, slots=True)
class FaultyRun:
    """How a command with a fault ended; ``hit`` is None when it ended before the call came.

    ``code`` is negative for a signal's end.
    """

    code: int
    hit: str | None
    ran: Ran


@dataclass(frozen=True, slots=True)
class ForkServer:
    """Runs commands by asking the process of ``fork_server.py`` that listens at ``path``.

    ``timeout`` is how many seconds a command has.
    """

    path: str
    timeout: int = int(PATIENCE)

    async def run(
        self, home: Home, command: Sequence[str | Path], fault: InjectedFault = NO_FAULT
    ) -> FaultyRun:
        """Run a command of the harvester; ``TimeoutError`` when it does not end by itself."""
        asked = {
            "folder": str(home.folder),
            "environment": home.environment({"PYTHONDONTWRITEBYTECODE": "1"}),
            "arguments": list(map(str, command)),
            "timeout": self.timeout,
            "fault": asdict(fault),
        }
        out, its_out = socket.socketpair()
        err, its_err = socket.socketpair()
        connection = socket.socket(socket.AF_UNIX)
        with its_out, its_err:
            connection.connect(self.path)
            streams = [its_out.fileno(), its_err.fileno()]
            socket.send_fds(connection, [json.dumps(asked).encode()], streams)
        answer, printed, logged = await asyncio.gather(*map(_read, (connection, out, err)))
        if not answer:
            raise TimeoutError(f"{' '.join(map(str, command))}: {logged.decode()}")
        found = json.loads(answer)
        ran = Ran(found["code"], printed.decode(), logged.decode())
        return FaultyRun(ran.code, found["hit"], ran)


async def _read(connection: socket.socket) -> bytes:
    """Read to the end, which a reset is too: it is there when someone was killed."""
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    try:
        return await reader.read()
    finally:
        writer.close()


@contextmanager
def start_fork_server() -> Iterator[ForkServer]:
    """Start a fork server for as many runs as one likes, several at a time too."""
    command = (sys.executable, "-m", "tests.faults.fork_server")
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    with TemporaryDirectory(prefix="harvester-fork-server-") as folder:
        path = f"{folder}/socket"
        with subprocess.Popen(
            (*command, path), cwd=_CHECKOUT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError("the fork server did not start")
            yield ForkServer(path)
