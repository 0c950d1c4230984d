"""The feed of events: numbered, waited for, and honest about what is kept no more."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from harvester.context import utc_now
from harvester.ledger.outbox import KEPT_WHEN_DELIVERED, prune_events
from harvester.sandbox import Sandbox
from tests.integration.web_service import Service, serving


@pytest.fixture
async def service(sandbox: Sandbox, tmp_path: Path) -> AsyncIterator[Service]:
    sandbox.create_order("complete", hold=True, idempotency_key="INV-1")
    async with serving(sandbox, tmp_path) as one:
        await one.stored(1)
        yield one


def subjects(answer: Any) -> list[str]:
    return [f"{event['type']} {event['subject']}" for event in answer["changes"]]


async def test_a_reader_goes_on_where_it_was(sandbox: Sandbox, service: Service) -> None:
    first = await service.json("/v1/changes")
    (order,) = (await service.json("/v1/orders"))["orders"]
    assert subjects(first) == [
        f"order.status_changed {order['id']}",
        f"certificate.stored {order['id']}",
    ]
    assert first["next"] == 2
    assert first["changes"][1]["data"]["idempotency_key"] == "INV-1"
    assert first["changes"][1]["data"]["sha256"] == order["certificate"]["sha256"]
    assert await service.json("/v1/changes?after=2") == {"changes": [], "next": 2}

    later = sandbox.create_order("paid", hold=True)
    second = await service.json("/v1/changes?after=2&wait=20")
    assert subjects(second) == [f"order.status_changed {later.id}"]
    assert second["next"] == 3


async def test_a_page_ends_at_its_limit_and_none_is_left_out(service: Service) -> None:
    whole = (await service.json("/v1/changes"))["changes"]
    read, after = [], 0
    while page := (await service.json(f"/v1/changes?after={after}&limit=1"))["changes"]:
        read += page
        after = int(page[-1]["sequence"])
    assert read == whole


async def test_who_waits_is_answered_when_something_happens(
    sandbox: Sandbox, service: Service
) -> None:
    waiting = asyncio.create_task(service.json("/v1/changes?after=2&wait=30"))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    order = sandbox.create_order("paid", hold=True)
    async with asyncio.timeout(15):
        assert subjects(await waiting) == [f"order.status_changed {order.id}"]


async def test_who_waits_in_vain_is_answered_when_the_wait_is_over(service: Service) -> None:
    began = time.monotonic()
    assert await service.json("/v1/changes?after=2&wait=1") == {"changes": [], "next": 2}
    assert time.monotonic() - began >= 0.9


async def test_many_who_wait_leave_room_for_others(sandbox: Sandbox, service: Service) -> None:
    asked = [asyncio.create_task(service.json("/v1/changes?after=2&wait=60")) for _ in range(40)]
    turned_away: set[asyncio.Task[Any]] = set()
    waiting = set(asked)
    async with asyncio.timeout(45):
        while len(turned_away) < 8:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            turned_away |= done
        assert all(one.result() == {"changes": [], "next": 2} for one in turned_away)
        sandbox.create_order("paid", hold=True)
        answers = await asyncio.gather(*waiting)
    assert len(answers) == 32
    assert all(answer["next"] == 3 for answer in answers)


@pytest.mark.parametrize("after", [1, 3, 2**53 - 1])
async def test_a_number_that_is_kept_no_more_or_never_was_is_gone(
    service: Service, after: int
) -> None:
    await prune_events(service.app.database, utc_now() + KEPT_WHEN_DELIVERED * 1.1)
    status, headers, body = await service.get(f"/v1/changes?after={after}")
    assert status == 410
    assert headers["Content-Type"] == "application/problem+json"
    assert json.loads(body)["oldest"] == 2
    assert await service.json("/v1/changes") == {"changes": [], "next": 2}
    assert await service.json("/v1/changes?after=2") == {"changes": [], "next": 2}


@pytest.mark.parametrize(
    "query", ["after=-1", "after=x", "after=", "wait=61", "wait=1.5", "limit=0", "limit=501", "a=1"]
)
async def test_a_wrong_parameter_is_refused(service: Service, query: str) -> None:
    status, _, _ = await service.get(f"/v1/changes?{query}")
    assert status == 400


async def test_the_feed_is_for_those_with_the_token(service: Service) -> None:
    status, _, _ = await service.get("/v1/changes", headers={})
    assert status == 401
