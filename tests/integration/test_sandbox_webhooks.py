"""The sandbox's webhooks: set up by Lune's schema, pushed in order until they are acknowledged."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from harvester.sandbox import Sandbox


@dataclass
class Hook:
    """What was pushed: header and body of each request; ``answers`` are given first."""

    url: str = ""
    pushed: list[tuple[str, bytes]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [one for _, body in self.pushed for one in json.loads(body)["events"]]

    @property
    def types(self) -> list[str]:
        kinds = [one["event_type"] for one in self.events]
        return [kind for kind in kinds if kind.startswith("order.")]

    async def take(self, request: web.Request) -> web.Response:
        self.pushed.append((request.headers["Lune-HMAC"], await request.read()))
        return web.Response(status=self.answers.pop(0) if self.answers else 204)

    async def until(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.types) < count:  # noqa: ASYNC110 - nothing tells what came
                await asyncio.sleep(0.02)


@pytest.fixture
async def hook() -> AsyncIterator[Hook]:
    one = Hook()
    app = web.Application()
    app.add_routes([web.post("/hook", one.take)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    one.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield one
    await runner.cleanup()


@asynccontextmanager
async def asking(sandbox: Sandbox) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"Authorization": f"Bearer {sandbox.key}"}
    async with aiohttp.ClientSession(f"{sandbox.base_url}/", headers=headers) as session:
        yield session


async def register(sandbox: Sandbox, url: str, **more: Any) -> dict[str, Any]:
    async with (
        asking(sandbox) as lune,
        lune.post("webhooks", json={"url": url} | more) as answer,
    ):
        assert answer.status == 200, await answer.text()
        made: dict[str, Any] = await answer.json()
    return made


async def test_a_secret_is_shown_whole_once_and_rotated_away(sandbox: Sandbox, hook: Hook) -> None:
    made = await register(sandbox, hook.url)
    assert len(made["secret"]) == 32
    async with asking(sandbox) as lune:
        async with lune.get("webhooks") as answer:
            (listed,) = await answer.json()
        assert listed == made | {"secret": made["secret"][-4:]}
        async with lune.put(f"webhooks/{made['id']}/rotate-secret") as answer:
            rotated = await answer.json()
        assert rotated == made | {"secret": rotated["secret"]}
        assert rotated["secret"] != made["secret"]
        async with lune.delete(f"webhooks/{made['id']}") as answer:
            assert answer.status == 204
        async with lune.get(f"webhooks/{made['id']}") as answer:
            assert answer.status == 404


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"url": 5},
        {"url": "https://example.com/hook"},
        {"url": "http://127.0.0.1/", "account_ids": []},
    ],
)
async def test_what_the_schema_forbids_is_refused(sandbox: Sandbox, body: dict[str, Any]) -> None:
    async with asking(sandbox) as lune, lune.post("webhooks", json=body) as answer:
        assert answer.status == 400


async def test_each_move_is_pushed_signed_and_in_order(sandbox: Sandbox, hook: Hook) -> None:
    order = sandbox.create_order("received", hold=True)
    secret = (await register(sandbox, hook.url))["secret"]
    for status in ("placed", "paid", "retiring", "complete"):
        sandbox.move_order(order.id, status)
    await hook.until(4)
    assert hook.types == ["order.placed", "order.paid", "order.retiring", "order.completed"]
    assert [one["sequence"] for one in hook.events] == sorted(
        one["sequence"] for one in hook.events
    )
    assert hook.events[0]["data"]["order"]["status"] == "placed"
    header, body = hook.pushed[0]
    parts = dict(part.split("=", 1) for part in header.split(","))
    message = parts["timestamp"].encode() + b"." + body
    assert parts["v1"] == hmac.new(secret.encode(), message, hashlib.sha256).hexdigest()
    assert abs(int(parts["timestamp"]) - time.time()) < 60


async def test_what_is_not_acknowledged_holds_back_what_is_behind_it(
    sandbox: Sandbox, hook: Hook
) -> None:
    order = sandbox.create_order("received", hold=True)
    await register(sandbox, hook.url)
    hook.answers = [503, 500]
    sandbox.move_order(order.id, "placed")
    await hook.until(1)
    sandbox.move_order(order.id, "paid")
    await hook.until(4)
    assert hook.types[:2] == ["order.placed", "order.placed"] or hook.types[:1] == ["order.placed"]
    assert hook.types[-1] == "order.paid"


async def test_only_the_wanted_accounts_events_are_pushed(sandbox: Sandbox, hook: Hook) -> None:
    own, client = sandbox.accounts
    await register(sandbox, hook.url, account_ids=[client.id])
    sandbox.create_order("placed", account_id=own.id, hold=True)
    sandbox.create_order("paid", account_id=client.id, hold=True)
    await hook.until(1)
    assert [one["account_id"] for one in hook.events] == [client.id]


@pytest.mark.parametrize(
    ("fault", "types"),
    [
        ("disordered-events", ["order.paid", "order.placed"]),
        ("repeated-events,share=1,times=1", ["order.placed", "order.paid"] * 2),
        ("late-events=0.1", ["order.placed", "order.paid"]),
    ],
)
async def test_faults_of_events(sandbox: Sandbox, hook: Hook, fault: str, types: list[str]) -> None:
    order = sandbox.create_order("received", hold=True)
    await register(sandbox, hook.url)
    sandbox.faults.add(fault)
    sandbox.move_order(order.id, "placed")
    sandbox.move_order(order.id, "paid")
    await hook.until(len(types))
    assert hook.types == types


async def test_stale_events_are_signed_as_of_long_ago(sandbox: Sandbox, hook: Hook) -> None:
    await register(sandbox, hook.url)
    sandbox.faults.add("stale-events=1000")
    sandbox.create_order("placed", hold=True)
    await hook.until(1)
    at = int(hook.pushed[0][0].partition(",")[0].removeprefix("timestamp="))
    assert time.time() - at > 900


async def test_lost_events_never_come(sandbox: Sandbox, hook: Hook) -> None:
    await register(sandbox, hook.url)
    sandbox.faults.add("lost-events,times=1")
    sandbox.create_order("placed", hold=True)
    await asyncio.sleep(0.2)
    sandbox.create_order("paid", hold=True)
    await hook.until(1)
    assert hook.types == ["order.paid"]
