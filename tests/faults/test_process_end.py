"""How a process ends: killed, starved, refused, unfinished; and what its exit code says."""

from __future__ import annotations

import asyncio
import configparser
import ctypes
import json
import math
import os
import resource
import shutil
import signal
import sys
from pathlib import Path

import pytest

from harvester.cli.exits import EXIT_CODES
from tests.acceptance.harness import HARVESTER, until
from tests.faults.catalogue import fault
from tests.faults.proxy import response, saying
from tests.faults.scene import Scene
from tests.needs import need

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "harvester.service"
MISSING = json.dumps({"errors": [{"error_code": "not_found", "message": "none"}]}).encode()


@fault("S4")
@pytest.mark.parametrize(
    ("call", "time"),
    [("fsync", 1), ("link", 1), ("unlink", 1), ("fdatasync", 1), ("fdatasync", 3)],
)
async def test_killed_between_two_steps_it_goes_on_where_it_was(
    scene: Scene, call: str, time: int
) -> None:
    strace = shutil.which("strace")
    need(strace, "strace")
    assert strace is not None
    for _ in range(3):
        scene.order()
    fault_options = ("-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={time}")
    under = (strace, "-f", "-qq", "-o", os.devnull, *fault_options, HARVESTER)
    scene.clean_end = False
    ran = await scene.home.run("run", "--drain", program=under)
    scene.keep(ran.err)
    assert ran.code in {0, -signal.SIGKILL, 128 + signal.SIGKILL}
    await scene.drain()
    scene.clean_end = True
    assert len(scene.home.files()) == 3


@fault("S9")
async def test_starved_of_memory_it_ends_or_goes_on_and_loses_nothing(scene: Scene) -> None:
    scene.home.configure(harvest__sweep_interval="300ms")
    order = scene.order()
    whole = scene.lune.certificate(order.id)
    assert whole is not None
    large = whole[:-7] + b"%" + b"x" * 24_000_000 + b"\n" + whole[-7:]
    scene.proxy.script(saying(response(200, large, "application/pdf")), "certificate", 100)
    async with scene.home.running("run") as daemon:
        await until(lambda: daemon.events("started"))
        used = int(Path(f"/proc/{daemon.process.pid}/statm").read_text().split()[0])
        limit = used * resource.getpagesize() + 4 * 2**20
        resource.prlimit(daemon.process.pid, resource.RLIMIT_AS, (limit, limit))
        await until(lambda: daemon.ended or scene.proxy.count("certificate"))
        await asyncio.sleep(0.5)
        ran = await daemon.end(signal.SIGKILL)  # what the kernel does when memory is gone
    scene.keep(ran.err)
    assert ran.code != 0
    scene.proxy.clear()
    scene.clean_end = False
    await scene.drain()
    scene.clean_end = True
    assert len(scene.home.files()) == 1


@fault("S13")
async def test_a_drain_ends_in_time_though_something_never_comes_and_names_it(
    scene: Scene,
) -> None:
    good, moving = scene.order(), scene.order("paid")
    await scene.drain()
    late = scene.order()
    scene.proxy.script(saying(response(404, MISSING)), "certificate", math.inf)
    ran = await scene.command("run", "--drain", "--wait", "1s", "--json")
    assert ran.code == 3
    assert late.id in ran.err
    assert moving.id not in ran.err  # nothing is wrong with an order that is on its way
    assert [good.id in name for name in scene.home.files()] == [True]


@fault("S14")
@pytest.mark.parametrize("code", [0, 2, 3, 77])
async def test_the_exit_code_says_how_it_ended(scene: Scene, code: int) -> None:
    scene.order()
    arguments = ["run", "--drain"]
    if code == 2:
        arguments = ["run", "--dry-run"]
    if code == 3:
        scene.proxy.script(saying(response(404, MISSING)), "certificate", 100)
    if code == 77:
        (scene.home.folder / "lune_api_key").write_text("canary-no-key")
    ran = await scene.command(*arguments)
    assert ran.code == code
    assert code in EXIT_CODES
    assert code == 0 or ran.err
    assert "Traceback" not in ran.err


@fault("S15")
@pytest.mark.parametrize("missing", ["setting", "key"])
async def test_a_wrong_configuration_ends_the_service_for_good(scene: Scene, missing: str) -> None:
    right = scene.home.config.read_text()
    if missing == "key":
        (scene.home.folder / "lune_api_key").unlink()
    else:
        scene.home.config.write_text(right + "[harvset]\n")
    ran = await scene.command("run")
    scene.home.config.write_text(right)
    assert ran.code == 78
    assert not scene.home.ledger.exists()
    assert scene.proxy.count() == 0
    unit = configparser.RawConfigParser(strict=False)
    unit.read(UNIT)
    assert "78" in unit["Service"]["RestartPreventExitStatus"].split()


@fault("S16")
async def test_an_abort_leaves_no_core_and_no_values(scene: Scene) -> None:
    async with scene.home.daemon() as daemon:
        limits = Path(f"/proc/{daemon.process.pid}/limits").read_text().splitlines()
        core = next(line for line in limits if line.startswith("Max core file size"))
        ran = await daemon.end(signal.SIGABRT)
    scene.keep(ran.err)
    scene.clean_end = False
    assert core.split()[4:6] == ["0", "0"]
    assert ran.code == -signal.SIGABRT
    assert not list(scene.home.folder.glob("core*"))  # nor the key in any file, by the invariants


@fault("S16")
async def test_its_memory_is_closed_to_other_processes() -> None:
    asks = "from harvester.cli.process import forbid_dumps; import ctypes; "
    asks += "forbid_dumps(); print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 1
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", asks, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert out.strip() == b"0"


@fault("S18")
async def test_nothing_is_imported_after_the_start_that_an_upgrade_could_replace(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    scene.home.configure(harvest__sweep_interval="300ms")
    async with scene.home.daemon() as daemon:
        began = len(daemon.err)
        order = scene.order("retiring")
        await until(lambda: daemon.events("order moved"))
        scene.proxy.script(saying(response(502, b"<html>", "text/html")), times=2)
        scene.lune.move_order(order.id, "complete")
        await until(scene.home.files)
        assert (await scene.home.run("track", order.id)).code == 0
        daemon.process.send_signal(signal.SIGHUP)
        await until(lambda: daemon.events("configuration reloaded"))
        ran = await daemon.end()
    assert ran.code == 0
    assert [line for line in daemon.err[began:] if line.startswith("import time")] == []
