"""The daemon: the same steps as a drain, woken over and over until asked to stop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger

from harvester.app import App
from harvester.domain.errors import (
    ConfigurationError,
    HarvesterError,
    KeyRefused,
    LedgerReplaced,
)
from harvester.domain.lune_events import KEPT_FOR
from harvester.harvest.reports import CollectReport, SweepReport
from harvester.harvest.stuck import report_stuck
from harvester.ledger.hints import forget_webhook_events
from harvester.liveness import Liveness, StepHungError
from harvester.runtime.watchdog import tell_stacks

log = structlog.get_logger()

_SLOWEST_TICK = 60.0
_SLOWEST_COLLECT_TICK = 10.0
_SLOWEST_DELIVER_TICK = 1.0
_FASTEST_TICK = 0.2
_MOST_TICKS_OFF = 6
_HOUSEKEEPING = 3600.0
_HINTS = 2.0


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
    """Wakes sweep, collection, deliveries and housekeeping; owns when, and nothing else.

    Due dates are in the ledger: a wake-up with nothing due asks Lune for nothing. ``wall`` is the
    wall clock that is watched for steps.
    """

    def __init__(self, app: App, wall: Callable[[], float] = time.time) -> None:
        self._app = app
        self._stop = app.context.stop
        self._limits = app.context.limits
        self.liveness = Liveness(app.context, lambda: app.requests, wall)
        self._requests_logged = 0
        self._collected = CollectReport()
        self._running: set[asyncio.Task[None]] = set()
        self._again: set[str] = set()
        self._fault: BaseException | None = None
        self._refused_until: float | None = None
        self._failures: dict[str, str] = {}
        self._ticks_off = self._ticks_to_go = 0
        self._steps = self._make_steps()
        self._scheduler = AsyncIOScheduler(
            timezone=UTC,
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )

    async def run_forever(self, looked: Callable[[], object] = lambda: None) -> None:
        """Work until asked to stop; raise what made going on impossible.

        ``looked`` is called each time that liveness finds all well, and when asked to stop.
        """
        for name, (step, every) in self._steps.items():
            self._add(name, step, every)
        self._scheduler.start()
        try:
            await self._until_stopped(looked)
            self._scheduler.pause()  # shutdown() alone would cancel what is in flight
            await self._wind_down()
            if self._collected != CollectReport():
                self._log_sweep(SweepReport(), 0.0)  # what was stored since the last sweep's line
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
        """Run a step now, or again as soon as it ends."""
        if name == "collect":
            self._ticks_off = self._ticks_to_go = 0
        if any(task.get_name() == name for task in self._running):
            self._again.add(name)
        elif self._scheduler.running and not self._stop.requested:
            self._scheduler.modify_job(name, next_run_time=datetime.now(UTC))

    def _make_steps(self) -> dict[str, tuple[Callable[[], Awaitable[None]], float]]:
        """Return the steps by name, each with its interval in seconds."""
        interval = self._app.context.schedule.sweep_interval.total_seconds()
        tick = min(max(interval / 15, _FASTEST_TICK), _SLOWEST_TICK)
        steps: dict[str, tuple[Callable[[], Awaitable[None]], float]] = {
            "sweep": (self._sweep_step, tick),
            "collect": (self._collect_step, min(tick, _SLOWEST_COLLECT_TICK)),
            "housekeeping": (self._housekeeping_step, _HOUSEKEEPING),
        }
        for name in self._app.dispatcher.receivers:
            # A step for each receiver, so that a slow one delays no other.
            step = partial(self._deliver_step, name)
            steps[f"deliver {name}"] = (step, min(tick, _SLOWEST_DELIVER_TICK))
        if self._app.takes_webhooks:
            steps["hints"] = (self._hints_step, _HINTS)
        return steps

    def _add(self, name: str, step: Callable[[], Awaitable[None]], every: float) -> None:
        async def job() -> None:
            task = asyncio.current_task()
            if self._stop.requested or task is None or (name == "collect" and self._rests()):
                return
            task.set_name(name)
            self._running.add(task)
            self.liveness.began(name)
            try:
                await self._attempt(name, step)
            except asyncio.CancelledError:
                if not self._stop.requested:
                    raise
                # Abandoned on purpose; the scheduler would log it as a fault.
            finally:
                self.liveness.ended(name)
                self._running.discard(task)
                if name in self._again:
                    self._again.discard(name)
                    self.wake(name)

        self.liveness.expect(name, every)
        trigger = _Every(timedelta(seconds=every))
        self._scheduler.add_job(job, trigger, id=name, next_run_time=datetime.now(UTC))

    async def _attempt(self, name: str, step: Callable[[], Awaitable[None]]) -> None:
        """Run a step; what time or a person can mend is logged, anything else ends the process."""
        try:
            await step()
            self._note_failure(name, None)
        except KeyRefused as error:
            if self._refused_until is None:
                again = self._limits.key_retry
                log.error("key refused", reason=str(error), next_attempt_in_seconds=again)  # noqa: TRY400 - the reason is whole
            self._refused_until = time.monotonic() + self._limits.key_retry
        except (ConfigurationError, LedgerReplaced) as error:
            self._fail(error)
        except HarvesterError as error:
            self._note_failure(name, str(error))
            log.warning("step failed", step=name, reason=str(error))
        except Exception as error:
            log.exception("step failed unexpectedly", step=name)
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
        await self._app.purchaser.settle_open()
        swept = await self._app.sweep.run_once(await self._app.accounts.accounts())
        if swept.accounts:
            self._note_failure("Lune", next(iter(swept.failed.values()), None))
        if swept != SweepReport():
            self.wake("collect")  # not awaited: a slow disk holds up no check
        if swept.accounts:
            self._log_sweep(swept, time.monotonic() - began)

    async def _hints_step(self) -> None:
        """Check what webhooks named, and have the certificates that shows to be there."""
        if self._refused_until is None and (await self._app.sweep.follow_hints()).accounts:
            self.wake("collect")

    async def _collect_step(self) -> None:
        if self._refused_until is None:
            collected = await self._app.collector.run_once()
            if collected == CollectReport():
                self._ticks_to_go = self._ticks_off
                self._ticks_off = min(2 * self._ticks_off + 1, _MOST_TICKS_OFF - 1)
            else:
                self._ticks_off = 0
            self._collected.add(collected)
            self._note_failure("archive", self._collected.storage)

    def _rests(self) -> bool:
        """Tell whether this tick of collecting is left out.

        Whoever makes a certificate due wakes the step; ticks are for those that are asked for again
        when time has passed. Their waits double, so after rounds without any the next one may be
        late by as much as nothing happened before.
        """
        rests = self._ticks_to_go > 0
        self._ticks_to_go -= rests
        return rests

    async def _deliver_step(self, receiver: str) -> None:
        await self._app.dispatcher.deliver(receiver)

    async def _housekeeping_step(self) -> None:
        """Drop old events, report stuck orders, forget old webhooks, fold the ledger's log in."""
        app = self._app
        await app.dispatcher.prune()
        await forget_webhook_events(app.database, app.context.clock() - KEPT_FOR)
        await report_stuck(app.database, app.settings.harvest.stuck, app.context)
        await app.database.checkpoint()

    def _log_sweep(self, swept: SweepReport, seconds: float) -> None:
        """Log the line of a sweep; certificates and requests count since the line before."""
        collected, self._collected = self._collected, CollectReport()
        requests, self._requests_logged = self._requests_logged, self._app.requests
        log.info(
            "sweep finished",
            accounts=swept.accounts,
            orders=swept.seen,
            new=swept.new,
            changed=swept.changed,
            stored=collected.stored + collected.recovered,
            failed=collected.failed + len(swept.failed) + len(swept.parked),
            not_yet=collected.not_yet,
            rejected=len(swept.rejected),
            requests=self._requests_logged - requests,
            seconds=round(seconds, 3),
        )

    async def _key_is_accepted(self) -> bool:
        """After a refusal, ask with the key as it is now, once in five minutes."""
        if self._refused_until is None:
            return True
        if self._app.lune.key_refused:
            if time.monotonic() < self._refused_until:
                return False
            await self._app.lune.probe()
        self._refused_until = None
        log.info("key accepted")
        return True

    async def _until_stopped(self, looked: Callable[[], object]) -> None:
        """Return when asked to stop, or when going on would be pretence: a step hangs."""
        try:
            await self.liveness.run(self._wake_all, looked)
        except StepHungError as error:
            log.error("step hung", reason=str(error))  # noqa: TRY400 - its own trace says nothing
            tell_stacks(asyncio.get_running_loop())
            self._fail(error)
            self._stop.request()  # what hangs is not waited for

    def _wake_all(self) -> None:
        """Plan anew: the scheduler goes by the wall clock; set back a day, it would sleep one."""
        for name in self._steps:
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
                {urged, ended},
                timeout=self._limits.stop_grace,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            urged.cancel()
            ended.cancel()
            abandoned = set(self._running)
            for task in abandoned:
                task.cancel()
            await asyncio.gather(*abandoned, return_exceptions=True)
            if abandoned:
                log.warning("steps abandoned", steps=sorted(task.get_name() for task in abandoned))
