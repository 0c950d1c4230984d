"""Time zones, leap seconds, and whether a period drifts."""

from __future__ import annotations

import asyncio
import re
import time

import pytest

from harvester.context import Stop
from tests.faults.catalogue import fault
from tests.faults.proxy import changed
from tests.faults.scene import Scene
from tests.integration.test_daemon import Steps, daemon_of

TICK = 0.2
"""Seconds between wake-ups of :func:`daemon_of`'s daemon."""


@fault("C5")
async def test_wake_ups_keep_to_their_schedule_and_do_not_drift() -> None:
    stop, steps = Stop(), Steps()
    steps.hang.set()
    daemon = daemon_of(steps, stop)
    running = asyncio.create_task(daemon.run_forever())
    await asyncio.wait_for(steps.hanging.wait(), 5)
    began, first = time.monotonic(), steps.rounds
    await asyncio.sleep(20.5 * TICK)
    rounds, planned = steps.rounds - first, (time.monotonic() - began) / TICK
    stop.request()
    await asyncio.wait_for(running, 5)
    assert planned - 2 <= rounds <= planned + 1


@fault("C9")
async def test_a_time_zone_changes_no_instant_and_no_folder(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Half an hour before April in UTC: evening in New York, and April long since in Auckland.
    instant = b'"created_at": "2026-03-31T23:30:00Z"'
    order = scene.order()
    pattern = rb'"created_at": ?"[^"]*"'
    scene.proxy.script(changed(lambda body: re.sub(pattern, instant, body)), "orders", 100)
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    assert (await scene.command("run", "--drain")).code == 0
    monkeypatch.setenv("TZ", "America/New_York")
    shown = await scene.home.show(order.id)
    assert shown["created_at"] == "2026-03-31T23:30:00Z"
    (name,) = scene.home.files()
    assert name.split("/")[1] == "2026-03"
    stored = shown["certificate"]["stored_at"]
    assert stored.endswith("Z")
    assert abs(time.time() - _seconds(stored)) < 60


@fault("C9")
async def test_an_order_created_in_a_leap_second_stops_nobody(scene: Scene) -> None:
    leap_born, order = scene.order(), scene.order()
    leap = b'"created_at": "2016-12-31T23:59:60Z"'

    def created_in_it(body: bytes) -> bytes:
        at = body.index(leap_born.id.encode())
        pattern = rb'"created_at": ?"[^"]*"'
        nearest = min(re.finditer(pattern, body), key=lambda found: abs(found.start() - at))
        return body[: nearest.start()] + leap + body[nearest.end() :]

    scene.proxy.script(changed(created_in_it), "orders")
    await scene.drain()
    assert any(order.id in name for name in scene.home.files())
    await scene.drain()
    assert len(scene.home.files()) == 2


def _seconds(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()
