"""Announcing: at least once, in order for each order, whatever becomes of a receiver."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest
import structlog

from harvester.domain import deliveries as announcing
from harvester.domain.deliveries import DeliveryFailure
from harvester.domain.events import Event, EventFilter
from harvester.events.dispatch import Dispatcher
from harvester.ledger import migrate
from harvester.ledger.accounts import park_account, record_accounts
from harvester.ledger.database import Database
from harvester.ledger.outbox import SqlOutbox, list_events
from tests.contract.ledger_cases import ACCOUNT, CLIENT, NOW, order
from tests.integration.announce_scene import Scene
from tests.integration.receiver import Receiver, receiving

STATUSES = ("received", "placed", "paid", "retiring", "complete")
SECOND, MINUTE, HOUR, DAY = (
    timedelta(**{unit: 1}) for unit in ("seconds", "minutes", "hours", "days")
)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    one = Scene(tmp_path)
    await record_accounts(one.kept.database, [ACCOUNT, CLIENT], NOW)
    yield one
    for sender in one.senders:
        await sender.__aexit__(None, None, None)
    await one.database.close()


def statuses(receiver: Receiver) -> dict[str, list[str]]:
    """Return the statuses each order was told in, repetitions one after the other once."""
    found: dict[str, list[str]] = {}
    for event in receiver.taken:
        found.setdefault(event["subject"], []).append(event["data"]["status"])
    return {one: [status for status, _ in groupby(told)] for one, told in found.items()}


async def test_every_event_is_sent_once_and_in_order(scene: Scene) -> None:
    async with receiving() as billing:
        announcer = await scene.announcer(await scene.way_to(billing))
        ids = [f"o{number}" for number in range(30)]
        for status in STATUSES:
            await scene.move(status, *ids)
        report = await announcer.run_once()
        assert (report.taken, report.failed) == (150, 0)
        assert statuses(billing) == {one: list(STATUSES) for one in ids}
        assert len({event["id"] for event in billing.taken}) == 150
        assert billing.most_at_once <= 4
        assert (await announcer.run_once()).taken == 0
        assert len(billing.sent) == 150
    assert await scene.lacking() == []


async def test_a_receiver_that_fails_for_an_hour_loses_nothing_and_sees_each_order_in_order(
    scene: Scene,
) -> None:
    ids = [f"o{number}" for number in range(12)]
    begin = scene.clock.now
    async with receiving() as billing:
        billing.judge = lambda _: 503 if scene.clock.now < begin + HOUR else 204
        announcer = await scene.announcer(await scene.way_to(billing))
        for minute in range(150):
            if minute % 10 == 0 and minute // 10 < len(STATUSES):
                await scene.move(STATUSES[minute // 10], *ids)
            await announcer.run_once()
            if minute == 59:
                asked = len(billing.sent)
                assert billing.taken == []
            scene.clock.now += MINUTE
        assert statuses(billing) == {one: list(STATUSES) for one in ids}
        assert len(billing.taken) == len(ids) * len(STATUSES)
        assert asked < 40  # a dead receiver is not asked 60 times over
    assert await scene.lacking() == []


async def test_a_receiver_that_takes_again_is_told_at_once_what_it_missed(scene: Scene) -> None:
    async with receiving() as billing:
        billing.judge = lambda _: 503
        announcer = await scene.announcer(await scene.way_to(billing))
        await scene.move("placed", *(f"o{number}" for number in range(4)))
        for _ in range(200):  # until each has been tried often, and is due again in hours
            await announcer.run_once()
            scene.clock.now += 5 * MINUTE
        billing.judge = lambda _: 204
        await scene.move("placed", "new")
        scene.clock.now += 20 * MINUTE
        await announcer.run_once()
        assert len(billing.taken) == 5


async def test_one_bad_event_holds_up_its_own_order_only(scene: Scene) -> None:
    async with receiving() as billing:
        bad = {"o1": True}
        billing.judge = lambda event: 500 if bad.get(event["subject"]) else 200
        announcer = await scene.announcer(await scene.way_to(billing))
        for status in STATUSES:
            await scene.move(status, "o1", "o2", "o3")
            if status == "received":
                continue  # so that the first batch holds two events of each order
            await announcer.run_once()
            scene.clock.now += HOUR
        assert statuses(billing) == {"o2": list(STATUSES), "o3": list(STATUSES)}
        assert {one.event["data"]["status"] for one in billing.sent if not one.taken} == {
            "received"
        }
        bad.clear()
        scene.clock.now += 8 * HOUR
        await announcer.run_once()
        assert statuses(billing)["o1"] == list(STATUSES)


async def test_events_nobody_takes_do_not_stand_before_those_that_are_taken(scene: Scene) -> None:
    async with receiving() as billing:
        billing.judge = lambda event: 500 if event["subject"].startswith("bad") else 200
        announcer = await scene.announcer(await scene.way_to(billing))
        await scene.move("placed", *(f"bad{number}" for number in range(5)))
        for _ in range(30):
            await announcer.run_once()
            scene.clock.now += 10 * MINUTE
        await scene.move("placed", "good")
        scene.clock.now += 20 * MINUTE
        await announcer.run_once()
        assert statuses(billing) == {"good": ["placed"]}


async def test_a_receiver_that_dislikes_many_events_is_well(scene: Scene) -> None:
    async with receiving() as billing:
        billing.judge = lambda event: 422 if event["subject"].startswith("bad") else 200
        announcer = await scene.announcer(await scene.way_to(billing))
        await scene.move("placed", *(f"bad{number}" for number in range(60)), "good")
        await announcer.run_once()
        assert statuses(billing) == {"good": ["placed"]}
        assert len(billing.sent) == 61


async def test_a_dead_receiver_delays_no_healthy_one(scene: Scene) -> None:
    async with receiving() as healthy, receiving() as dead:
        dead.hold.clear()
        announcer = await scene.announcer(
            await scene.way_to(dead, "dead", deadline=30), await scene.way_to(healthy, "healthy")
        )
        await scene.move("placed", *(f"o{number}" for number in range(20)))
        telling = asyncio.create_task(announcer.run_once())
        async with asyncio.timeout(15):
            while len(healthy.taken) < 20:  # noqa: ASYNC110 - nothing tells what it took
                await asyncio.sleep(0.02)
        assert not telling.done()
        assert dead.sent == []
        assert dead.most_at_once == 4
        scene.stop.request()
        dead.hold.set()
        await telling


async def test_a_receiver_that_hangs_is_given_up_after_a_few_attempts(scene: Scene) -> None:
    async with receiving() as dead:
        dead.hold.clear()
        announcer = await scene.announcer(await scene.way_to(dead, deadline=0.2))
        await scene.move("placed", *(f"o{number}" for number in range(500)))
        async with asyncio.timeout(10):
            report = await announcer.run_once()
        assert report.taken == 0
        assert report.failed <= 6  # the last ones were on their way
    assert len(await scene.lacking()) == 500


async def test_what_was_sent_and_not_recorded_is_sent_again_under_the_same_id(
    scene: Scene, tmp_path: Path
) -> None:
    async with receiving() as billing:
        way = await scene.way_to(billing)
        announcer = await scene.announcer(way)
        await scene.move("placed", "o1", "o2")
        # What a power cut between the answer and the commit leaves: the ledger as it was before.
        before = tmp_path / "before.db"
        await asyncio.to_thread(migrate.backup, scene.database.path, before)
        await announcer.run_once()
        after = Database(shutil.copyfile(before, tmp_path / "after.db"))
        again = Dispatcher(SqlOutbox(after), [way], clock=scene.clock, stop=scene.stop)
        await again.begin()
        await again.run_once()
        await after.close()
    told = [one.headers["webhook-id"] for one in billing.sent]
    assert sorted(told[:2]) == sorted(told[2:])
    assert {event["id"] for event in billing.taken} == set(told)


async def test_a_cancelled_round_records_what_was_taken(scene: Scene) -> None:
    async with receiving() as billing:
        held = asyncio.Event()

        def judge(event: dict[str, Any]) -> int:
            if len(billing.sent) == 5:
                billing.hold.clear()
                held.set()
            return 200

        billing.judge = judge
        announcer = await scene.announcer(replace(await scene.way_to(billing), width=1))
        await scene.move("placed", *(f"o{number}" for number in range(9)))
        telling = asyncio.create_task(announcer.announce("billing"))
        await held.wait()
        while len(billing.sent) < 6 or not billing.at_once:  # noqa: ASYNC110 - nothing tells what was sent
            await asyncio.sleep(0.01)
        telling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await telling
        assert len(await scene.lacking()) == 3
        billing.hold.set()
        await announcer.run_once()
        assert sorted({event["subject"] for event in billing.taken}) == [f"o{n}" for n in range(9)]


async def test_gone_parks_the_receiver_until_a_person_resends(scene: Scene) -> None:
    async with receiving() as billing:
        billing.judge = lambda _: 410
        announcer = await scene.announcer(await scene.way_to(billing))
        await scene.move("placed", "o1")
        with structlog.testing.capture_logs() as lines:
            await announcer.run_once()
        assert [line["receiver"] for line in lines if line["event"] == "receiver parked"]
        await scene.move("paid", "o1")
        scene.clock.now += 2 * DAY
        await announcer.run_once()
        assert len(billing.sent) == 1
        assert await scene.lacking() == [1, 2]
        billing.judge = lambda _: 200
        assert await announcer.resend([], "billing", scene.clock.now) == [(1, "billing")]
        await announcer.run_once()
        assert statuses(billing) == {"o1": ["placed", "paid"]}


async def test_a_receiver_is_told_only_what_it_wants(scene: Scene) -> None:
    async with receiving() as billing:
        wanted = EventFilter(frozenset({"order.status_changed"}), frozenset({"client"}))
        announcer = await scene.announcer(await scene.way_to(billing, wanted=wanted))
        await scene.move("placed", "o1")
        await scene.kept.see(order("c1"), account=CLIENT)
        await park_account(scene.kept.database, "client", "suspended", NOW, NOW)
        await announcer.run_once()
        assert [event["subject"] for event in billing.taken] == ["c1"]
    rows = list_events(scene.database, 0, {"billing": wanted})
    assert [event.seq async for event, lacking in rows if lacking] == []


async def test_an_event_is_tried_for_days_and_never_given_up(scene: Scene) -> None:
    async with receiving() as billing:
        billing.judge = lambda _: 500
        announcer = await scene.announcer(await scene.way_to(billing))
        await scene.move("placed", "o1")
        tries: list[datetime] = []
        while scene.clock.now < NOW + 14 * DAY:
            await announcer.run_once()
            tries.append(scene.clock.now)
            assert len(billing.sent) == len(tries)
            scene.clock.now = await scene.next_try() - SECOND
            await announcer.run_once()  # too early
            scene.clock.now += SECOND
        gaps = [later - sooner for sooner, later in pairwise(tries)]
        assert gaps == sorted(gaps)
        assert gaps[0] <= 10 * SECOND
        assert gaps[-1] == DAY
        early = [one for one in tries if one < NOW + 3 * DAY]
        assert 15 <= len(early) <= 30
        assert len(tries) - len(early) in range(9, 13)
    assert await scene.lacking() == [1]


async def test_a_fault_of_ours_with_one_event_keeps_no_other_from_being_told(scene: Scene) -> None:
    taken: list[str | None] = []

    class Clumsy:
        async def send(self, event: Event) -> DeliveryFailure | None:
            if event.order_id == "o1":
                raise RuntimeError("a secret of ours")
            taken.append(event.order_id)
            return None

    announcer = await scene.announcer(announcing.Receiver("clumsy", EventFilter(), Clumsy()))
    await scene.move("placed", "o1", "o2")
    await announcer.run_once()
    assert taken == ["o2"]
    rows = list_events(scene.database, 0, {})
    found = [lacking async for _, lacking in rows]
    assert found[0][0].failure == "a fault of the harvester: RuntimeError"


async def test_nothing_begins_after_a_stop(scene: Scene) -> None:
    async with receiving() as billing:
        announcer = await scene.announcer(await scene.way_to(billing))
        await scene.move("placed", "o1")
        scene.stop.request()
        assert (await announcer.run_once()).taken == 0
        assert billing.sent == []


async def test_what_is_dropped_for_its_age_is_said(scene: Scene) -> None:
    async with receiving() as billing:
        billing.judge = lambda _: 500
        announcer = await scene.announcer(await scene.way_to(billing))
        await scene.move("placed", "o1")
        await announcer.run_once()
        scene.clock.now += 31 * DAY
        with structlog.testing.capture_logs() as lines:
            await announcer.tidy()
        (line,) = lines
        assert (line["event"], line["undelivered"]) == ("events dropped", 1)
