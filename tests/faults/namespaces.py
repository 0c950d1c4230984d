"""Commands in a network, and with a view of the file system, of their own."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.acceptance.harness import HARVESTER, Home, Running
from tests.faults.programs import running
from tests.needs import cannot, need

_DEAF_NAME_SERVER = """\
import os, socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
server.set_inheritable(True)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Take the name server's port, never read from it, and become the command."""


async def need_unshare() -> None:
    """Go on only where namespaces can be made."""
    need(shutil.which("unshare"), "unshare")
    need(os.geteuid() == 0, "root, to make namespaces")
    probe = await asyncio.create_subprocess_exec(
        "unshare", "-mn", "sh", "-c", "mount --bind / /mnt && ip link set lo up", stderr=DEVNULL
    )
    if await probe.wait() != 0:
        cannot("needs to mount, and to set up a network, in a namespace")


@asynccontextmanager
async def with_hosts(home: Home, text: str, *arguments: str) -> AsyncIterator[Running]:
    """Run a command that finds this in its hosts file."""
    hosts = home.folder / "hosts"
    hosts.write_text(text)
    script = 'mount --bind "$1" /etc/hosts; shift; exec "$@"'
    command = ("unshare", "-m", "sh", "-ec", script, "sh", hosts, HARVESTER)
    async with running(home, *command, *arguments) as started:
        yield started


@asynccontextmanager
async def with_deaf_name_server(home: Home, *arguments: str) -> AsyncIterator[Running]:
    """Run a command whose name server never answers; nothing else is in its network."""
    resolver = home.folder / "resolv.conf"
    resolver.write_text("nameserver 127.0.0.1\noptions timeout:30 attempts:2\n")
    script = 'ip link set lo up; mount --bind "$1" /etc/resolv.conf; shift; exec "$@"'
    python = (sys.executable, "-c", _DEAF_NAME_SERVER)
    command = ("unshare", "-mn", "sh", "-ec", script, "sh", resolver, *python, HARVESTER)
    async with running(home, *command, *arguments) as started:
        yield started
