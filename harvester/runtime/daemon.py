"""The service: the same steps as a drain, woken over and over until asked to stop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Protocol

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger

from harvester.context import Stop
from harvester.domain.errors import (
    ConfigurationError,
    HarvesterError,
    KeyRefused,
    LedgerReplaced,
)
from harvester.domain.orders import Account
from harvester.domain.schedule import Cadence
from harvester.events.dispatch import Announcer
from harvester.harvest.accounts import AccountBook
from harvester.harvest.collect import Collector
from harvester.harvest.purchase import Placer
from harvester.harvest.reports import CollectReport, SweepReport
from harvester.harvest.sweep import Sweep
from harvester.runtime.liveness import PATIENCE, StepHangsError, Watch
from harvester.runtime.watchdog import tell_stacks

log = structlog.get_logger()

GRACE = 15.0
"""Seconds that what is in flight has to end after a stop; then it is abandoned, crash-safe."""

KEY_PAUSE = 300.0
"""Seconds between two attempts with a key that was refused."""

_SLOWEST_TICK = 60.0
_SLOWEST_COLLECT_TICK = 10.0
_SLOWEST_ANNOUNCE_TICK = 1.0
_FASTEST_TICK = 0.2
_MOST_TICKS_OFF = 6
_HOUSEKEEPING = timedelta(hours=1)
_HEED = timedelta(seconds=2)


class Key(Protocol):
    """What the daemon needs of the client: whether the key is refused, and to ask with it anew."""

    @property
    def refused(self) -> bool:
        """Whether Lune refused the key and no ``probe`` succeeded since, whoever asked."""

    async def probe(self) -> Account:
        """Read the key again and ask with it; ``KeyRefused`` while it is refused."""


class _Every(BaseTrigger):  # type: ignore[misc]  # the scheduler has no types
    """A rhythm that leaves out what it missed.

    The scheduler's own interval names every missed time one by one, only to merge them: a clock
    set ahead by a year would keep the loop busy for minutes.
    """

    def __init__(self, interval: timedelta) -> None:
        self._interval = interval

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        """Return the next time in the rhythm that is not past."""
        if previous is None:
            return now
        missed = max((now - previous) // self._interval, 0)
        return previous + (missed + 1) * self._interval


class Daemon:
    """Wakes sweep, collect and housekeeping; owns when, and nothing else.

    Due dates are in the ledger: a wake-up with nothing due asks Lune for nothing. ``watch`` has
    the figures of its health: ``lag``, ``longest_lag`` and ``ages``, in seconds. ``patience`` is
    how long a step may be silent, ``heeding`` whether webhooks are taken, ``grace`` how long a
    step has to end after a stop, ``wall`` the wall clock that is watched for steps.
    """

    def __init__(
        self,
        *,
        lune: Key,
        book: AccountBook,
        sweep: Sweep,
        collector: Collector,
        placer: Placer,
        announcer: Announcer | None = None,
        cadence: Cadence,
        housekeeping: Callable[[], Awaitable[None]],
        requests: Callable[[], int],
        stop: Stop,
        heeding: bool = False,
        grace: float = GRACE,
        patience: float = PATIENCE,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._lune = lune
        self._book = book
        self._sweep = sweep
        self._collector = collector
        self._placer = placer
        self._announcer = announcer
        self._housekeeping = housekeeping
        self._requests = requests
        self._requests_told = 0
        self._collected = CollectReport()
        self._stop = stop
        self._heeding = heeding
        self._grace = grace
        self.watch = Watch(stop, requests, patience=patience, wall=wall)
        self._running: set[asyncio.Task[None]] = set()
        self._again: set[str] = set()
        self._fault: BaseException | None = None
        self._refused_until: float | None = None
        self._failures: dict[str, str] = {}
        self._ticks_off = self._ticks_to_go = 0
        tick = min(max(cadence.sweep_interval.total_seconds() / 15, _FASTEST_TICK), _SLOWEST_TICK)
        self._ticks = {"sweep": tick, "collect": min(tick, _SLOWEST_COLLECT_TICK)}
        # A job for each receiver, so that a slow one delays no other.
        self._announcements = {
            f"announce {name}": partial(self._announce_step, name)
            for name in (() if announcer is None else announcer.receivers)
        }
        self._ticks |= dict.fromkeys(self._announcements, min(tick, _SLOWEST_ANNOUNCE_TICK))
        self._scheduler = AsyncIOScheduler(
            timezone=UTC,
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )

    async def run_forever(self, looked: Callable[[], object] = lambda: None) -> None:
        """Work until asked to stop; raise what made going on impossible.

        ``looked`` is called at each look of the watch that finds all well, and when asked to stop.
        """
        self._add("sweep", self._sweep_step, timedelta(seconds=self._ticks["sweep"]))
        self._add("collect", self._collect_step, timedelta(seconds=self._ticks["collect"]))
        self._add("housekeeping", self._housekeeping_step, _HOUSEKEEPING)
        for name, step in self._announcements.items():
            self._add(name, step, timedelta(seconds=self._ticks[name]))
        if self._heeding:
            self._add("heed", self._heed_step, _HEED)
        self._scheduler.start()
        try:
            await self._until_stopped(looked)
            self._scheduler.pause()  # shutdown() alone would cancel what is in flight
            await self._wind_down()
            if self._collected != CollectReport():
                self._tell(SweepReport(), 0.0)  # what was filed since the last sweep's line
        finally:
            self._scheduler.shutdown(wait=False)
        if self._fault is not None:
            raise self._fault

    @property
    def troubles(self) -> list[str]:
        """What time or a person has to mend, in words: the key, the archive, a step that failed."""
        refused = ["Lune refuses the key"] if self._refused_until is not None else []
        return refused + [f"{name}: {reason}" for name, reason in self._failures.items()]

    def wake(self, name: str) -> None:
        """Run a job now, or again as soon as it ends."""
        if name == "collect":
            self._ticks_off = self._ticks_to_go = 0
        if any(task.get_name() == name for task in self._running):
            self._again.add(name)
        elif self._scheduler.running and not self._stop.asked:
            self._scheduler.modify_job(name, next_run_time=datetime.now(UTC))

    def _add(self, name: str, step: Callable[[], Awaitable[None]], every: timedelta) -> None:
        async def job() -> None:
            task = asyncio.current_task()
            if self._stop.asked or task is None or (name == "collect" and self._rests()):
                return
            task.set_name(name)
            self._running.add(task)
            self.watch.began(name)
            try:
                await self._attempt(name, step)
            except asyncio.CancelledError:
                if not self._stop.asked:
                    raise
                # Abandoned on purpose; the scheduler would log it as a fault.
            finally:
                self.watch.ended(name)
                self._running.discard(task)
                if name in self._again:
                    self._again.discard(name)
                    self.wake(name)

        self.watch.expect(name, every.total_seconds())
        self._scheduler.add_job(job, _Every(every), id=name, next_run_time=datetime.now(UTC))

    async def _attempt(self, name: str, step: Callable[[], Awaitable[None]]) -> None:
        """Run a step; what time or a person can mend is logged, anything else ends the process."""
        try:
            await step()
            self._note_failure(name, None)
        except KeyRefused as error:
            if self._refused_until is None:
                log.error("key refused", reason=str(error), again_in_seconds=KEY_PAUSE)  # noqa: TRY400 - the reason is whole
            self._refused_until = time.monotonic() + KEY_PAUSE
        except (ConfigurationError, LedgerReplaced) as error:
            self._fail(error)
        except HarvesterError as error:
            self._note_failure(name, str(error))
            log.warning("step failed", step=name, reason=str(error))
        except Exception as error:
            log.exception("step broke", step=name)
            self._fail(error)

    def _note_failure(self, of: str, reason: str | None) -> None:
        if reason is None:
            self._failures.pop(of, None)
        else:
            self._failures[of] = reason

    def _fail(self, error: BaseException) -> None:
        self._fault = self._fault or error
        self._stop.request()

    async def _sweep_step(self) -> None:
        if not await self._key_is_accepted():
            return
        began = time.monotonic()
        await self._placer.settle_open()
        swept = await self._sweep.run_once(await self._book.accounts())
        if swept.accounts:
            self._note_failure("Lune", next(iter(swept.failed.values()), None))
        if swept != SweepReport():
            self.wake("collect")  # not awaited: a slow disk holds up no look
        if swept.accounts:
            self._tell(swept, time.monotonic() - began)

    async def _heed_step(self) -> None:
        """Look at what webhooks told of, and have the certificates that shows to be there."""
        if self._refused_until is None and (await self._sweep.heed()).accounts:
            self.wake("collect")

    async def _collect_step(self) -> None:
        if self._refused_until is None:
            collected = await self._collector.run_once()
            if collected == CollectReport():
                self._ticks_to_go = self._ticks_off
                self._ticks_off = min(2 * self._ticks_off + 1, _MOST_TICKS_OFF - 1)
            else:
                self._ticks_off = 0
            self._collected.add(collected)
            self._note_failure("archive", self._collected.storage)

    def _rests(self) -> bool:
        """Tell whether this tick of collecting is left out.

        Whoever makes a certificate due wakes the job; ticks are for those that are asked for again
        when time has passed. Their waits double, so after rounds without any the next one may be
        late by as much as nothing happened before.
        """
        rests = self._ticks_to_go > 0
        self._ticks_to_go -= rests
        return rests

    async def _announce_step(self, receiver: str) -> None:
        if self._announcer is not None:
            await self._announcer.announce(receiver)

    async def _housekeeping_step(self) -> None:
        if self._announcer is not None:
            await self._announcer.tidy()
        await self._housekeeping()

    def _tell(self, swept: SweepReport, seconds: float) -> None:
        """Log the line of a sweep; certificates and requests count since the line before."""
        collected, self._collected = self._collected, CollectReport()
        requests, self._requests_told = self._requests_told, self._requests()
        log.info(
            "sweep",
            accounts=swept.accounts,
            orders=swept.seen,
            new=swept.new,
            changed=swept.changed,
            filed=collected.filed + collected.adopted,
            failed=collected.failed + len(swept.failed) + len(swept.parked),
            not_yet=collected.not_yet,
            set_aside=len(swept.set_aside),
            requests=self._requests_told - requests,
            seconds=round(seconds, 3),
        )

    async def _key_is_accepted(self) -> bool:
        """After a refusal, ask with the key as it is now, once in five minutes."""
        if self._refused_until is None:
            return True
        if self._lune.refused:
            if time.monotonic() < self._refused_until:
                return False
            await self._lune.probe()
        self._refused_until = None
        log.info("key accepted again")
        return True

    async def _until_stopped(self, looked: Callable[[], object]) -> None:
        """Return when asked to stop, or when going on would be pretence: a step hangs."""
        try:
            await self.watch.run(self._wake_all, looked)
        except StepHangsError as error:
            log.error("step hangs", reason=str(error))  # noqa: TRY400 - its own trace says nothing
            tell_stacks(asyncio.get_running_loop())
            self._fail(error)
            self._stop.request()  # what hangs is not waited for

    def _wake_all(self) -> None:
        """Plan anew: the scheduler goes by the wall clock; set back a day, it would sleep one."""
        for name in (*self._ticks, "housekeeping", *(["heed"] if self._heeding else [])):
            self.wake(name)

    async def _wind_down(self) -> None:
        """Let what is in flight end; abandon it after the grace time or when urged."""
        if not self._running:
            return
        log.info("stopping", in_flight=len(self._running))
        urged = asyncio.create_task(self._stop.wait_urged(), name="urged")
        ended = asyncio.create_task(asyncio.wait(set(self._running)), name="wind-down")
        try:
            await asyncio.wait(
                {urged, ended}, timeout=self._grace, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            urged.cancel()
            ended.cancel()
            abandoned = set(self._running)
            for task in abandoned:
                task.cancel()
            await asyncio.gather(*abandoned, return_exceptions=True)
            if abandoned:
                log.warning("abandoned", steps=sorted(task.get_name() for task in abandoned))
