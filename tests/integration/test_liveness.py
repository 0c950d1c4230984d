"""An idle daemon sleeps: it seldom looks while nothing is to do, and often afterwards."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from harvester.context import Context, Stop
from harvester.domain.schedule import Schedule
from harvester.harvest.reports import CollectReport
from harvester.liveness import Liveness
from tests.integration.test_daemon import Steps, daemon_of, until


class Counting(Steps):
    """Counts rounds of collecting; each stores as many certificates as are said to be there."""

    def __init__(self) -> None:
        super().__init__()
        self.hang.set()
        self.collects = 0
        self.stored = 0

    async def run_once(self, followed: object = None) -> Any:
        if followed is None:
            self.collects += 1
            return CollectReport(stored=self.stored)
        return await super().run_once(followed)


async def rounds(steps: Counting, ticks: int) -> int:
    """Run the daemon for so many of its ticks; return how often it collected."""
    stop = Stop()
    running = asyncio.create_task(daemon_of(steps, stop).run_forever())
    await until(lambda: _reached(steps, ticks))
    stop.request()
    await asyncio.wait_for(running, 5)
    return steps.collects


async def _reached(steps: Counting, ticks: int) -> bool:
    return steps.rounds >= ticks


async def test_collecting_leaves_out_more_ticks_the_longer_nothing_comes() -> None:
    assert 3 <= await rounds(Counting(), 20) <= 9


async def test_collecting_leaves_out_no_tick_while_something_comes() -> None:
    steps = Counting()
    steps.stored = 1
    assert await rounds(steps, 20) >= 15


async def test_collecting_that_rests_is_woken() -> None:
    stop, steps = Stop(), Counting()
    daemon = daemon_of(steps, stop)
    running = asyncio.create_task(daemon.run_forever())
    await until(lambda: _reached(steps, 15))
    before = steps.collects
    daemon.wake("collect")
    await asyncio.sleep(0.1)  # half a tick
    assert steps.collects == before + 1
    stop.request()
    await asyncio.wait_for(running, 5)


async def test_liveness_looks_often_from_the_moment_a_step_begins() -> None:
    stop, looks = Stop(), [0]

    def looked() -> None:
        looks[0] += 1

    schedule = Schedule(timedelta(minutes=15), timedelta(hours=6))
    liveness = Liveness(Context(schedule, stop), lambda: 0)
    liveness.expect("sweep", 60.0)
    liveness.ended("sweep")
    running = asyncio.create_task(liveness.run(lambda: None, looked))
    await asyncio.sleep(3.5)  # busy for a moment, then idle
    idle = looks[0]
    liveness.began("sweep")
    await asyncio.sleep(1.5)
    busy = looks[0] - idle
    stop.request()
    await asyncio.wait_for(running, 5)
    assert idle <= 5
    assert 3 <= busy <= 8
