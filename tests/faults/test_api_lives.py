"""Orders and certificates that come late, go, come back, or are not what they were."""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime, timedelta

import pytest

from tests.acceptance.harness import events
from tests.faults.catalogue import fault
from tests.faults.instant_harvest import chain, detail, instant_harvest
from tests.faults.invariants import check_invariants
from tests.faults.proxy import Exchange, response, saying
from tests.faults.scene import Scene

INTERVAL = timedelta(minutes=16)
NOTHING = saying(response(200, b'{"has_more": false, "next_cursor": null, "data": []}'))


@fault("A9")
async def test_a_known_order_that_is_not_found_stays_what_it_was(scene: Scene) -> None:
    order = scene.order("paid")
    await scene.drain()
    scene.proxy.script(NOTHING, "orders", times=math.inf)
    scene.proxy.script(saying(response(404, content_type="")), "order", times=math.inf)
    async with instant_harvest(scene) as harvest:
        harvest.later(timedelta(hours=7))
        assert (await harvest.sweep()).failed == {}
        gone = await detail(scene, order.id)
        assert (gone.order.status, gone.order.not_found_since) == ("paid", harvest.at)
        assert gone.order.next_check_at is not None
        assert [one.kind for one in gone.anomalies] == ["not_found"]
        scene.proxy.clear()
        scene.lune.move_order(order.id, "retiring")
        harvest.later(timedelta(hours=7))
        await harvest.sweep()
    await scene.drain()
    assert (await detail(scene, order.id)).order.not_found_since is None
    assert await chain(scene, order.id) == [(None, "paid"), ("paid", "retiring")]


@fault("A10")
async def test_a_certificate_that_is_late_is_asked_for_until_it_comes(scene: Scene) -> None:
    order = scene.order()
    scene.proxy.script(saying(response(404, content_type="")), "certificate", times=math.inf)
    waits, states = [], []
    async with instant_harvest(scene) as harvest:
        began = harvest.at
        await harvest.sweep()
        while harvest.at - began < timedelta(hours=75):
            assert (await harvest.collect()).not_yet == 1
            row = await harvest.order(order.id)
            assert row.next_check_at is not None
            waits.append(row.next_check_at - harvest.at)
            states.append((harvest.at - began > timedelta(hours=72), row.certificate_state))
            harvest.at = row.next_check_at
        assert waits == sorted(waits)
        assert (waits[0], waits[-1]) == (timedelta(seconds=10), timedelta(hours=1))
        assert set(states) == {(False, "owed"), (True, "failed")}
        scene.proxy.clear()
        assert (await harvest.collect()).stored == 1
    await scene.drain()


@fault("A11")
async def test_an_early_certificate_is_kept_beside_the_one_of_the_complete_order(
    scene: Scene,
) -> None:
    scene.home.configure(harvest__interim=True)
    order = scene.order("retiring")
    await scene.drain()
    await check_invariants(scene)  # from here on the file never changes
    scene.lune.move_order(order.id, "complete")
    await scene.drain()
    versions = (await detail(scene, order.id)).certificates
    assert [(one.version, one.kind) for one in versions] == [(1, "interim"), (2, "final")]
    assert len(scene.home.files()) == 2


@fault("A11")
async def test_an_early_certificate_is_not_taken_for_the_final_one(scene: Scene) -> None:
    order = scene.order("retiring")
    await scene.drain()
    assert scene.proxy.count("certificate") == 0
    scene.lune.move_order(order.id, "complete")
    await scene.drain()
    [version] = (await detail(scene, order.id)).certificates
    assert (version.version, version.kind) == (1, "final")


@fault("A12")
async def test_other_bytes_for_the_same_certificate_become_the_next_version(scene: Scene) -> None:
    scene.lune.faults.add("certificate-changes")
    order = scene.order()
    await scene.drain()
    [first] = scene.home.files()
    (scene.home.archive / first).unlink()  # what makes it fetch a second time
    assert (await scene.command("verify", "--repair")).code == 0
    [second] = scene.home.files()
    assert second != first
    versions = (await detail(scene, order.id)).certificates
    assert [one.version for one in versions] == [1, 2]
    assert versions[0].file.sha256 != versions[1].file.sha256


@fault("A13")
async def test_a_status_nobody_documents_is_kept_and_followed(scene: Scene) -> None:
    scene.lune.faults.add("unknown-status=settling,share=1")
    order = scene.order("paid")
    await scene.drain()
    await scene.drain()
    found = await detail(scene, order.id)
    assert found.order.status == "settling"
    assert found.order.next_check_at is not None
    assert [(one.kind, one.served) for one in found.anomalies] == [("unknown_status", "settling")]
    assert len(events(scene.log_text(), "order anomaly")) == 1
    scene.lune.faults.clear()
    scene.lune.move_order(order.id, "complete")
    await scene.drain()
    assert await chain(scene, order.id) == [(None, "settling"), ("settling", "complete")]
    assert (await detail(scene, order.id)).order.certificate_state == "stored"


@fault("A14")
@pytest.mark.parametrize("before", ["received", "placed", "paid", "retiring"])
async def test_a_complete_order_that_goes_back_is_an_anomaly_and_not_harvested_again(
    scene: Scene, before: str
) -> None:
    order = scene.order()
    await scene.drain()
    scene.lune.move_order(order.id, before)
    for _ in range(3):
        await scene.drain()
    found = await detail(scene, order.id)
    assert (found.order.status, found.order.certificate_state) == ("complete", "stored")
    assert [(one.served, one.count) for one in found.anomalies] == [(before, 3)]
    assert found.order.next_check_at is not None
    assert scene.proxy.count("certificate") == 1
    scene.lune.move_order(order.id, "complete")
    await scene.drain()
    found = await detail(scene, order.id)
    assert (found.order.next_check_at, len(found.transitions)) == (None, 1)


@fault("A15")
async def test_statuses_nobody_saw_are_not_invented(scene: Scene) -> None:
    order = scene.order("placed")
    await scene.drain()
    scene.lune.move_order(order.id, "complete")
    await scene.drain()
    assert await chain(scene, order.id) == [(None, "placed"), ("placed", "complete")]


@fault("A16")
@pytest.mark.parametrize("newer", [0, 110])
@pytest.mark.parametrize(("ended", "later"), [("cancelled", "complete"), ("failed", "paid")])
async def test_an_ended_order_that_goes_on_is_recorded_as_an_anomaly(
    scene: Scene, newer: int, ended: str, later: str
) -> None:
    order = scene.order(ended)
    scene.lune.clock.advance(10 * 86_400)
    for _ in range(newer):
        scene.order("cancelled", tonnes="1")
    await scene.drain()
    scene.lune.move_order(order.id, later)
    async with instant_harvest(scene) as harvest:
        harvest.later(INTERVAL)
        swept = await harvest.sweep()
    assert swept.anomalies == (0 if newer else 1)  # the daemon reads the newest page ...
    assert (await scene.drain()).swept.anomalies == 1  # ... a drain all of them
    found = await detail(scene, order.id)
    assert found.order.status == ended
    assert [(one.kind, one.served) for one in found.anomalies] == [("after_the_end", later)]
    assert found.order.next_check_at is not None
    assert [(one.before, one.after) for one in found.transitions] == [(None, ended)]


@fault("A27")
async def test_a_server_that_lives_in_the_future_plans_nothing(scene: Scene) -> None:
    async def ahead(exchange: Exchange) -> None:
        head, _, body = (await exchange.upstream()).partition(b"\r\n\r\n")
        head = re.sub(rb"(?m)^Date: .*\r$", b"Date: Fri, 01 Jan 2100 00:00:00 GMT\r", head)
        page = json.loads(body)
        for row in page["data"]:
            row["created_at"] = "2099-12-31T23:59:59.999Z"
        body = json.dumps(page).encode()
        head = re.sub(rb"(?i)content-length: \d+", b"Content-Length: %d" % len(body), head)
        await exchange.say(head + b"\r\n\r\n" + body)

    complete, followed = scene.order("complete"), scene.order("placed")
    scene.proxy.script(ahead, "orders", times=math.inf)
    assert (await scene.drain()).unfinished == []
    row = (await detail(scene, followed.id)).order
    now = datetime.now(UTC)
    assert row.created_at.year == 2099
    assert row.first_seen_at <= now
    assert row.next_check_at is not None
    assert row.next_check_at < now + timedelta(hours=6)
    [name] = scene.home.files()
    assert complete.id in name
