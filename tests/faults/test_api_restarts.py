"""Starting again and again, overlapping itself, another key, another version of the API."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from harvester.context import Stop
from harvester.domain.errors import ConfigurationError, KeyRefused
from harvester.ledger.accounts import recorded_modes
from harvester.runtime.service import serve
from harvester.sandbox import Sandbox, SandboxOptions
from tests.acceptance.harness import events, until
from tests.faults.catalogue import fault
from tests.faults.instant_harvest import chain, instant_harvest, statistics
from tests.faults.proxy import Exchange, changed, response, saying, through
from tests.faults.scene import Scene


@fault("A23")
@pytest.mark.parametrize("served", ["2031-01-01", None])
async def test_another_version_than_the_one_asked_for_is_logged_once(
    scene: Scene, served: str | None
) -> None:
    async def versioned(exchange: Exchange) -> None:
        answer = await exchange.upstream()
        header = b"" if served is None else f"\r\nLune-Version: {served}".encode()
        status, _, rest = answer.partition(b"\r\n")
        await exchange.say(status + header + b"\r\n" + rest)

    scene.order()
    scene.proxy.script(versioned, times=math.inf)
    assert (await scene.drain()).collected.stored == 1
    assert {seen.headers["lune-version"] for seen in scene.proxy.requests} == {"2024-08-08"}
    logged = events(scene.log_text(), "API version differs")
    assert [(one["asked"], one["served"]) for one in logged] == (
        [] if served is None else [("2024-08-08", served)]
    )


@asynccontextmanager
async def live_lune(scene: Scene, key: str) -> AsyncIterator[Sandbox]:
    """A Lune of live accounts, put in the place of the scene's; the harvester gets its key."""
    options = SandboxOptions(
        orders=0, client_accounts=1, speed=0, rate_limit=0, mode="live", key=key, seed=2
    )
    async with Sandbox(options) as live:
        scene.proxy.upstream = live.base_url
        scene.proxy.default_account = live.accounts[0].id
        scene.secrets.append(key)
        yield live


@fault("A24")
async def test_a_live_key_is_refused_on_a_ledger_of_test_orders(scene: Scene) -> None:
    scene.order("placed")
    await scene.drain()
    async with live_lune(scene, "canary-live-key") as live:
        live.create_order("placed", hold=True)
        (scene.home.folder / "lune_api_key").write_text("canary-live-key")
        listed = scene.proxy.count("orders")
        ran = await scene.command("run", "--drain")
        assert ran.code == 78
        assert "live key, but this ledger holds test orders" in ran.err
        async with scene.open() as app:
            with pytest.raises(ConfigurationError, match="live key"):
                await serve(app)
        assert scene.proxy.count("orders") == listed


@fault("A24")
async def test_a_live_key_put_in_place_while_it_runs_reads_no_order_into_the_test_ledger(
    scene: Scene,
) -> None:
    scene.home.configure(lune__accounts=["default"])
    followed = scene.order("placed")
    async with instant_harvest(scene) as harvest:
        await harvest.sweep()
        scene.lune.faults.add("revoked-key")
        harvest.later(timedelta(minutes=16))
        with pytest.raises(KeyRefused):
            await harvest.sweep()
        async with live_lune(scene, "canary-live-key") as live:
            live.create_order("paid", hold=True)
            (scene.home.folder / "lune_api_key").write_text("canary-live-key")
            await harvest.app.lune.probe()
            # The list of accounts is read again only in hours; the header is what protects.
            assert list((await harvest.sweep()).parked) == [scene.lune.accounts[0].id]
            harvest.later(timedelta(hours=7))
            with pytest.raises(ConfigurationError, match="live key"):
                await harvest.sweep()
    assert await chain(scene, followed.id) == [(None, "placed")]
    assert (await statistics(scene)).by_status == {"placed": 1}


@fault("A24")
@pytest.mark.parametrize("which", ["default", "client"])
async def test_accounts_of_both_modes_never_share_a_ledger(scene: Scene, which: str) -> None:
    other = scene.lune.accounts[1].id
    scene.home.configure(lune__accounts=["default", other] if which == "client" else ["default"])
    turned = changed(lambda body: body.replace(b'"type":"test"', b'"type":"live"'))

    async def turn_theirs(exchange: Exchange) -> None:
        theirs = exchange.seen.headers.get("lune-account") == other
        await (turned if theirs else through)(exchange)

    scene.proxy.script(turn_theirs, times=math.inf)
    async with scene.open() as app:
        with pytest.raises(ConfigurationError):
            await app.accounts.account(other)
        assert await recorded_modes(app.database) <= {"test"}


@fault("A25")
async def test_a_sweep_that_takes_longer_than_the_interval_is_never_doubled(scene: Scene) -> None:
    scene.home.configure(harvest__sweep_interval="200ms", harvest__longest_interval="1s")
    scene.order("placed")
    under_way: Counter[str] = Counter()
    most = 0

    async def slow(exchange: Exchange) -> None:
        nonlocal most
        account = exchange.seen.headers.get("lune-account", "default")
        under_way[account] += 1
        most = max(most, under_way[account])
        await asyncio.sleep(0.5)  # two ticks and more
        await through(exchange)
        under_way[account] -= 1

    scene.proxy.script(slow, "orders", times=math.inf)
    stop = Stop()
    async with scene.open(stop) as app:
        daemon = asyncio.create_task(serve(app))
        await until(lambda: scene.proxy.count("orders") >= 6)
        stop.request()
        await daemon
    assert most == 1


@fault("A26")
@pytest.mark.parametrize("well", [True, False])
async def test_a_harvester_that_starts_again_and_again_lists_no_earlier_than_due(
    scene: Scene, *, well: bool
) -> None:
    scene.order("placed")
    if not well:
        scene.proxy.script(saying(response(500)), "orders", times=math.inf)
    async with instant_harvest(scene) as harvest:
        await harvest.sweep()
    listed = scene.proxy.count("orders")
    assert listed
    for _ in range(5):
        asked = scene.proxy.count()
        async with instant_harvest(scene) as harvest:
            await harvest.sweep()
            await harvest.collect()
        assert scene.proxy.count("orders") == listed
        assert scene.proxy.count() - asked == 3  # which accounts there are
    scene.proxy.clear()
    async with instant_harvest(scene) as harvest:
        harvest.later(timedelta(minutes=16))
        await harvest.sweep()
        assert scene.proxy.count("orders") == listed + 2
    await scene.drain()
