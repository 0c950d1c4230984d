"""Lune says no: too fast, broken, blocked, the wrong key, the wrong account."""

from __future__ import annotations

import asyncio
import json
import math
import time
from datetime import timedelta
from email.utils import formatdate

import pytest

from harvester.domain.errors import KeyRefused, RateLimited
from harvester.runtime.drain import Drain
from tests.acceptance.harness import events, until
from tests.faults.catalogue import fault
from tests.faults.instant_harvest import chain, detail, instant_harvest, statistics
from tests.faults.proxy import Answer, Exchange, response, saying, through
from tests.faults.scene import Scene

TOO_FAST = response(429, b"Too many requests, please try again later.", "text/plain")
CHALLENGE = b"<!DOCTYPE html><title>Just a moment...</title>"


def for_account(account_id: str, answer: Answer) -> Answer:
    """Answer one account's requests so, and let the others through."""

    async def choose(exchange: Exchange) -> None:
        meant = exchange.seen.headers.get("lune-account") == account_id
        await (answer if meant else through)(exchange)

    return choose


@fault("A1")
async def test_a_429_without_advice_makes_every_request_pause_ever_longer(scene: Scene) -> None:
    scene.home.configure(lune__accounts=["default"])
    order = scene.order("placed")
    scene.proxy.script(saying(TOO_FAST), "orders", times=3)
    async with instant_harvest(scene) as harvest:
        report = await harvest.sweep()
        assert harvest.app.rate_limiter.pauses == 3
        assert 1 + 2 + 4 <= harvest.time.now < 1 + 2 + 4 + 3 + 1  # a second of jitter each
    assert (report.new, report.failed) == (1, {})
    assert await chain(scene, order.id) == [(None, "placed")]


@fault("A1")
async def test_a_429_without_end_leaves_the_orders_as_they_are(scene: Scene) -> None:
    scene.home.configure(lune__accounts=["default"])
    order = scene.order("placed")
    await scene.drain()
    scene.lune.move_order(order.id, "paid")
    scene.proxy.script(saying(TOO_FAST), times=math.inf)
    asked = scene.proxy.count()
    async with instant_harvest(scene) as harvest:
        with pytest.raises(RateLimited):
            await harvest.sweep()
    assert scene.proxy.count() - asked == 10
    assert await chain(scene, order.id) == [(None, "placed")]


@fault("A2")
@pytest.mark.parametrize(
    ("advice", "shortest", "longest"),
    [
        ("3", 3, 3),
        ("in 20 s", 18, 20),
        ("0", 1, 2),
        ("-1", 1, 2),
        ("abc", 1, 2),
        ("nan", 1, 2),
        ("inf", 1, 2),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 1, 2),
        ("Thu, 99 Foo 2031 00:00:00 GMT", 1, 2),
        ("1e9", 300, 300),
        ("9" * 400, 1, 2),
    ],
)
async def test_a_retry_after_is_kept_within_reason(
    scene: Scene, advice: str, shortest: float, longest: float
) -> None:
    if advice == "in 20 s":
        advice = formatdate(time.time() + 20, usegmt=True)
    scene.proxy.script(saying(response(429, Retry_After=advice)))
    async with instant_harvest(scene) as harvest:
        await harvest.app.lune.fetch_own_account()
        assert shortest <= harvest.time.now <= longest + 0.1


@fault("A2")
async def test_a_pause_of_minutes_is_left_at_once_when_it_is_cancelled(scene: Scene) -> None:
    scene.proxy.script(saying(response(429, Retry_After="300")), times=math.inf)
    drain = asyncio.create_task(scene.drain())
    await until(lambda: "request repeated" in scene.log_text())
    began = time.monotonic()
    drain.cancel()
    with pytest.raises(asyncio.CancelledError):
        await drain
    assert time.monotonic() - began < 5
    assert scene.proxy.count() == 1


@fault("A3")
async def test_a_429_for_one_account_slows_the_whole_key(scene: Scene) -> None:
    own, other = scene.lune.accounts
    scene.proxy.script(for_account(other.id, saying(TOO_FAST)), times=math.inf)
    async with instant_harvest(scene) as harvest:
        mine, theirs = await harvest.app.lune.fetch_accounts()
        assert (mine.id, theirs.id) == (own.id, other.id)
        with pytest.raises(RateLimited):
            await harvest.app.lune.fetch_orders(theirs)
        began = harvest.time.now
        await harvest.app.lune.fetch_orders(mine)
        assert harvest.time.now - began > 30


@fault("A4")
@pytest.mark.parametrize(
    "kind", ["an order", "json", "empty", "text", "html", 502, 520, 521, 522, 524, 525, 527]
)
async def test_a_5xx_is_a_fault_of_the_moment_and_its_body_no_order(
    scene: Scene, kind: str | int
) -> None:
    scene.home.configure(lune__accounts=["default"])
    order = scene.order("placed")
    await scene.drain()
    row = scene.lune.document(order.id) | {"status": "failed"}
    page = json.dumps({"has_more": False, "next_cursor": None, "data": [row]}).encode()
    bodies = {
        "an order": (500, page, "application/json"),
        "json": (500, b'{"error": {"error_code": "oops", "message": "no"}}', "application/json"),
        "empty": (500, b"", ""),
        "text": (503, b"down\x1b[2J\n" + b"x" * 5000, "text/plain"),
    }
    status, body, media = bodies.get(str(kind), (502, CHALLENGE * 2000, "text/html"))
    status = kind if isinstance(kind, int) else status
    bad = saying(response(status, body, media, CF_RAY="8a1b2c-LHR"))
    scene.proxy.script(bad, "orders", times=math.inf)
    async with instant_harvest(scene) as harvest:
        harvest.later(timedelta(minutes=20))
        [reason] = (await harvest.sweep()).failed.values()
        assert f"status {status}" in reason
        assert "CF-Ray 8a1b2c-LHR" in reason
        assert len(reason) < 400
        scene.proxy.clear()
        harvest.later(timedelta(minutes=20))
        assert (await harvest.sweep()).failed == {}
    assert await chain(scene, order.id) == [(None, "placed")]
    [line] = events(scene.log_text(), "sweep failed")
    assert line["cf_ray"] == "8a1b2c-LHR"
    await scene.drain()


@fault("A5")
@pytest.mark.parametrize("endpoint", ["account", "orders", "certificate"])
async def test_a_web_page_in_place_of_an_answer_is_never_taken_for_one(
    scene: Scene, endpoint: str
) -> None:
    order = scene.order()
    portal = saying(response(200, b"<html>Welcome to the guest network</html>", "text/html"))
    scene.proxy.script(portal, endpoint, times=math.inf)
    async with instant_harvest(scene) as harvest:
        lines = (await harvest.drain()).unfinished
    assert any("content type" in line or "served as 'text/html'" in line for line in lines)
    assert scene.home.files() == set()
    scene.proxy.clear()
    assert (await scene.drain()).unfinished == []
    assert await chain(scene, order.id) == [(None, "complete")]


@fault("A6")
async def test_a_challenge_from_the_edge_does_not_refuse_the_key(scene: Scene) -> None:
    scene.home.configure(lune__accounts=["default"])
    order = scene.order("placed")
    scene.proxy.script(
        saying(response(403, CHALLENGE, "text/html", CF_RAY="8a-LHR")), "orders", times=math.inf
    )
    async with instant_harvest(scene) as harvest:
        [reason] = (await harvest.sweep()).failed.values()
        assert "in front of Lune" in reason
        assert not harvest.app.lune.key_refused
        assert scene.proxy.count("orders") == 4
        await harvest.sweep()
        assert scene.proxy.count("orders") == 4  # later, not at once
        scene.proxy.clear()
        harvest.later(timedelta(minutes=6))
        assert (await harvest.sweep()).new == 1
    await scene.drain()
    assert await chain(scene, order.id) == [(None, "placed")]


@fault("A7")
async def test_a_refused_key_stops_every_request_and_changes_no_order(scene: Scene) -> None:
    orders = [scene.order("placed") for _ in range(5)]
    await scene.drain()
    for order in orders:
        scene.lune.move_order(order.id, "paid")
    scene.lune.faults.add("revoked-key")
    async with scene.open() as app:
        for _ in range(3):
            asked = scene.proxy.count()
            with pytest.raises(KeyRefused):
                await Drain(app).run()
        assert scene.proxy.count() == asked
    ran = await scene.command("run", "--drain")
    assert ran.code == 77
    for order in orders:
        assert await chain(scene, order.id) == [(None, "placed")]


@fault("A7")
async def test_a_key_that_was_replaced_in_its_file_is_taken_up(scene: Scene) -> None:
    key_file = scene.home.folder / "lune_api_key"
    good = key_file.read_text()
    key_file.write_text("canary-of-an-old-key")
    scene.secrets.append("canary-of-an-old-key")
    scene.order()
    async with scene.open() as app:
        with pytest.raises(KeyRefused):
            await Drain(app).run()
        key_file.write_text(good)
        await app.lune.probe()
        assert (await Drain(app).run()).collected.stored == 1


@fault("A8")
async def test_a_401_for_one_account_parks_that_account_alone(scene: Scene) -> None:
    own, other = scene.lune.accounts
    mine = scene.order(account_id=own.id)
    theirs = scene.order(account_id=other.id)
    refusal = b'{"error": {"error_code": "unauthorised", "message": "no"}}'
    scene.proxy.script(for_account(other.id, saying(response(401, refusal))), times=math.inf)
    report = await scene.drain()
    assert list(report.swept.parked) == [other.id]
    assert (await detail(scene, mine.id)).order.certificate_state == "stored"
    assert (await statistics(scene)).by_status == {"complete": 1}
    scene.proxy.clear()
    assert (await scene.drain()).unfinished == []
    assert (await detail(scene, theirs.id)).order.certificate_state == "stored"


@fault("A28")
@pytest.mark.parametrize(
    ("answer", "tries"),
    [
        (saying(response(500)), 4),
        (saying(response(200, b"{" * 100)[:-50], close=True), 4),
        (saying(response(200, b"<html>", "text/html")), 2),
        (saying(response(404)), 1),
    ],
)
@pytest.mark.parametrize("endpoint", ["orders", "certificate"])
async def test_a_request_is_tried_by_one_layer_alone(
    scene: Scene, answer: Answer, tries: int, endpoint: str
) -> None:
    scene.home.configure(lune__accounts=["default"])
    scene.order()
    scene.proxy.script(answer, endpoint, times=math.inf)
    if endpoint == "certificate" and tries == 2:
        tries = 1  # whatever came is checked as a certificate, and kept
    async with instant_harvest(scene) as harvest:
        for _ in range(3):  # what was tried in vain is due later, however often a round begins
            await harvest.sweep()
            await harvest.collect()
    assert scene.proxy.count(endpoint) == tries
    scene.proxy.clear()
    await scene.drain()
