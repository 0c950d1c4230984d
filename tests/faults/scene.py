"""A harvester, its Lune and a proxy between them, in a folder of its own.

Faults of the network and the API run in process, against real sockets and real files; what needs
a process (signals, kills, limits) runs the installed command. Both write their log to files here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from harvester import logs
from harvester.app import App, open_app
from harvester.config.load import load
from harvester.context import Limits, Stop
from harvester.domain.orders import EVERYTHING, OrderFilter
from harvester.lune import ClientOptions, Deadlines
from harvester.runtime.drain import Drain, DrainReport
from harvester.sandbox import Sandbox
from harvester.sandbox.world import Order
from tests.acceptance.harness import Home, Ran
from tests.faults.proxy import Proxy

PRIVATE = "canary-customer-d41c"
"""In the metadata of every order of :meth:`Scene.order`; belongs in the ledger, in no log."""


async def hurried_sleep(seconds: float) -> None:
    """Sleep for a fiftieth of the time: what comes first still comes first."""
    await asyncio.sleep(seconds / 50)


HASTY = ClientOptions(
    Deadlines(connect=1.0, read=1.0, total=2.0, certificate_total=3.0), sleep=hurried_sleep
)
"""Options of the client for tests in process: the same code, shorter deadlines and back-offs."""


@dataclass(slots=True)
class Scene:
    """What a fault test plays in.

    ``lune`` is the sandbox (its clock stands still), ``proxy`` what the harvester talks to,
    ``home`` its configuration, ledger and archive. ``clean_end`` is False while the harvester
    was last killed and not run to an end since. ``excused`` names the invariants a test breaks on
    purpose, ``stored`` has the files seen so far, ``secrets`` what must appear nowhere but in
    ``secret_files``.
    """

    home: Home
    lune: Sandbox
    proxy: Proxy
    clean_end: bool = True
    excused: dict[str, str] = field(default_factory=dict)
    stored: dict[str, tuple[int, str]] = field(default_factory=dict)
    secrets: list[str] = field(default_factory=list)
    secret_files: set[str] = field(default_factory=lambda: {"lune_api_key"})

    def __post_init__(self) -> None:
        self.secrets.append(self.lune.key)

    @property
    def log_path(self) -> Path:
        """Where in-process harvests log, as JSON lines."""
        return self.home.folder / "harvester.log"

    def log_text(self) -> str:
        """Return everything logged so far, by harvests in process and by commands."""
        files = sorted(self.home.folder.glob("*.log"))
        return "".join(file.read_text("utf-8") for file in files)

    def order(self, status: str = "complete", **options: Any) -> Order:
        """Create an order that stays in a status; its metadata are not for the log."""
        options.setdefault("metadata", {"note": PRIVATE})
        return self.lune.create_order(status, hold=True, **options)

    def excuse(self, invariant: str, why: str) -> None:
        """Let the final check leave out an invariant that this test breaks on purpose."""
        self.excused[invariant] = why

    @asynccontextmanager
    async def open(
        self,
        stop: Stop | None = None,
        options: ClientOptions = HASTY,
        limits: Limits | None = None,
    ) -> AsyncIterator[App]:
        """Open a harvest as the program wires it, from the same configuration file."""
        with self.log_path.open("a", encoding="utf-8") as stream:
            logs.configure("debug", "json", stream)
            try:
                settings = load(self.home.config)
                async with open_app(
                    settings, stop or Stop(), "test", options=options, limits=limits
                ) as app:
                    yield app
            finally:
                logging.getLogger().handlers.clear()

    async def drain(
        self,
        scope: OrderFilter = EVERYTHING,
        *,
        wait: timedelta | None = None,
        options: ClientOptions = HASTY,
    ) -> DrainReport:
        """Run one drain in process, to its end."""
        async with self.open(options=options) as app, asyncio.timeout(60):
            return await Drain(app).run(scope, wait)

    async def command(self, *arguments: str | Path) -> Ran:
        """Run the installed command; its stderr is kept for the check of the log."""
        ran = await self.home.run(*arguments)
        self.keep(ran.err)
        return ran

    def keep(self, stderr: str) -> None:
        """Add what a command wrote on stderr to what the invariants look through."""
        with (self.home.folder / "commands.log").open("a", encoding="utf-8") as stream:
            stream.write(stderr)
