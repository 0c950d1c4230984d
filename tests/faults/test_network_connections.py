"""Connections that are refused, swallowed, lost while idle, or meant to go elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harvester.app import App
from harvester.domain.orders import Account, Order
from harvester.lune import Deadlines
from harvester.runtime.drain import Drain
from tests.acceptance.harness import events, until
from tests.faults.catalogue import fault
from tests.faults.proxy import Answer, Exchange, hang_up, silence, through
from tests.faults.scene import HASTY, Scene
from tests.faults.tcp_relay import TcpRelay, bound_socket, never_accepting, relaying

SHORT = replace(HASTY, deadlines=Deadlines(connect=0.8, read=0.8, total=5.0, certificate_total=5.0))
REAL_BACK_OFF = replace(SHORT, sleep=asyncio.sleep)
"""For a fault that takes no time by itself: all tries would be over at once."""


async def drain_until_it_listens(scene: Scene, word: str, *, nobody_accepts: bool) -> None:
    """Drain against a port that nobody answers on, and answer once the log says so."""
    relay = TcpRelay(scene.proxy.base_url)
    with closing(bound_socket()) as sock:
        scene.home.configure(lune__base_url=f"http://127.0.0.1:{sock.getsockname()[1]}/v1")
        if nobody_accepts:
            with never_accepting(sock):
                draining = asyncio.create_task(scene.drain(options=SHORT))
                await until(lambda: word in scene.log_text())
        else:
            draining = asyncio.create_task(scene.drain(options=REAL_BACK_OFF))
            await until(lambda: word in scene.log_text())
        await relay.listen(sock)
        report = await draining
        await relay.stop()
    assert report.unfinished == []
    assert report.swept.changed == 0


@fault("N1")
async def test_a_refused_connection_is_tried_again_and_moves_no_order(scene: Scene) -> None:
    scene.order("paid")
    await scene.drain()
    await drain_until_it_listens(scene, "connect: ECONNREFUSED", nobody_accepts=False)


@fault("N2")
async def test_a_connection_that_nobody_takes_is_given_up_and_tried_again(scene: Scene) -> None:
    scene.order("paid")
    await scene.drain()
    await drain_until_it_listens(scene, "timeout: no connection in time", nobody_accepts=True)


@fault("N13")
async def test_a_kept_connection_that_went_dead_is_replaced_by_a_new_one(scene: Scene) -> None:
    order = scene.order("paid")
    async with scene.open(options=SHORT) as app:
        account = await learn(app)
        scene.proxy.script(silence, "order")
        assert (await app.lune.fetch_order(account, order.id)).id == order.id
    before, lost, found = scene.proxy.requests[-3:]
    assert before.connection == lost.connection != found.connection


async def close_afterwards(exchange: Exchange) -> None:
    await through(exchange)
    exchange.writer.close()


@fault("N14")
@pytest.mark.parametrize(("answer", "asked"), [(close_afterwards, 1), (hang_up, 2)])
async def test_a_connection_closed_between_requests_costs_no_back_off(
    scene: Scene, answer: Answer, asked: int
) -> None:
    order = scene.order("paid")
    async with scene.open() as app:
        account = await learn(app)
        scene.proxy.script(answer, "order")
        for _ in range(2):
            assert (await app.lune.fetch_order(account, order.id)).id == order.id
    assert scene.proxy.count("order") == asked + 1
    again = events(scene.log_text(), "request repeated")
    assert {one["error"] for one in again} <= {"StaleConnection"}


@fault("N22")
async def test_ten_thousand_cancelled_requests_leave_the_pool_as_it_was(scene: Scene) -> None:
    scene.home.configure(lune__rate_limit=100_000)
    order = scene.order("paid")
    async with scene.open(options=HASTY) as app:
        account = await learn(app)
        scene.proxy.script(silence, "order", times=float("inf"))
        for turns in range(20):
            await cancel_five_hundred(
                scene, partial(app.lune.fetch_order, account, order.id), turns
            )
        scene.proxy.clear()
        assert (await app.lune.fetch_order(account, order.id)).id == order.id


async def cancel_five_hundred(
    scene: Scene, fetch: Callable[[], Coroutine[Any, Any, Order]], turns: int
) -> None:
    """Cancel that many requests as they queue, connect, send or, in odd rounds, wait."""
    asked = scene.proxy.count("order")
    calls = [asyncio.create_task(fetch()) for _ in range(500)]
    for _ in range(turns):
        await asyncio.sleep(0)
    if turns % 2:
        await until(lambda: scene.proxy.count("order") > asked)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


@fault("N23")
async def test_proxies_and_logins_of_the_environment_are_not_used(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.order()
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password something\n")
    netrc.chmod(0o600)
    async with relaying() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.setenv("NETRC", str(netrc))
        report = await scene.drain()
    assert report.collected.stored == 1
    assert proxy.connections == 0
    sent = {seen.headers["authorization"] for seen in scene.proxy.requests}
    assert sent == {f"Bearer {scene.lune.key}"}


async def learn(app: App) -> Account:
    """Drain, so that the order is known and a connection kept; return whose it is."""
    await Drain(app).run()
    return next(one for one in await app.accounts.accounts() if one.is_default)
