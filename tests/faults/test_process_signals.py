"""Asked to stop, to read again, to stand still: by signals, at any moment."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.acceptance.harness import HARVESTER, until
from tests.faults.catalogue import fault
from tests.faults.proxy import Exchange, Seen, silence, through
from tests.faults.scene import Scene
from tests.needs import need

OFTEN = {"harvest__sweep_interval": "300ms"}


def held(arrived: asyncio.Event, release: asyncio.Event) -> Callable[[Exchange], Awaitable[None]]:
    """Answer as the server would, but not before it is let go."""

    async def answer(exchange: Exchange) -> None:
        arrived.set()
        await release.wait()
        await through(exchange)

    return answer


@fault("S1")
async def test_a_stop_while_nothing_is_to_do_ends_at_once(scene: Scene) -> None:
    async with scene.home.daemon() as daemon:
        await until(lambda: daemon.events("sweep finished"))
        ran = await daemon.end()
    scene.keep(ran.err)
    assert ran.code == 0


@fault("S1")
async def test_a_stop_lets_a_download_end_and_stores_it(scene: Scene) -> None:
    arrived, release = asyncio.Event(), asyncio.Event()
    scene.order()
    scene.proxy.script(held(arrived, release), "certificate")
    async with scene.home.daemon() as daemon:
        await asyncio.wait_for(arrived.wait(), 20)
        daemon.process.send_signal(signal.SIGTERM)
        await until(lambda: daemon.events("stopping"))
        release.set()
        ran = await daemon.result()
    scene.keep(ran.err)
    assert ran.code == 0
    assert len(scene.home.files()) == 1
    assert [row["certificate"]["state"] for row in (await scene.home.orders()).values()] == [
        "stored"
    ]


@fault("S1")
async def test_a_stop_lets_a_transaction_end(scene: Scene) -> None:
    arrived, release = asyncio.Event(), asyncio.Event()
    scene.order("paid")
    scene.proxy.script(held(arrived, release), "orders")
    async with scene.home.daemon() as daemon:
        await asyncio.wait_for(arrived.wait(), 20)
        with closing(sqlite3.connect(scene.home.ledger, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            release.set()
            await until(lambda: [seen for seen in scene.proxy.requests if _is_served(seen)])
            daemon.process.send_signal(signal.SIGTERM)
            await until(lambda: daemon.events("stopping"))
            other.execute("ROLLBACK")
        ran = await daemon.result()
    scene.keep(ran.err)
    assert ran.code == 0
    assert not daemon.events("step failed")
    assert not daemon.events("steps abandoned")


def _is_served(seen: Seen) -> bool:
    return seen.endpoint == "orders" and seen.status == 200


@fault("S2")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_abandons_what_is_in_flight(
    scene: Scene, number: signal.Signals
) -> None:
    scene.order()
    scene.proxy.script(silence, "certificate")
    async with scene.home.daemon() as daemon:
        await until(lambda: scene.proxy.count("certificate"))
        daemon.process.send_signal(number)
        await until(lambda: daemon.events("stopping"))
        daemon.process.send_signal(number)
        async with asyncio.timeout(4):
            ran = await daemon.result()
    scene.keep(ran.err)
    assert ran.code == 0
    assert daemon.events("steps abandoned")
    report = await scene.drain()
    assert report.collected.stored == 1


@fault("S3")
async def test_a_stop_at_any_moment_of_the_start_ends_it(scene: Scene) -> None:
    scene.order()
    codes = set()
    for moment in range(4):
        async with scene.home.running("run") as daemon:
            await asyncio.sleep(0.15 * moment)
            ran = await daemon.end()
        scene.keep(ran.err)
        codes.add(ran.code)
    assert codes <= {0, -signal.SIGTERM}
    scene.clean_end = False
    await scene.drain()
    scene.clean_end = True
    assert scene.home.files()


@fault("S3")
async def test_a_container_s_first_process_obeys_a_stop_while_it_starts(scene: Scene) -> None:
    need(os.geteuid() == 0 and shutil.which("unshare"), "root and unshare")
    process = await asyncio.create_subprocess_exec(
        "unshare",
        "--fork",
        "--pid",
        "--kill-child",
        HARVESTER,
        "run",
        cwd=scene.home.folder,
        env=scene.home.environment(),
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=PIPE,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    child = int(await until(children.read_text))
    await until(lambda: _catches(child, signal.SIGTERM))  # what it has no handler for, it ignores
    os.kill(child, signal.SIGTERM)
    async with asyncio.timeout(30):
        _, err = await process.communicate()
    scene.keep(err.decode())
    assert process.returncode in {0, 130}


@fault("S3")
async def test_a_first_process_obeys_a_stop_from_its_first_moment_on() -> None:
    need(os.geteuid() == 0 and shutil.which("unshare"), "root and unshare")
    program = (
        "import os, time; from harvester.cli.process import handle_sigterm; handle_sigterm(); "
    )
    program += f"os.kill(1, {signal.SIGTERM:d}); time.sleep(30)"
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--fork", "--pid", sys.executable, "-c", program), stderr=PIPE
    )
    async with asyncio.timeout(20):
        _, err = await process.communicate()
    assert b"KeyboardInterrupt" in err  # which the command line ends with 130


def _catches(process: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{process}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@fault("S5")
async def test_a_stopped_process_makes_up_for_nothing_when_it_is_continued(scene: Scene) -> None:
    scene.home.configure(harvest__sweep_interval="1s", lune__rate_limit=8)
    for _ in range(28):
        scene.order()
    async with scene.home.daemon() as daemon:
        await until(lambda: scene.proxy.count("certificate") > 2)
        os.kill(daemon.process.pid, signal.SIGSTOP)
        await asyncio.sleep(1.5)
        scene.proxy.requests.clear()
        os.kill(daemon.process.pid, signal.SIGCONT)
        await until(lambda: scene.proxy.count() > 16)
        ran = await daemon.end()
    scene.keep(ran.err)
    assert ran.code == 0  # and never more than 8 requests a second, which is an invariant


@fault("S12")
async def test_a_drain_beside_a_daemon_is_turned_away_and_asks_nothing(scene: Scene) -> None:
    async with scene.home.daemon() as daemon:
        await until(lambda: daemon.events("sweep finished"))
        asked = scene.proxy.count()
        drain = await scene.command("run", "--drain")
        assert scene.proxy.count() == asked
        ran = await daemon.end()
    scene.keep(ran.err)
    assert (drain.code, ran.code) == (75, 0)
    assert f"process {daemon.process.pid}" in drain.err


@fault("S11")
async def test_sighup_takes_up_a_new_key_without_a_restart(scene: Scene) -> None:
    scene.home.configure(**OFTEN)
    key, wrong = scene.home.folder / "lune_api_key", "canary-old-key"
    key.write_text(wrong)
    scene.secrets.append(wrong)
    scene.order()
    async with scene.home.daemon() as daemon:
        await until(lambda: daemon.events("key refused"))
        key.write_text(scene.lune.key)
        daemon.process.send_signal(signal.SIGHUP)
        await until(lambda: daemon.events("key accepted"))
        await until(scene.home.files)
        ran = await daemon.end()
    scene.keep(ran.err)
    assert ran.code == 0


@fault("S11")
async def test_sighup_reads_again_while_lune_does_not_answer_for_the_key(scene: Scene) -> None:
    async with scene.home.daemon() as daemon:
        await until(lambda: daemon.events("sweep finished"))
        scene.proxy.script(silence, "account")
        asked = scene.proxy.count("account")
        daemon.process.send_signal(signal.SIGHUP)
        await until(lambda: scene.proxy.count("account") > asked)
        scene.home.configure(harvest__interim=True)
        daemon.process.send_signal(signal.SIGHUP)
        (logged,) = await until(lambda: daemon.events("configuration reloaded")[1:])
        ran = await daemon.end()
    scene.keep(ran.err)
    assert logged["needs_restart"] == ["harvest.interim"]
    assert ran.code == 0


@fault("S11")
async def test_sighup_sets_the_log_s_level_and_names_what_needs_a_restart(scene: Scene) -> None:
    scene.home.configure(log__level="error")
    async with scene.home.running("run") as daemon:
        await until(lambda: scene.proxy.count("orders"))
        scene.home.configure(log__level="info", harvest__interim=True, lune__rate_limit=900)
        daemon.process.send_signal(signal.SIGHUP)
        (logged,) = await until(lambda: daemon.events("configuration reloaded"))
        ran = await daemon.end()
    scene.keep(ran.err)
    assert logged["needs_restart"] == ["lune.rate_limit", "harvest.interim"]
    assert ran.code == 0


@fault("S11")
@pytest.mark.parametrize("wrong", ["[lune]\nrate_limit = -1\n", "key"])
async def test_sighup_with_a_wrong_configuration_changes_nothing_and_says_so(
    scene: Scene, wrong: str
) -> None:
    scene.home.configure(**OFTEN)
    key, right = scene.home.folder / "lune_api_key", scene.home.config.read_text()
    async with scene.home.daemon() as daemon:
        if wrong == "key":
            key.unlink()
        else:
            scene.home.config.write_text(wrong)
        daemon.process.send_signal(signal.SIGHUP)
        (logged,) = await until(lambda: daemon.events("configuration not reloaded"))
        scene.order()
        await until(scene.home.files)
        ran = await daemon.end()
    scene.home.config.write_text(right)
    scene.keep(ran.err)
    assert logged["level"] == "error"
    assert logged["problems"]
    assert ran.code == 0
