"""A harvester that has imported all that it may need, and forks: commands without their start.

    python -m tests.faults.fork_server SOCKET

Four fifths of a short command's time go into imports, which change no file. Here they are done
once. Each connection to the socket asks for one command, as a line of JSON with the descriptors
that are to be its stdout and stderr, and is answered as ``tracer.py`` would report. What becomes
the command has no thread, no event loop and no file of the server's; it goes through the same entry
as the console script and through the interpreter's whole end. It ends with its stdin.

What happens while a process starts is not shown here: the kill loop runs the installed command.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import sys
from typing import Any

import harvester
from harvester.cli import main as become_the_command
from tests.faults.next_release import UPGRADE
from tests.faults.next_release import main as become_the_upgrade
from tests.faults.tracer import InjectedFault, Tracer, wait_to_be_traced

# Imported by libraries when first needed.
_LATE = (
    "aiosqlite",
    "alembic.command",
    "alembic.config",
    "alembic.ddl.sqlite",
    "ctypes",
    "encodings.idna",
    "pypdf.filters",
    "resource",
    "sqlalchemy.dialects.sqlite.aiosqlite",
)
_LONGEST_REQUEST = 1 << 16


def _import_everything() -> None:
    for module in pkgutil.walk_packages(harvester.__path__, "harvester."):
        # What an extra is needed for has no part in the flows.
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in _LATE:
        importlib.import_module(name)
    gc.freeze()  # memory that a fork's collector leaves alone is not copied


def _fork_for_each_connection(path: str) -> socket.socket | None:
    """Return in a process of its own for each connection; None in the server, at its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        os.write(sys.stdout.fileno(), b"ready\n")
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                return connection
            connection.close()
    return None


def _prepare(asked: dict[str, Any], streams: list[int]) -> None:
    """Set what a process is started with: folder, environment, arguments, streams."""
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = ["harvester", *asked["arguments"]]
    sys.modules["__main__"].__package__ = None  # a script's; click names the program after it
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, stream in enumerate((nothing, *streams)):
        os.dup2(stream, number)
        os.close(stream)


def main() -> None:
    """Serve; in a fork trace one command, or be it."""
    _import_everything()
    connection = _fork_for_each_connection(sys.argv[1])
    if connection is None:
        return
    line, streams, _, _ = socket.recv_fds(connection, _LONGEST_REQUEST, 2)
    asked = json.loads(line)
    command = os.fork()
    if command == 0:
        connection.close()
        _prepare(asked, streams)
        wait_to_be_traced()
        if sys.argv[1] == UPGRADE:
            del sys.argv[1]
            become_the_upgrade()
        else:
            become_the_command()
        return
    for stream in streams:
        os.close(stream)
    # Whoever asked sees that the connection ends without an answer. The command ends with it.
    signal.alarm(asked["timeout"])
    tracer = Tracer(InjectedFault(**asked["fault"]))
    code = tracer.follow(command)
    connection.sendall(json.dumps({"code": code, "hit": tracer.hit}).encode())
    os._exit(0)


if __name__ == "__main__":
    main()
