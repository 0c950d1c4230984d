"""Starting again and again, overlapping itself, another key, another version of the API."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from harvester.domain.errors import ConfigurationError, KeyRefused
from harvester.ledger.accounts import recorded_modes
from harvester.runtime.service import serve
from harvester.sandbox import Sandbox, SandboxOptions
from tests.acceptance.harness import events, until
from tests.faults.catalogue import fault
from tests.faults.quick import chain, quick, summary
from tests.faults.scene import Scene
from tests.faults.wire import Exchange, changed, response, saying, through


@fault("A23")
@pytest.mark.parametrize("served", ["2031-01-01", None])
async def test_another_version_than_the_one_asked_for_is_said_once(
    scene: Scene, served: str | None
) -> None:
    async def versioned(exchange: Exchange) -> None:
        answer = await exchange.upstream()
        header = b"" if served is None else f"\r\nLune-Version: {served}".encode()
        status, _, rest = answer.partition(b"\r\n")
        await exchange.say(status + header + b"\r\n" + rest)

    scene.order()
    scene.wire.script(versioned, times=math.inf)
    assert (await scene.drain()).collected.stored == 1
    assert {seen.headers["lune-version"] for seen in scene.wire.requests} == {"2024-08-08"}
    told = events(scene.log_text(), "another version of the API")
    assert [(one["asked"], one["served"]) for one in told] == (
        [] if served is None else [("2024-08-08", served)]
    )


@asynccontextmanager
async def live_lune(scene: Scene, key: str) -> AsyncIterator[Sandbox]:
    """A Lune of live accounts, put in the place of the scene's; the harvester gets its key."""
    options = SandboxOptions(
        orders=0, client_accounts=1, speed=0, rate_limit=0, mode="live", key=key, seed=2
    )
    async with Sandbox(options) as live:
        scene.wire.upstream = live.base_url
        scene.wire.default_account = live.accounts[0].id
        scene.secrets.append(key)
        yield live


@fault("A24")
async def test_a_live_key_is_refused_on_a_ledger_of_test_orders(scene: Scene) -> None:
    scene.order("placed")
    await scene.drain()
    async with live_lune(scene, "canary-live-key") as live:
        live.create_order("placed", hold=True)
        (scene.home.folder / "lune_api_key").write_text("canary-live-key")
        listed = scene.wire.count("orders")
        ran = await scene.command("run", "--drain")
        assert ran.code == 78
        assert "live key, but this ledger holds test orders" in ran.err
        async with scene.open() as harvest:
            with pytest.raises(ConfigurationError, match="live key"):
                await serve(harvest)
        assert scene.wire.count("orders") == listed


@fault("A24")
async def test_a_live_key_put_in_place_while_it_runs_reads_no_order_into_the_test_ledger(
    scene: Scene,
) -> None:
    scene.home.configure(lune__accounts=["default"])
    followed = scene.order("placed")
    async with quick(scene) as one:
        await one.sweep()
        scene.lune.faults.add("revoked-key")
        one.later(timedelta(minutes=16))
        with pytest.raises(KeyRefused):
            await one.sweep()
        async with live_lune(scene, "canary-live-key") as live:
            live.create_order("paid", hold=True)
            (scene.home.folder / "lune_api_key").write_text("canary-live-key")
            await one.harvest.lune.probe()
            # The list of accounts is read again only in hours; the header is what protects.
            assert list((await one.sweep()).parked) == [scene.lune.accounts[0].id]
            one.later(timedelta(hours=7))
            with pytest.raises(ConfigurationError, match="live key"):
                await one.sweep()
    assert await chain(scene, followed.id) == [(None, "placed")]
    assert (await summary(scene)).by_status == {"placed": 1}


@fault("A24")
@pytest.mark.parametrize("which", ["default", "client"])
async def test_accounts_of_both_modes_never_share_a_ledger(scene: Scene, which: str) -> None:
    other = scene.lune.accounts[1].id
    scene.home.configure(lune__accounts=["default", other] if which == "client" else ["default"])
    turned = changed(lambda body: body.replace(b'"type":"test"', b'"type":"live"'))

    async def turn_theirs(exchange: Exchange) -> None:
        theirs = exchange.seen.headers.get("lune-account") == other
        await (turned if theirs else through)(exchange)

    scene.wire.script(turn_theirs, times=math.inf)
    async with scene.open() as harvest:
        with pytest.raises(ConfigurationError):
            await harvest.accounts.account(other)
        assert await recorded_modes(harvest.database) <= {"test"}


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

    scene.wire.script(slow, "orders", times=math.inf)
    async with scene.open() as harvest:
        daemon = asyncio.create_task(serve(harvest))
        await until(lambda: scene.wire.count("orders") >= 6)
        harvest.stop.request()
        await daemon
    assert most == 1


@fault("A26")
@pytest.mark.parametrize("well", [True, False])
async def test_a_harvester_that_starts_again_and_again_lists_no_earlier_than_due(
    scene: Scene, *, well: bool
) -> None:
    scene.order("placed")
    if not well:
        scene.wire.script(saying(response(500)), "orders", times=math.inf)
    async with quick(scene) as one:
        await one.sweep()
    listed = scene.wire.count("orders")
    assert listed
    for _ in range(5):
        asked = scene.wire.count()
        async with quick(scene) as one:
            await one.sweep()
            await one.collect()
        assert scene.wire.count("orders") == listed
        assert scene.wire.count() - asked == 3  # which accounts there are
    scene.wire.clear()
    async with quick(scene) as one:
        one.later(timedelta(minutes=16))
        await one.sweep()
        assert scene.wire.count("orders") == listed + 2
    await scene.drain()
