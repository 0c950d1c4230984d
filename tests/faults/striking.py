"""A command of the harvester under a strike: killed, or a call of it failed, where one says."""

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

_CHECKOUT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Strike:
    """What befalls a command: ``what`` (KILL or an errno's name) at its call number ``at``.

    ``ever`` fails all calls from there on; ``only`` counts the calls of one name alone. At 0
    nothing befalls it.
    """

    at: int
    what: str = "KILL"
    ever: bool = False
    only: str | None = None


@dataclass(frozen=True, slots=True)
class Struck:
    """How a command under a strike ended; ``hit`` is None when it ended before the call came.

    ``code`` is negative for a signal's end.
    """

    code: int
    hit: str | None
    ran: Ran


@dataclass(frozen=True, slots=True)
class Stem:
    """Runs commands by asking the process of ``stem.py`` that listens at ``path``.

    ``patience`` is how many seconds a command has.
    """

    path: str
    patience: int = int(PATIENCE)

    async def run(self, home: Home, command: Sequence[str | Path], strike: Strike) -> Struck:
        """Run a command of the harvester; ``TimeoutError`` when it does not end by itself."""
        asked = {
            "folder": str(home.folder),
            "environment": home.environment({"PYTHONDONTWRITEBYTECODE": "1"}),
            "arguments": list(map(str, command)),
            "patience": self.patience,
            "strike": asdict(strike),
        }
        out, its_out = socket.socketpair()
        err, its_err = socket.socketpair()
        connection = socket.socket(socket.AF_UNIX)
        with its_out, its_err:
            connection.connect(self.path)
            streams = [its_out.fileno(), its_err.fileno()]
            socket.send_fds(connection, [json.dumps(asked).encode()], streams)
        answer, said, logged = await asyncio.gather(*map(_read, (connection, out, err)))
        if not answer:
            raise TimeoutError(f"{' '.join(map(str, command))}: {logged.decode()}")
        found = json.loads(answer)
        ran = Ran(found["code"], said.decode(), logged.decode())
        return Struck(ran.code, found["hit"], ran)


async def _read(connection: socket.socket) -> bytes:
    """Read to the end, which a reset is too: it is there when someone was killed."""
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    try:
        return await reader.read()
    finally:
        writer.close()


@contextmanager
def grow_stem() -> Iterator[Stem]:
    """Start a stem for as many runs as one likes, several at a time too."""
    command = (sys.executable, "-m", "tests.faults.stem")
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    with TemporaryDirectory(prefix="harvester-stem-") as folder:
        path = f"{folder}/socket"
        with subprocess.Popen(
            (*command, path), cwd=_CHECKOUT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError("the stem did not start")
            yield Stem(path)
