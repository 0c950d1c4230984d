"""The service loop: wakes by itself, stops when asked, survives what time or a person can mend."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
import structlog

from harvester.app import App
from harvester.context import Context, Limits, Stop, utc_now
from harvester.domain.errors import LedgerUnavailable
from harvester.domain.schedule import Schedule
from harvester.harvest.reports import CollectReport, SweepReport
from harvester.ledger.statistics import read_statistics
from harvester.runtime.daemon import Daemon, _Every
from harvester.runtime.service import serve
from harvester.sandbox import Sandbox
from tests.integration.conftest import OpenApp

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
FAST = {"sweep_interval": "200ms", "longest_interval": "1s"}


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 15) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - nothing tells when a database changed
            await asyncio.sleep(0.05)


def stored(app: App, count: int) -> Callable[[], Awaitable[bool]]:
    async def is_so() -> bool:
        async with app.database.read() as connection:
            statistics = await read_statistics(connection, utc_now())
        return statistics.by_certificate.get("stored", 0) == count

    return is_so


async def test_new_orders_are_found_followed_and_stored_without_being_asked(
    sandbox: Sandbox, opened: OpenApp
) -> None:
    order = sandbox.create_order("paid", hold=True)
    async with opened(**FAST) as app:
        daemon = asyncio.create_task(serve(app))
        sandbox.move_order(order.id, "complete")
        await until(stored(app, 1))
        sandbox.create_order("complete", account_id=sandbox.accounts[1].id, hold=True)
        await until(stored(app, 2))
        app.context.stop.request()
        await asyncio.wait_for(daemon, 5)


async def test_a_refused_key_is_said_once_and_not_asked_with_again(
    sandbox: Sandbox, opened: OpenApp
) -> None:
    sandbox.create_order("complete", hold=True)
    async with opened(**FAST) as app:
        with structlog.testing.capture_logs() as lines:
            daemon = asyncio.create_task(serve(app))
            await until(stored(app, 1))
            sandbox.faults.add("revoked-key")
            sandbox.journal.clear()
            await asyncio.sleep(2)  # ten sweeps' time
            asked = sandbox.journal.count()
            assert not daemon.done()
            app.context.stop.request()
            await asyncio.wait_for(daemon, 5)
    assert 1 <= asked <= 4  # what was in flight, and one question to tell key from account
    assert len([line for line in lines if line["event"] == "key refused"]) == 1


class Steps:
    """Stands where the parts of an app stand; ``fault`` is what its sweeps raise."""

    receivers = ()

    def __init__(self, fault: BaseException | None = None) -> None:
        self.fault = fault
        self.rounds = 0
        self.hang = asyncio.Event()
        self.hanging = asyncio.Event()

    async def accounts(self) -> list[Any]:
        return []

    async def settle_open(self) -> int:
        return 0

    async def prune(self) -> None:
        raise LedgerUnavailable("there is none to keep house in")

    async def run_once(self, followed: object = None) -> Any:
        if followed is None:
            return CollectReport()
        self.rounds += 1
        if self.fault is not None:
            raise self.fault
        self.hanging.set()
        await self.hang.wait()
        return SweepReport()


class AppOfSteps:
    """As much of an app as the daemon takes; ``requests`` is asked whenever it looks."""

    takes_webhooks = False

    def __init__(self, steps: Steps, context: Context, requests: Callable[[], int]) -> None:
        self.accounts = self.sweep = self.collector = self.purchaser = self.dispatcher = steps
        self.context = context
        self._requests = requests

    @property
    def requests(self) -> int:
        return self._requests()


def daemon_of(
    steps: Steps,
    stop: Stop,
    requests: Callable[[], int] = lambda: 0,
    *,
    limits: Limits | None = None,
    wall: Callable[[], float] = time.time,
) -> Daemon:
    schedule = Schedule(timedelta(milliseconds=200), timedelta(seconds=1))
    context = Context(schedule, stop, limits=limits or Limits())
    return Daemon(cast("App", AppOfSteps(steps, context, requests)), wall)


async def test_a_fault_that_time_can_mend_does_not_end_the_process() -> None:
    stop, steps = Stop(), Steps(LedgerUnavailable("disk full"))
    running = asyncio.create_task(daemon_of(steps, stop).run_forever())

    async def came_back() -> bool:
        return steps.rounds >= 3

    await until(came_back)
    stop.request()
    await asyncio.wait_for(running, 5)


async def test_an_unexpected_fault_ends_the_process_with_that_fault() -> None:
    running = daemon_of(Steps(ZeroDivisionError("a fault of ours")), Stop()).run_forever()
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(running, 10)


async def test_what_is_in_flight_ends_before_the_daemon_does() -> None:
    stop, steps = Stop(), Steps()
    running = asyncio.create_task(daemon_of(steps, stop).run_forever())
    await asyncio.wait_for(steps.hanging.wait(), 5)
    stop.request()
    await asyncio.sleep(0.3)
    assert not running.done()
    steps.hang.set()
    await asyncio.wait_for(running, 5)


async def test_a_second_request_abandons_what_is_in_flight_at_once() -> None:
    stop, steps = Stop(), Steps()
    running = asyncio.create_task(daemon_of(steps, stop).run_forever())
    await asyncio.wait_for(steps.hanging.wait(), 5)
    stop.request()
    stop.request()
    await asyncio.wait_for(running, 2)


async def test_what_does_not_end_within_the_grace_time_is_abandoned() -> None:
    stop, steps = Stop(), Steps()
    running = asyncio.create_task(
        daemon_of(steps, stop, limits=Limits(stop_grace=0.2)).run_forever()
    )
    await asyncio.wait_for(steps.hanging.wait(), 5)
    stop.request()
    await asyncio.wait_for(running, 5)


@pytest.mark.parametrize("days", [-1, 400])
async def test_after_a_step_of_the_wall_clock_everything_runs_anew(days: int) -> None:
    stop, steps, offset = Stop(), Steps(), [0.0]
    steps.hang.set()
    daemon = daemon_of(steps, stop, wall=lambda: time.time() + offset[0])
    with structlog.testing.capture_logs() as lines:
        running = asyncio.create_task(daemon.run_forever())
        await asyncio.wait_for(steps.hanging.wait(), 5)
        offset[0] = days * 86_400.0

        async def said() -> bool:
            return any(line["event"] == "wall clock stepped" for line in lines)

        await until(said)
        rounds = steps.rounds

        async def went_on() -> bool:
            return steps.rounds > rounds

        await until(went_on)
        stop.request()
        await asyncio.wait_for(running, 5)
    steps_seen = [line["seconds"] for line in lines if line["event"] == "wall clock stepped"]
    assert steps_seen == [days * 86_400]


def test_a_rhythm_leaves_out_what_it_missed_and_keeps_its_beat() -> None:
    rhythm = _Every(timedelta(seconds=10))
    first = rhythm.get_next_fire_time(None, BEGINNING)
    assert first == BEGINNING
    second = rhythm.get_next_fire_time(first, BEGINNING)
    assert second == BEGINNING + timedelta(seconds=10)
    years_later = BEGINNING + timedelta(days=20_000, seconds=3)
    assert rhythm.get_next_fire_time(first, years_later) == years_later + timedelta(seconds=7)
