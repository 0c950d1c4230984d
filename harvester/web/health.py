"""Is the process alive, and can it do its work: two different questions.

*Live* asks only whether the process makes progress; a Lune that is down must not restart it.
*Ready* asks whether what comes in now could be recorded and filed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Protocol

from aiohttp import web

from harvester.domain.errors import HarvesterError

_LONGEST_LAG: Final = 10.0
_LONGEST_SILENCE: Final = 900.0
_RARE: Final = {"housekeeping": 3600.0}
"""Seconds between the beginnings of a step that is not always at it."""

_CHECK_SECONDS: Final = 3.0
_FRESH_SECONDS: Final = 15.0
_SWEEP_SLACK: Final = timedelta(minutes=5)
"""A sweep itself takes time; one that began in time may end this much later."""


def oldest_good_sweep(interval: timedelta) -> timedelta:
    """Return how long ago an account's last good sweep may be, when they are so far apart."""
    return 2 * interval + _SWEEP_SLACK


class Progress(Protocol):
    """How late the loop is and for how long each step did not end, in seconds."""

    lag: float

    @property
    def ages(self) -> Mapping[str, float]:
        """Seconds since each step last ended."""
        ...


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, and what is wrong with it; None when nothing is."""

    name: str
    why: str | None = None


class Probe:
    """A check that costs something: run at most every 15 seconds, and never twice at a time.

    ``work`` raises a ``HarvesterError`` when it fails. One that hangs goes on hanging, once.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], Coroutine[Any, Any, None]],
        *,
        patience: float = _CHECK_SECONDS,
    ) -> None:
        self._name = name
        self._work = work
        self._patience = patience
        self._task: asyncio.Task[str | None] | None = None
        self._ended_at = 0.0

    async def check(self) -> Check:
        """Return how it was when last tried, trying again when that is long ago."""
        task = self._task
        if task is None or (task.done() and time.monotonic() - self._ended_at > _FRESH_SECONDS):
            task = self._task = asyncio.create_task(self._try(), name=f"probe-{self._name}")
        ended, _ = await asyncio.wait({task}, timeout=self._patience)
        if not ended:
            return Check(self._name, f"no answer within {self._patience:g} s")
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
    """Answers both questions. ``sweep_age`` is None before a followed account was ever swept.

    ``requests`` counts what was asked of Lune: a step that is long but asks makes progress.
    """

    def __init__(
        self,
        *,
        progress: Progress,
        requests: Callable[[], int],
        key_refused: Callable[[], bool],
        sweep_age: Callable[[], Awaitable[timedelta | None]],
        sweep_interval: timedelta,
        probes: Sequence[Probe],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._progress = progress
        self._requests = requests
        self._key_refused = key_refused
        self._sweep_age = sweep_age
        self._sweep_bound = oldest_good_sweep(sweep_interval)
        self._probes = probes
        self._asked = 0
        self._monotonic = monotonic
        self._asked_at = monotonic()

    async def live(self) -> list[Check]:
        """Look at the process alone."""
        asked, now = self._requests(), self._monotonic()
        if asked != self._asked:
            self._asked, self._asked_at = asked, now
        lag = self._progress.lag
        checks = [Check("loop", f"was {lag:.0f} s late" if lag > _LONGEST_LAG else None)]
        for name, age in self._progress.ages.items():
            silent = min(age, now - self._asked_at)
            over = silent > _LONGEST_SILENCE + _RARE.get(name, 0.0)
            checks.append(Check(name, f"no progress for {silent:.0f} s" if over else None))
        return checks

    async def ready(self) -> list[Check]:
        """Look at everything the work needs: key, sweeps, ledger, archive."""
        key = Check("key", "Lune refuses the key" if self._key_refused() else None)
        probed = await asyncio.gather(*(probe.check() for probe in self._probes))
        return [key, await self._sweeps(), *probed]

    async def _sweeps(self) -> Check:
        try:
            age = await self._sweep_age()
        except HarvesterError as error:
            return Check("sweep", str(error))
        if age is None:
            return Check("sweep", "no account was swept yet")
        if age > self._sweep_bound:
            return Check("sweep", f"the last good one is {age.total_seconds():.0f} s old")
        return Check("sweep")

    def routes(self) -> list[web.RouteDef]:
        """Return ``/healthz`` and ``/readyz``."""

        async def healthz(_: web.Request) -> web.Response:
            return _answer(await self.live())

        async def readyz(_: web.Request) -> web.Response:
            return _answer(await self.ready())

        return [web.get("/healthz", healthz), web.get("/readyz", readyz)]

    async def close(self) -> None:
        """End what still runs."""
        for probe in self._probes:
            await probe.close()


def _answer(checks: Sequence[Check]) -> web.Response:
    fine = all(check.why is None for check in checks)
    shape = {
        "ok": fine,
        "checks": {
            check.name: {"ok": True} if check.why is None else {"ok": False, "why": check.why}
            for check in checks
        },
    }
    return web.json_response(shape, status=200 if fine else 503)
