"""A ledger that takes nothing, a flood, a crash, webhooks that never come: nothing is lost."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from collections import Counter
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from harvester.context import Limits, utc_now
from harvester.ledger.accounts import postpone_sweep
from harvester.runtime.drain import Drain
from harvester.sandbox import Sandbox, SandboxOptions
from harvester.web.lune_webhook import MOST_AT_ONCE
from tests.acceptance.harness import Home, Running, until
from tests.faults.catalogue import fault
from tests.faults.disks import fill, query, small_disk
from tests.faults.proxy import Proxy
from tests.faults.scene import Scene
from tests.faults.webhook_client import PATH, SECRET, body_of, event, header, webhook_client

COUNT = "SELECT count(*) FROM webhook_events"


@fault("W11")
async def test_a_busy_ledger_is_said_to_be_busy_and_keeps_nothing_by_halves(scene: Scene) -> None:
    order = scene.order("paid")
    async with webhook_client(scene, limits=Limits(webhook_write=0.2)) as client:
        with closing(sqlite3.connect(scene.home.ledger, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            status, body = await client.ask(body_of(event(order.id)))
            assert status == 503
            assert b"takes nothing just now" in body
            other.execute("ROLLBACK")
        await client.send_until_accepted(event(order.id, number=2))
        await client.app.sweep.follow_hints()
    assert Limits().webhook_write < 5


@fault("W11")
async def test_a_full_disk_is_503_and_the_redelivery_is_accepted(tmp_path: Path) -> None:
    disk = tmp_path / "data"
    options = SandboxOptions(orders=0, client_accounts=0, speed=0, rate_limit=0)
    with small_disk(disk, "size=2m"):
        async with Sandbox(options) as lune, Proxy(lune.base_url, lune.accounts[0].id) as proxy:
            scene = Scene(Home(tmp_path, lune, lune__base_url=proxy.base_url), lune, proxy)
            order = scene.order("paid")
            async with webhook_client(scene) as client:
                large = event(order.id, data={"order": {"id": order.id, "note": "é" * 100_000}})
                ballast = fill(disk)
                assert await client.send(large) == 503
                assert query(scene, COUNT) == [(0,)]
                ballast.unlink()
                await client.send_until_accepted(large)
                assert query(scene, COUNT) == [(1,)]


@fault("W19")
async def test_more_than_fit_are_sent_away_at_once(scene: Scene) -> None:
    async with webhook_client(scene, limits=Limits(webhook_write=2.0)) as client:
        with closing(sqlite3.connect(scene.home.ledger, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            one = event("order1")
            body = body_of(one)
            waiting = {asyncio.create_task(client.post(body)) for _ in range(MOST_AT_ONCE + 30)}
            sent_away: set[asyncio.Task[int]] = set()
            while len(sent_away) < 30:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                sent_away |= done
            assert len(waiting) == MOST_AT_ONCE, "only those that did not fit"
            answers = Counter(await asyncio.gather(*sent_away, *waiting))
            other.execute("ROLLBACK")
        assert answers == {503: MOST_AT_ONCE + 30}
        assert client.webhooks.outcomes["busy"] == MOST_AT_ONCE + 30
        await client.send_until_accepted(one)


@fault("W19")
async def test_a_flood_of_webhooks_does_not_keep_the_harvest_from_working(scene: Scene) -> None:
    orders = [scene.order("complete") for _ in range(20)]
    async with webhook_client(scene) as client:
        for one in orders:
            assert await client.status(one.id) == "complete"
        more = [scene.order("complete") for _ in range(20)]
        over = asyncio.Event()
        answers: Counter[int] = Counter()

        async def flood(number: int) -> None:
            while not over.is_set():
                one = event(more[0].id, number=number, account_id=client.account_id)
                answers[await client.post(body_of(one | {"event_id": f"e{answers.total()}"}))] += 1

        senders = [asyncio.create_task(flood(number)) for number in range(4)]
        try:
            async with asyncio.timeout(60):
                await until(lambda: answers[200] > 20)
                report = await Drain(client.app).run()
        finally:
            over.set()
            await asyncio.gather(*senders)
        assert set(answers) <= {200, 503}
        assert not report.missing
        assert report.collected.stored == 20


@fault("W18")
async def test_without_webhooks_checks_alone_find_everything(scene: Scene) -> None:
    scene.lune.faults.add("lost-events")
    order = scene.order("paid")
    async with webhook_client(scene) as client:
        scene.lune.move_order(order.id, "complete")
        report = await Drain(client.app).run()
        assert report.collected.stored == 1
        assert await client.rows(COUNT) == [(0,)]


@fault("W18")
async def test_sweeps_are_rarer_while_webhooks_work_and_come_back_when_one_is_missed(
    scene: Scene,
) -> None:
    order, quiet = scene.order("paid"), scene.order("paid")
    interval = timedelta(minutes=15)
    async with webhook_client(scene) as client:
        account = client.account_id

        async def next_sweep() -> timedelta:
            await postpone_sweep(client.app.database, account, utc_now())
            accounts = await client.app.accounts.accounts()
            await client.app.sweep.run_once(accounts)
            ((at, due),) = await client.rows(
                f"SELECT last_sweep_at, next_sweep_at FROM accounts WHERE id = '{account}'"
            )
            return timedelta(microseconds=due - at)

        assert await next_sweep() == interval
        scene.lune.move_order(order.id, "retiring")
        assert await client.send(event(order.id, "retiring")) == 200
        await client.app.sweep.follow_hints()
        assert await next_sweep() == 4 * interval
        scene.lune.move_order(quiet.id, "retiring")  # and no webhook says so
        assert await next_sweep() == interval


def with_webhooks(scene: Scene) -> Path:
    """Configure a daemon that takes webhooks and hardly sweeps; return the secret's file."""
    secret = scene.home.folder / "webhook_secret"
    secret.write_text(f"{SECRET}\n")
    secret.chmod(0o600)
    scene.secret_files.add(secret.name)
    scene.home.configure(
        http__listen="127.0.0.1:0",
        webhook__secret_file=str(secret),
        harvest__sweep_interval="6h",
    )
    return secret


def address(running: Running) -> str:
    return f"http://{running.events('listening')[0]['address']}{PATH}"


async def settled(running: Running) -> str:
    """Return where webhooks go once the first sweep is over, so that nothing is under way."""
    await until(lambda: running.events("sweep finished"))
    return address(running)


async def post(url: str, body: bytes) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=body, headers={"Lune-HMAC": header(body)}) as answer,
    ):
        return answer.status


async def end_after_redelivery(scene: Scene, body: bytes) -> None:
    """Start anew, have the webhook once more, and see the order through."""
    async with scene.home.daemon() as running:
        assert await post(address(running), body) == 200
        await until(scene.home.files)
        scene.keep((await running.end()).err)
    scene.clean_end = True
    assert query(scene, COUNT) == [(1,)]
    moves = "SELECT to_status FROM history ORDER BY seq"
    assert query(scene, moves) == [("paid",), ("complete",)]


@fault("W10")
async def test_a_crash_before_the_commit_was_never_acknowledged(scene: Scene) -> None:
    order = scene.order("paid")
    with_webhooks(scene)
    body = body_of(event(order.id, account_id=scene.lune.accounts[0].id))
    async with scene.home.daemon() as running:
        url = await settled(running)
        with closing(sqlite3.connect(scene.home.ledger, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # the event has to wait for its commit
            posting = asyncio.create_task(post(url, body))
            await asyncio.sleep(0.5)
            assert not posting.done()
            scene.keep((await running.end(signal.SIGKILL)).err)
            with pytest.raises(aiohttp.ClientError):
                await posting
    assert query(scene, COUNT) == [(0,)]
    scene.lune.move_order(order.id, "complete")
    await end_after_redelivery(scene, body)


@fault("W9")
async def test_a_crash_after_the_commit_is_healed_by_the_redelivery(scene: Scene) -> None:
    order = scene.order("paid")
    with_webhooks(scene)
    body = body_of(event(order.id, account_id=scene.lune.accounts[0].id))
    async with scene.home.daemon() as running:
        url = await settled(running)
        posting = asyncio.create_task(post(url, body))
        await until(lambda: query(scene, COUNT) == [(1,)])
        scene.keep((await running.end(signal.SIGKILL)).err)
        await asyncio.gather(posting, return_exceptions=True)  # answered or not, it comes again
    scene.lune.move_order(order.id, "complete")
    await end_after_redelivery(scene, body)


@fault("W16")
async def test_a_secret_is_rotated_under_a_running_daemon(scene: Scene) -> None:
    order = scene.order("paid")
    file = with_webhooks(scene)
    async with scene.home.daemon() as running:
        url = await settled(running)
        made = (await scene.command("webhooks", "register", url, "--json")).document()
        scene.secrets += file.read_text().split()
        scene.lune.move_order(order.id, "retiring")
        await until(lambda: running.events("order moved")[-1]["after"] == "retiring")
        assert (await scene.command("webhooks", "rotate", made["id"])).code == 0
        scene.secrets += file.read_text().split()
        newest, before = file.read_text().split()
        assert newest != before
        scene.lune.move_order(order.id, "complete")
        await until(lambda: running.events("certificate stored"))
        scene.keep((await running.end()).err)
    moved: list[Any] = running.events("order moved")
    assert [one["source"] for one in moved] == ["sweep", "webhook", "webhook"]
