"""Alive but deaf is not allowed: what hangs ends, by itself or with its process."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE
from datetime import timedelta
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from harvester.app import App
from harvester.context import Context, Limits, Stop
from harvester.domain.schedule import Schedule
from harvester.liveness import StepHungError
from harvester.runtime.daemon import Daemon
from tests.acceptance.harness import Ran, until
from tests.faults import loop_lag
from tests.faults.catalogue import fault
from tests.faults.fake_libc import build
from tests.faults.proxy import response, silence, trickle
from tests.faults.scene import HASTY, Scene
from tests.integration.test_daemon import AppOfSteps, Steps, daemon_of
from tests.needs import need

BOUND = HASTY.deadlines.certificate_total + 1.0


@fault("S7")
@pytest.mark.parametrize("endpoint", ["orders", "certificate"])
async def test_a_request_that_hangs_ends_at_its_deadline(scene: Scene, endpoint: str) -> None:
    scene.order()
    scene.proxy.script(silence, endpoint)
    await scene.drain()
    hung, again = [seen.at for seen in scene.proxy.requests if seen.endpoint == endpoint][:2]
    assert again - hung <= BOUND + 2.0  # and up to two seconds before it is asked again
    assert scene.home.files()


@fault("S7")
async def test_a_request_that_trickles_ends_at_its_deadline(scene: Scene) -> None:
    order = scene.order()
    whole = scene.lune.certificate(order.id)
    assert whole is not None
    scene.proxy.script(trickle(response(200, whole, "application/pdf"), 0.05), "certificate")
    await scene.drain()
    first = next(seen for seen in scene.proxy.requests if seen.endpoint == "certificate")
    await until(lambda: first.ended_at is not None)
    assert first.ended_at is not None
    assert first.ended_at - first.at <= BOUND
    assert scene.home.files()


class Broken:
    """Stands where a part of the harvest stands, and fails as no part may."""

    receivers = ()

    async def run_once(self, *_: object) -> Any:
        raise AttributeError("a fault of ours")

    async def prune(self) -> None:
        raise AttributeError("a fault of ours")


@fault("S6")
@pytest.mark.parametrize("part", ["sweep", "collector", "dispatcher"])
async def test_a_critical_task_that_dies_ends_the_service(part: str) -> None:
    steps = Steps()
    steps.hang.set()
    schedule = Schedule(timedelta(milliseconds=200), timedelta(seconds=1))
    app = AppOfSteps(steps, Context(schedule), lambda: 0)
    setattr(app, part, Broken())
    daemon = Daemon(cast("App", app))
    with pytest.raises(AttributeError, match="a fault of ours"):
        await asyncio.wait_for(daemon.run_forever(), 10)


@fault("S7")
async def test_a_step_that_never_returns_ends_the_service(
    capfd: pytest.CaptureFixture[str],
) -> None:
    daemon = daemon_of(Steps(), Stop(), limits=Limits(step_timeout=1.0))
    with capture_logs() as lines, pytest.raises(StepHungError, match="sweep does nothing"):
        await asyncio.wait_for(daemon.run_forever(), 20)
    assert [line["reason"] for line in lines if line["event"] == "step hung"]
    assert "Steps.run_once" in capfd.readouterr().err  # where it waits


@fault("S7")
async def test_a_step_that_takes_long_but_asks_is_let_go_on() -> None:
    stop, steps, asked = Stop(), Steps(), iter(range(1_000_000))
    limits = Limits(step_timeout=0.75)
    daemon = daemon_of(steps, stop, requests=lambda: next(asked), limits=limits)
    running = asyncio.create_task(daemon.run_forever())
    await asyncio.wait_for(steps.hanging.wait(), 5)
    await asyncio.sleep(2.0)
    assert not running.done()
    assert steps.rounds == 1  # the same step, for all that time
    assert [check.cause for check in daemon.liveness.checks() if check.cause] == []
    steps.hang.set()
    stop.request()
    await asyncio.wait_for(running, 5)


@fault("S8")
async def test_a_loop_that_was_late_is_logged_and_nothing_is_restarted() -> None:
    stop, steps = Stop(), Steps()
    steps.hang.set()
    daemon = daemon_of(steps, stop)
    with capture_logs() as lines:
        running = asyncio.create_task(daemon.run_forever())
        await asyncio.wait_for(steps.hanging.wait(), 5)
        time.sleep(1.6)  # noqa: ASYNC251 - to block the loop is the point
        await until(lambda: [line for line in lines if line["event"] == "process was held up"])
        assert not running.done()
        stop.request()
        await asyncio.wait_for(running, 5)
    assert 1.0 < daemon.liveness.longest_lag < 10


BLOCKED = """
import asyncio, time
from harvester.context import Stop
from harvester.runtime.watchdog import Watchdog

async def main():
    watchdog = Watchdog(Stop(), 1, stalled=1.0)
    watchdog.start()
    asyncio.create_task(watchdog.keep_beating(), name="beat")
    await asyncio.sleep(2.5)  # while it beats, nothing happens
    print("alive", flush=True)
    time.sleep(60)

asyncio.run(main())
"""

LINGERING = """
import threading, time
from harvester.context import Stop
from harvester.runtime.watchdog import Watchdog

threading.Thread(target=time.sleep, args=(60,)).start()
watchdog = Watchdog(Stop(), 1, ending_urged=1.0)
watchdog.start()
watchdog.leave(3)
"""


async def run_program(text: str) -> Ran:
    """Run a Python program to its end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", text, stdin=DEVNULL, stdout=PIPE, stderr=PIPE
    )
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Ran(process.returncode, out.decode(), err.decode())


@fault("S7", "S8")
async def test_a_loop_blocked_for_good_ends_the_process_with_a_stack_dump() -> None:
    ran = await run_program(BLOCKED)
    assert (ran.code, ran.out) == (1, "alive\n")
    assert 'File "<string>", line 12 in main' in ran.err


@fault("S17")
async def test_a_thread_that_lingers_does_not_keep_the_process_and_the_code_stays() -> None:
    ran = await run_program(LINGERING)
    assert ran.code == 3
    assert "sleep" in ran.err or "Thread" in ran.err


@fault("S17")
async def test_an_exit_does_not_wait_for_a_disk_that_hangs(
    scene: Scene, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_libc = build(tmp_path_factory.mktemp("disk"))
    for name, text in fake_libc.environment.items():
        monkeypatch.setenv(name, text)
    scene.home.configure(harvest__sweep_interval="300ms")
    async with scene.home.daemon() as daemon:
        await until(lambda: daemon.events("sweep finished"))
        fake_libc.stall_disk(600)
        scene.order()
        await until(fake_libc.stalled_syncs)
        daemon.process.send_signal(signal.SIGTERM)
        await until(lambda: daemon.events("stopping"))
        daemon.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            ran = await daemon.result()
    scene.keep(ran.err)
    assert ran.code == 1
    assert "waits:" in ran.err  # where every task stood
    scene.clean_end = False
    await scene.drain()
    scene.clean_end = True
    assert scene.home.files()


@fault("S8")
@pytest.mark.parametrize("scenario", ["fsync", "locked"])
async def test_the_loop_stays_prompt_while_disk_and_ledger_do_not(
    scene: Scene, scenario: str
) -> None:
    need(scenario != "fsync" or shutil.which("strace"), "strace")
    lags = await loop_lag.measure(scene, scenario, seconds=1.5)
    assert lags.count > 50
    assert lags.p99 < 0.25  # 50 ms where nothing else runs; a blocked loop would be 1.5 s late
    assert lags.most < 1.2


@fault("S5")
def test_after_an_outage_no_second_of_a_hundred_thousand_requests_exceeds_the_rate() -> None:
    flood = loop_lag.flood(100_000, rate=12.0)
    assert flood.served == 100_000
    assert flood.most_in_a_second <= 12
    assert flood.seconds < 1.5 * 100_000 / 12  # each slot is also taken while a request is out
