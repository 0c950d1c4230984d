"""The wall clock jumps while the daemon runs, or jumped before it was started."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count, pairwise

import pytest

from harvester.domain.orders import EVERYTHING
from harvester.harvest.sweep import Sweep
from harvester.ledger.queries import find_orders
from tests.acceptance.harness import Running, until
from tests.faults.catalogue import fault
from tests.faults.fake_libc import FakeLibc, build
from tests.faults.instant_harvest import instant_harvest
from tests.faults.proxy import Exchange, response, saying
from tests.faults.scene import Scene

DAY = 86_400
ENOUGH = 3
"""Readings of the listing that show that the daemon goes on."""


@pytest.fixture
def fake_libc(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> FakeLibc:
    """A C library with a clock of its own for the commands of this test."""
    library = build(tmp_path_factory.mktemp("clock"))
    for name, text in library.environment.items():
        monkeypatch.setenv(name, text)
    return library


async def goes_on(scene: Scene, daemon: Running, readings: int = ENOUGH) -> None:
    """See that the listing is read a few times more, soon."""
    enough = scene.proxy.count("orders") + readings
    await until(lambda: daemon.ended or scene.proxy.count("orders") >= enough, 20)
    assert not daemon.ended, "".join(daemon.err)


@fault("C1", "C2", "C3")
async def test_the_daemon_goes_on_however_the_wall_clock_is_set(
    scene: Scene, fake_libc: FakeLibc
) -> None:
    scene.home.configure(harvest__sweep_interval="300ms", lune__rate_limit=40)
    order = scene.order("paid")
    async with scene.home.daemon() as daemon:
        await goes_on(scene, daemon)
        for offset in (-DAY, 400 * DAY, 0):
            fake_libc.step_clock(offset)
            await goes_on(scene, daemon)
        scene.lune.move_order(order.id, "complete")
        await until(scene.home.files, 20)
        ran = await daemon.end()
    scene.keep(ran.err)
    assert ran.code == 0
    steps = [round(one["seconds"] / DAY) for one in daemon.events("wall clock stepped")]
    assert steps == [-1, 401, -400]
    assert {one["level"] for one in daemon.events()} <= {"info", "warning"}


@fault("C4", "S5")
async def test_after_a_suspension_of_eight_hours_there_is_one_round_and_no_burst(
    scene: Scene, fake_libc: FakeLibc
) -> None:
    scene.home.configure(harvest__sweep_interval="1s", lune__rate_limit=12)
    for _ in range(5):
        scene.order("paid")
    async with scene.home.daemon() as daemon:
        await until(lambda: daemon.events("sweep finished"))
        process = daemon.process.pid
        os.kill(process, signal.SIGSTOP)
        fake_libc.step_clock(8 * 3600)
        await asyncio.sleep(1.2)  # longer than an interval: what the process sleeps through
        held = await scene.command("run", "--drain")
        before = scene.proxy.count("orders")
        os.kill(process, signal.SIGCONT)
        await asyncio.sleep(1)
        rounds = scene.proxy.count("orders") - before
        fake_libc.step_clock(0)
        await goes_on(scene, daemon, readings=len(scene.lune.accounts))
        ran = await daemon.end()
    scene.keep(ran.err)
    assert held.code == 75  # a process that is stopped still holds its ledger
    accounts = len(scene.lune.accounts)
    assert 1 <= rounds <= 4 * accounts  # of the 14,400 that it missed; the rate is an invariant
    assert ran.code == 0


@fault("C3")
async def test_dates_from_a_wrong_clock_count_as_due(scene: Scene) -> None:
    order = scene.order("paid")
    await scene.drain()
    far = int((datetime.now(UTC) + timedelta(days=365)).timestamp() * 1e6)
    with closing(sqlite3.connect(scene.home.ledger)) as ledger, ledger:
        changed = ledger.execute("UPDATE orders SET next_check_at = ?", (far,)).rowcount
        changed += ledger.execute("UPDATE accounts SET next_sweep_at = ?", (far,)).rowcount
    assert changed >= 2
    scene.lune.move_order(order.id, "complete")
    async with scene.open() as app:
        report = await app.sweep.run_once(await app.accounts.accounts())
        assert report.changed == 1
        await app.collector.run_once()
    assert scene.home.files()


@fault("C7")
async def test_transitions_keep_their_order_when_the_clock_runs_backward(scene: Scene) -> None:
    order = scene.order("placed")
    beginning = datetime.now(UTC)
    instants = (beginning - timedelta(seconds=number // 4) for number in count())
    path = ["placed", "paid", "retiring", "complete"]
    async with scene.open() as app:
        accounts = await app.accounts.accounts()
        backward = replace(app.context, clock=lambda: next(instants))
        sweep = Sweep(app.lune, app.database, backward)
        for status in path:
            scene.lune.move_order(order.id, status)
            await sweep.drain(accounts, beginning)
        await app.collector.run_once()
        (detail,) = await find_orders(app.database, order.id)
    assert [step.after for step in detail.transitions] == path
    assert [step.seq for step in detail.transitions] == [1, 2, 3, 4]
    observed = [step.observed_at for step in detail.transitions]
    assert all(later < earlier for earlier, later in pairwise(observed))


@fault("C1")
async def test_a_drain_asks_once_for_what_is_not_there_though_the_clock_runs_backward(
    scene: Scene,
) -> None:
    scene.order()
    async with instant_harvest(scene) as harvest:
        await harvest.sweep()
        began = harvest.at

        async def refuse(exchange: Exchange) -> None:
            harvest.at -= timedelta(hours=1)
            await saying(response(404, content_type=""))(exchange)

        scene.proxy.script(refuse, "certificate", times=math.inf)
        report = await harvest.app.collector.run_once(EVERYTHING, began)
        assert report.not_yet == scene.proxy.count("certificate") == 1
    scene.proxy.clear()
    assert (await scene.drain()).collected.stored == 1
