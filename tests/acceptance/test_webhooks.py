"""Webhooks as an operator meets them: set up by a command, taken by the daemon, checked."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import aiohttp

from harvester.sandbox import Sandbox, SandboxOptions
from tests.acceptance.harness import Home, until
from tests.acceptance.test_listener import free_port

PATH = "/webhooks/lune"


def a_lune() -> Sandbox:
    return Sandbox(SandboxOptions(orders=0, client_accounts=1, speed=0, rate_limit=0))


def home_with_webhooks(folder: Path, lune: Sandbox) -> tuple[Home, str]:
    port = free_port()
    home = Home(
        folder,
        lune,
        http__listen=f"127.0.0.1:{port}",
        webhook__secret_file=str(folder / "webhook_secret"),
        harvest__sweep_interval="6h",
    )
    return home, f"http://127.0.0.1:{port}{PATH}"


async def test_a_certificate_is_stored_seconds_after_the_event_though_sweeps_are_hours_apart(
    tmp_path: Path,
) -> None:
    async with a_lune() as lune:
        home, url = home_with_webhooks(tmp_path, lune)
        assert (await home.run("webhooks", "register", url)).code == 0
        order = lune.create_order("paid", hold=True)
        async with home.daemon() as daemon:
            await until(lambda: daemon.events("sweep finished"))
            began = time.monotonic()
            lune.move_order(order.id, "complete")
            await until(home.files)
            assert time.monotonic() - began < 30
            stranger = lune.create_order("complete", account_id=lune.accounts[1].id, hold=True)
            await until(lambda: len(home.files()) == 2)
            assert (await daemon.end()).code == 0
        shown = await home.show(order.id)
        assert [one["to"] for one in shown["transitions"]] == ["paid", "complete"]
        assert shown["transitions"][-1]["source"] == "webhook"
        assert (await home.show(stranger.id))["transitions"][0]["source"] == "webhook"


async def test_a_subscription_is_made_listed_rotated_checked_and_removed(tmp_path: Path) -> None:
    async with a_lune() as lune:
        home, url = home_with_webhooks(tmp_path, lune)
        file = tmp_path / "webhook_secret"
        made = (await home.run("webhooks", "register", url, "--json")).document()
        first = file.read_text().split()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert first[0].endswith(made["secret_ends_in"])

        ran = await home.run("webhooks", "rotate", made["id"])
        second = file.read_text().split()
        assert second[1:] == first
        ran_list = await home.run("webhooks", "list")
        assert made["id"] in ran_list.out
        assert not any(secret in ran.out + ran.err + ran_list.out for secret in second)
        assert await judged(home) == f"{made['id']}: pushed to {url}"

        file.write_text("another-secret\n")
        assert "not one of ours" in await judged(home)
        assert (await home.run("webhooks", "remove", made["id"])).code == 0
        assert "none is registered" in await judged(home)
        gone = await home.run("webhooks", "remove", made["id"])
        assert gone.code == 3
        assert "not found" in gone.err


async def judged(home: Home) -> str:
    checks = (await home.run("doctor", "--json")).document()
    (found,) = [check["text"] for check in checks if check["subject"] == "webhook"]
    return str(found)


async def test_what_could_not_work_is_refused_before_lune_is_asked(tmp_path: Path) -> None:
    async with a_lune() as lune:
        home, url = home_with_webhooks(tmp_path, lune)
        for wrong in (url.removesuffix(PATH), "http://example.com" + PATH, "ftp://x" + PATH, "x"):
            assert (await home.run("webhooks", "register", wrong)).code == 2
        home.configure(webhook__secret_file=str(tmp_path / "none" / "secret"))
        assert (await home.run("webhooks", "register", url)).code == 78
        assert (await Home(tmp_path, lune).run("webhooks", "register", url)).code == 78
        assert lune.webhooks.kept == {}


async def test_without_a_secret_there_is_no_such_path(tmp_path: Path) -> None:
    async with a_lune() as lune:
        home = Home(tmp_path, lune, http__listen=f"127.0.0.1:{free_port()}")
        async with home.daemon() as daemon, aiohttp.ClientSession() as session:
            base = f"http://{daemon.events('listening')[0]['address']}"
            async with session.post(base + PATH) as answer:
                assert answer.status == 404
            await daemon.end()


async def test_a_stuck_order_is_reported_once_and_status_says_what_it_waits_for(
    tmp_path: Path,
) -> None:
    async with a_lune() as lune:
        home = Home(tmp_path, lune, harvest__stuck_placed="1ms")
        order = lune.create_order("placed", hold=True)
        async with home.daemon() as daemon:
            await until(lambda: daemon.events("sweep finished"))
            await daemon.end()
        async with home.daemon() as daemon:  # which keeps house at its start
            await until(lambda: daemon.events("order stuck"))
            await daemon.end()
        ran = await home.run("status")
        assert f"stuck: order {order.id}" in ran.out
        assert "(configured); waits for payment: Lune's invoice is outstanding" in ran.out
        (stuck,) = (await home.run("status", "--json")).document()["stuck"]
        assert (stuck["id"], stuck["basis"]) == (order.id, "configured")
        async with home.daemon() as daemon:
            await until(lambda: daemon.events("started"))
            await daemon.end()
            assert daemon.events("order stuck") == []


async def test_status_names_twenty_stuck_orders_and_says_that_there_are_more(
    tmp_path: Path,
) -> None:
    async with a_lune() as lune:
        home = Home(tmp_path, lune, harvest__stuck_placed="1ms")
        for _ in range(21):
            lune.create_order("placed", hold=True)
        assert (await home.run("run", "--drain")).code == 0
        stuck = [line for line in (await home.run("status")).out.splitlines() if "stuck" in line]
        assert len(stuck) == 21
        assert stuck[-1] == "stuck: and more; see --json"
        assert len((await home.run("status", "--json")).document()["stuck"]) == 21
