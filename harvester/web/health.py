"""Is the process alive, and can it do its work: two different questions.

*Live* asks only whether the process makes progress; a Lune that is down must not restart it.
*Ready* asks whether what comes in now could be recorded and stored.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from aiohttp import web

from harvester.app import App
from harvester.domain.errors import HarvesterError
from harvester.ledger.database import Database
from harvester.ledger.statistics import Statistics, read_statistics
from harvester.liveness import Check, Liveness

_PROBE_TIMEOUT: Final = 3.0
_FRESH_SECONDS: Final = 15.0
_SWEEP_SLACK: Final = timedelta(minutes=5)
"""A sweep itself takes time; one that began in time may end this much later."""


class Probe:
    """A check that costs something: run at most every 15 seconds, and never twice at a time.

    ``work`` raises a ``HarvesterError`` when it fails. One that hangs goes on hanging, once.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], Coroutine[Any, Any, None]],
        *,
        timeout: float = _PROBE_TIMEOUT,
    ) -> None:
        self._name = name
        self._work = work
        self._timeout = timeout
        self._task: asyncio.Task[str | None] | None = None
        self._ended_at = 0.0

    async def check(self) -> Check:
        """Return how it was when last tried, trying again when that is long ago."""
        task = self._task
        if task is None or (task.done() and time.monotonic() - self._ended_at > _FRESH_SECONDS):
            task = self._task = asyncio.create_task(self._try(), name=f"probe-{self._name}")
        ended, _ = await asyncio.wait({task}, timeout=self._timeout)
        if not ended:
            return Check(self._name, f"no answer within {self._timeout:g} s")
        return Check(self._name, task.result())

    async def close(self) -> None:
        """End a try that is running."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _try(self) -> str | None:
        try:
            await self._work()
        except HarvesterError as error:
            return str(error)
        finally:
            self._ended_at = time.monotonic()
        return None


class Health:
    """Answers both questions; ``reading`` is the database that they read."""

    def __init__(self, app: App, liveness: Liveness, reading: Database) -> None:
        self._app = app
        self._liveness = liveness
        self._reading = reading
        self._probes = (
            Probe("ledger", app.database.probe),
            Probe("archive", app.archive.probe),
        )

    def live(self) -> Sequence[Check]:
        """Return whether the process makes progress."""
        return self._liveness.checks()

    async def ready(self) -> Sequence[Check]:
        """Look at everything the work needs: key, sweeps, ledger, archive."""
        key = Check("key", "Lune refuses the key" if self._app.lune.key_refused else None)
        probed = await asyncio.gather(*(probe.check() for probe in self._probes))
        return [key, await self._sweeps(), *probed]

    def routes(self) -> list[web.RouteDef]:
        """Return ``/healthz`` and ``/readyz``."""

        async def healthz(_: web.Request) -> web.Response:
            return _answer(self.live())

        async def readyz(_: web.Request) -> web.Response:
            return _answer(await self.ready())

        return [web.get("/healthz", healthz), web.get("/readyz", readyz)]

    async def close(self) -> None:
        """End what still runs."""
        for probe in self._probes:
            await probe.close()

    async def _sweeps(self) -> Check:
        try:
            async with self._reading.read() as connection:
                statistics = await read_statistics(connection, self._app.context.clock())
        except HarvesterError as error:
            return Check("sweep", str(error))
        last = last_good_sweep(self._app, statistics)
        if last is None:
            return Check("sweep", "no account was swept yet")
        age = self._app.context.clock() - last
        if age > oldest_good_sweep(self._app):
            return Check("sweep", f"the last good one is {age.total_seconds():.0f} s old")
        return Check("sweep")


def last_good_sweep(app: App, statistics: Statistics) -> datetime | None:
    """Return when the account that waits longest had its last good sweep."""
    return statistics.last_sweep_at(app.context.clock(), 2 * _rarest_sweep(app))


def oldest_good_sweep(app: App) -> timedelta:
    """Return how long ago an account's last good sweep may be."""
    return 2 * _rarest_sweep(app) + _SWEEP_SLACK


def _rarest_sweep(app: App) -> timedelta:
    """Return how far apart sweeps may be: where webhooks work, they are rarer."""
    schedule = app.context.schedule
    return schedule.slowest_sweep if app.takes_webhooks else schedule.sweep_interval


def _answer(checks: Sequence[Check]) -> web.Response:
    fine = all(check.cause is None for check in checks)
    body = {
        "ok": fine,
        "checks": {
            check.name: {"ok": True} if check.cause is None else {"ok": False, "cause": check.cause}
            for check in checks
        },
    }
    return web.json_response(body, status=200 if fine else 503)
