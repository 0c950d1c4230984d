"""Where ledger and archive lie: a network's disk, a slow one, one that somebody else holds."""

from __future__ import annotations

import json

from tests.acceptance.harness import until
from tests.faults.catalogue import fault
from tests.faults.disks import attached, strace, until_attached
from tests.faults.network_disk import network_disk
from tests.faults.scene import Scene


@fault("F17")
async def test_a_disk_that_is_slow_to_sync_holds_up_no_check_of_an_order(scene: Scene) -> None:
    scene.home.configure(harvest__sweep_interval="500ms")
    strace()
    async with scene.home.daemon() as daemon:
        pid, trace = daemon.process.pid, scene.home.folder / "trace"
        with attached(pid, trace, "-etrace=fsync", "-einject=fsync:delay_enter=1000000"):
            await until_attached(pid)
            scene.order()
            await until(lambda: scene.proxy.count("certificate"))
            late = scene.order("paid")
            await until(lambda: late.id in str(daemon.events("order moved")))
            assert not daemon.events("certificate stored")  # four syncs, of a second each
            await until(lambda: daemon.events("certificate stored"))
        ended = await daemon.end()
    scene.keep(ended.err)
    assert ended.code == 0


@fault("F20")
async def test_a_ledger_on_a_network_disk_is_refused_before_anything_is_written(
    scene: Scene,
) -> None:
    scene.order()
    with network_disk(scene.home.ledger.parent):
        ran = await scene.command("run", "--drain")
        assert ran.code == 78
        (line,) = ran.err.splitlines()
        assert str(scene.home.ledger) in line
        assert "fuse.sshfs" in line
        assert "database.url" in line
        checked = await scene.command("doctor", "--json")
        assert checked.code == 78
        failed = {
            one["subject"]: one["text"] for one in json.loads(checked.out) if one["level"] == "fail"
        }
        assert list(failed) == ["ledger"]
        assert line.endswith(failed["ledger"])
    assert list(scene.home.ledger.parent.iterdir()) == []
    assert (await scene.drain()).collected.stored == 1


@fault("F21")
async def test_a_second_harvester_on_the_same_ledger_exits_75_and_names_the_first(
    scene: Scene,
) -> None:
    scene.order()
    async with scene.home.daemon() as daemon:
        await until(lambda: daemon.events("certificate stored"))
        asked = scene.proxy.count()
        for second in (("run",), ("run", "--drain")):
            ran = await scene.command(*second)
            assert ran.code == 75
            assert f"process {daemon.process.pid}" in ran.err
        assert scene.proxy.count() == asked
        ended = await daemon.end()
    scene.keep(ended.err)
    assert ended.code == 0
