"""Delivering events: at least once, in order for each order, whatever becomes of a receiver."""

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

from harvester.context import Context
from harvester.domain.deliveries import DeliveryFailure
from harvester.domain.events import Event, EventFilter
from harvester.events import dispatch
from harvester.events.dispatch import Dispatcher
from harvester.ledger import migrate
from harvester.ledger.accounts import park_account, record_accounts
from harvester.ledger.database import Database
from harvester.ledger.outbox import list_events
from tests.contract.ledger_cases import ACCOUNT, CLIENT, NOW, SCHEDULE, order
from tests.integration.dispatch_scene import Scene
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
        await sender.close()
    await one.database.close()


def statuses(receiver: Receiver) -> dict[str, list[str]]:
    """Return the statuses delivered of each order, repetitions one after the other once."""
    found: dict[str, list[str]] = {}
    for event in receiver.accepted:
        found.setdefault(event["subject"], []).append(event["data"]["status"])
    return {one: [status for status, _ in groupby(all_)] for one, all_ in found.items()}


async def test_every_event_is_sent_once_and_in_order(scene: Scene) -> None:
    async with receiving() as billing:
        dispatcher = await scene.dispatcher(await scene.way_to(billing))
        ids = [f"o{number}" for number in range(30)]
        for status in STATUSES:
            await scene.move(status, *ids)
        report = await dispatcher.run_once()
        assert (report.delivered, report.failed) == (150, 0)
        assert statuses(billing) == {one: list(STATUSES) for one in ids}
        assert len({event["id"] for event in billing.accepted}) == 150
        assert billing.most_at_once <= 4
        assert (await dispatcher.run_once()).delivered == 0
        assert len(billing.sent) == 150
    assert await scene.undelivered() == []


async def test_a_receiver_that_fails_for_an_hour_loses_nothing_and_sees_each_order_in_order(
    scene: Scene,
) -> None:
    ids = [f"o{number}" for number in range(12)]
    begin = scene.clock.now
    async with receiving() as billing:
        billing.judge = lambda _: 503 if scene.clock.now < begin + HOUR else 204
        dispatcher = await scene.dispatcher(await scene.way_to(billing))
        for minute in range(150):
            if minute % 10 == 0 and minute // 10 < len(STATUSES):
                await scene.move(STATUSES[minute // 10], *ids)
            await dispatcher.run_once()
            if minute == 59:
                asked = len(billing.sent)
                assert billing.accepted == []
            scene.clock.now += MINUTE
        assert statuses(billing) == {one: list(STATUSES) for one in ids}
        assert len(billing.accepted) == len(ids) * len(STATUSES)
        assert asked < 40  # a dead receiver is not asked 60 times over
    assert await scene.undelivered() == []


async def test_a_receiver_that_accepts_again_gets_at_once_what_it_missed(scene: Scene) -> None:
    async with receiving() as billing:
        billing.judge = lambda _: 503
        dispatcher = await scene.dispatcher(await scene.way_to(billing))
        await scene.move("placed", *(f"o{number}" for number in range(4)))
        for _ in range(200):  # until each has been tried often, and is due again in hours
            await dispatcher.run_once()
            scene.clock.now += 5 * MINUTE
        billing.judge = lambda _: 204
        await scene.move("placed", "new")
        scene.clock.now += 20 * MINUTE
        await dispatcher.run_once()
        assert len(billing.accepted) == 5


async def test_one_bad_event_holds_up_its_own_order_only(scene: Scene) -> None:
    async with receiving() as billing:
        bad = {"o1": True}
        billing.judge = lambda event: 500 if bad.get(event["subject"]) else 200
        dispatcher = await scene.dispatcher(await scene.way_to(billing))
        for status in STATUSES:
            await scene.move(status, "o1", "o2", "o3")
            if status == "received":
                continue  # so that the first batch holds two events of each order
            await dispatcher.run_once()
            scene.clock.now += HOUR
        assert statuses(billing) == {"o2": list(STATUSES), "o3": list(STATUSES)}
        assert {one.event["data"]["status"] for one in billing.sent if not one.accepted} == {
            "received"
        }
        bad.clear()
        scene.clock.now += 8 * HOUR
        await dispatcher.run_once()
        assert statuses(billing)["o1"] == list(STATUSES)


async def test_rejected_events_do_not_stand_before_those_that_are_accepted(
    scene: Scene,
) -> None:
    async with receiving() as billing:
        billing.judge = lambda event: 500 if event["subject"].startswith("bad") else 200
        dispatcher = await scene.dispatcher(await scene.way_to(billing))
        await scene.move("placed", *(f"bad{number}" for number in range(5)))
        for _ in range(30):
            await dispatcher.run_once()
            scene.clock.now += 10 * MINUTE
        await scene.move("placed", "good")
        scene.clock.now += 20 * MINUTE
        await dispatcher.run_once()
        assert statuses(billing) == {"good": ["placed"]}


async def test_a_receiver_that_rejects_many_events_is_well(scene: Scene) -> None:
    async with receiving() as billing:
        billing.judge = lambda event: 422 if event["subject"].startswith("bad") else 200
        dispatcher = await scene.dispatcher(await scene.way_to(billing))
        await scene.move("placed", *(f"bad{number}" for number in range(60)), "good")
        await dispatcher.run_once()
        assert statuses(billing) == {"good": ["placed"]}
        assert len(billing.sent) == 61


async def test_a_dead_receiver_delays_no_healthy_one(scene: Scene) -> None:
    async with receiving() as healthy, receiving() as dead:
        dead.hold.clear()
        dispatcher = await scene.dispatcher(
            await scene.way_to(dead, "dead", timeout=30), await scene.way_to(healthy, "healthy")
        )
        await scene.move("placed", *(f"o{number}" for number in range(20)))
        delivering = asyncio.create_task(dispatcher.run_once())
        async with asyncio.timeout(15):
            while len(healthy.accepted) < 20:  # noqa: ASYNC110 - nothing tells what it accepted
                await asyncio.sleep(0.02)
        assert not delivering.done()
        assert dead.sent == []
        assert dead.most_at_once == 4
        scene.stop.request()
        dead.hold.set()
        await delivering


async def test_a_receiver_that_hangs_is_given_up_after_a_few_attempts(scene: Scene) -> None:
    async with receiving() as dead:
        dead.hold.clear()
        dispatcher = await scene.dispatcher(await scene.way_to(dead, timeout=0.2))
        await scene.move("placed", *(f"o{number}" for number in range(500)))
        async with asyncio.timeout(10):
            report = await dispatcher.run_once()
        assert report.delivered == 0
        assert report.failed <= 6  # the last ones were on their way
    assert len(await scene.undelivered()) == 500


async def test_what_was_sent_and_not_recorded_is_sent_again_under_the_same_id(
    scene: Scene, tmp_path: Path
) -> None:
    async with receiving() as billing:
        way = await scene.way_to(billing)
        dispatcher = await scene.dispatcher(way)
        await scene.move("placed", "o1", "o2")
        # What a power cut between the answer and the commit leaves: the ledger as it was before.
        before = tmp_path / "before.db"
        await asyncio.to_thread(migrate.backup, scene.database.path, before)
        await dispatcher.run_once()
        after = Database(shutil.copyfile(before, tmp_path / "after.db"))
        again = Dispatcher(after, [way], Context(SCHEDULE, scene.stop, scene.clock))
        await again.register()
        await again.run_once()
        await after.close()
    ids = [one.headers["webhook-id"] for one in billing.sent]
    assert sorted(ids[:2]) == sorted(ids[2:])
    assert {event["id"] for event in billing.accepted} == set(ids)


async def test_a_cancelled_round_records_what_was_delivered(scene: Scene) -> None:
    async with receiving() as billing:
        held = asyncio.Event()

        def judge(event: dict[str, Any]) -> int:
            if len(billing.sent) == 5:
                billing.hold.clear()
                held.set()
            return 200

        billing.judge = judge
        dispatcher = await scene.dispatcher(replace(await scene.way_to(billing), width=1))
        await scene.move("placed", *(f"o{number}" for number in range(9)))
        delivering = asyncio.create_task(dispatcher.deliver("billing"))
        await held.wait()
        while len(billing.sent) < 6 or not billing.at_once:  # noqa: ASYNC110 - nothing tells what was sent
            await asyncio.sleep(0.01)
        delivering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await delivering
        assert len(await scene.undelivered()) == 3
        billing.hold.set()
        await dispatcher.run_once()
        assert sorted({event["subject"] for event in billing.accepted}) == [
            f"o{n}" for n in range(9)
        ]


async def test_gone_parks_the_receiver_until_a_person_resends(scene: Scene) -> None:
    async with receiving() as billing:
        billing.judge = lambda _: 410
        dispatcher = await scene.dispatcher(await scene.way_to(billing))
        await scene.move("placed", "o1")
        with structlog.testing.capture_logs() as lines:
            await dispatcher.run_once()
        assert [line["receiver"] for line in lines if line["event"] == "receiver parked"]
        await scene.move("paid", "o1")
        scene.clock.now += 2 * DAY
        await dispatcher.run_once()
        assert len(billing.sent) == 1
        assert await scene.undelivered() == [1, 2]
        billing.judge = lambda _: 200
        assert await dispatcher.resend([], "billing") == [(1, "billing"), (2, "billing")]
        await dispatcher.run_once()
        assert statuses(billing) == {"o1": ["placed", "paid"]}


async def test_a_receiver_gets_only_what_it_wants(scene: Scene) -> None:
    async with receiving() as billing:
        wanted = EventFilter(frozenset({"order.status_changed"}), frozenset({"client"}))
        dispatcher = await scene.dispatcher(await scene.way_to(billing, wanted=wanted))
        await scene.move("placed", "o1")
        await scene.kept.see(order("c1"), account=CLIENT)
        await park_account(scene.kept.database, "client", "suspended", NOW, NOW)
        await dispatcher.run_once()
        assert [event["subject"] for event in billing.accepted] == ["c1"]
    rows = list_events(scene.database)
    assert [event.seq async for event, undelivered in rows if undelivered] == []


async def test_an_event_is_sent_for_days_and_never_given_up(scene: Scene) -> None:
    async with receiving() as billing:
        billing.judge = lambda _: 500
        dispatcher = await scene.dispatcher(await scene.way_to(billing))
        await scene.move("placed", "o1")
        attempts: list[datetime] = []
        while scene.clock.now < NOW + 14 * DAY:
            await dispatcher.run_once()
            attempts.append(scene.clock.now)
            assert len(billing.sent) == len(attempts)
            scene.clock.now = await scene.next_attempt() - SECOND
            await dispatcher.run_once()  # too early
            scene.clock.now += SECOND
        gaps = [later - sooner for sooner, later in pairwise(attempts)]
        assert gaps == sorted(gaps)
        assert gaps[0] <= 10 * SECOND
        assert gaps[-1] == DAY
        early = [one for one in attempts if one < NOW + 3 * DAY]
        assert 15 <= len(early) <= 30
        assert len(attempts) - len(early) in range(9, 13)
    assert await scene.undelivered() == [1]


async def test_a_fault_of_ours_with_one_event_keeps_no_other_from_delivery(scene: Scene) -> None:
    accepted: list[str | None] = []

    class Clumsy:
        async def send(self, event: Event) -> DeliveryFailure | None:
            if event.order_id == "o1":
                raise RuntimeError("a secret of ours")
            accepted.append(event.order_id)
            return None

        async def close(self) -> None:
            return None

    dispatcher = await scene.dispatcher(dispatch.Receiver("clumsy", EventFilter(), Clumsy()))
    await scene.move("placed", "o1", "o2")
    await dispatcher.run_once()
    assert accepted == ["o2"]
    rows = list_events(scene.database)
    found = [undelivered async for _, undelivered in rows]
    assert found[0][0].failure == "a fault of the harvester: RuntimeError"


async def test_nothing_begins_after_a_stop(scene: Scene) -> None:
    async with receiving() as billing:
        dispatcher = await scene.dispatcher(await scene.way_to(billing))
        await scene.move("placed", "o1")
        scene.stop.request()
        assert (await dispatcher.run_once()).delivered == 0
        assert billing.sent == []


async def test_what_is_dropped_for_its_age_is_said(scene: Scene) -> None:
    async with receiving() as billing:
        billing.judge = lambda _: 500
        dispatcher = await scene.dispatcher(await scene.way_to(billing))
        await scene.move("placed", "o1")
        await dispatcher.run_once()
        scene.clock.now += 31 * DAY
        with structlog.testing.capture_logs() as lines:
            await dispatcher.prune()
        (line,) = lines
        assert (line["event"], line["undelivered"]) == ("events dropped", 1)
