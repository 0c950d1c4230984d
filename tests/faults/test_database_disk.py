"""The ledger's disk is full, read-only or fails: what was acknowledged stays, the rest comes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harvester.domain.errors import LedgerUnavailable
from harvester.ledger import migrate
from harvester.ledger.accounts import read_accounts
from harvester.runtime.drain import Drain
from tests.acceptance.harness import events
from tests.faults.catalogue import fault
from tests.faults.disks import fill, query, remount, run_with_fault, small_disk
from tests.faults.scene import Scene


@pytest.fixture
def ledger_disk(tmp_path: Path) -> Iterator[Path]:
    """The ledger on a small disk of its own; named before ``scene``, so that it outlives it."""
    with small_disk(tmp_path / "data", "size=2m") as disk:
        yield disk


@fault("D4")
async def test_a_ledger_on_a_full_disk_stays_whole_and_goes_on_when_there_is_room(
    ledger_disk: Path, scene: Scene
) -> None:
    scene.order()
    async with scene.open() as app:
        await Drain(app).run()
        for _ in range(200):
            scene.order("paid")
        ballast = fill(ledger_disk)
        with pytest.raises(LedgerUnavailable):
            await Drain(app).run()
        assert len(await read_accounts(app.database)) == 2  # readers go on
        migrate.check_integrity(scene.home.ledger)
        ballast.unlink()
        assert (await Drain(app).run()).swept.new > 0
    assert query(scene, "SELECT count(*) FROM orders") == [(201,)]


@fault("D4")
async def test_a_disk_turned_read_only_under_the_ledger_is_reported_and_waited_for(
    ledger_disk: Path, scene: Scene
) -> None:
    scene.order()
    await scene.drain()
    scene.order("paid")
    remount(ledger_disk, "ro")
    ran = await scene.command("run", "--drain")
    assert ran.code == 1
    assert str(scene.home.ledger) in ran.err
    assert "Traceback" not in ran.err
    remount(ledger_disk, "rw")
    assert (await scene.drain()).swept.new == 1


async def owing_with_syncs(scene: Scene) -> tuple[str, int]:
    """Have one certificate owed; return its order, and how often a drain of one syncs the ledger.

    The row of the certificate is the last that is committed; the checkpoint at the end syncs the
    log and the database.
    """
    first, second = scene.order("placed"), scene.order("placed")
    await scene.drain()
    scene.lune.move_order(first.id, "complete")
    _, counted = await run_with_fault(scene, "--only=fdatasync")
    scene.lune.move_order(second.id, "complete")
    return second.id, counted["calls"]


@fault("D5")
async def test_a_commit_that_fails_after_its_file_was_stored_is_not_acknowledged(
    scene: Scene,
) -> None:
    order, syncs = await owing_with_syncs(scene)
    fault_options = ("--only=fdatasync", f"--at={syncs - 2}", "--fault=EIO", "--ever")
    ran, report = await run_with_fault(scene, *fault_options)
    assert report["hit"] == f"fdatasync {scene.home.ledger}-wal"
    assert ran.code == 1
    assert "the ledger could not be used" in ran.err
    assert order not in str(events(ran.err, "certificate stored"))
    assert len(scene.home.files()) == 2
    # Written but perhaps not durable, the row may be there or not; the file is not fetched again.
    asked = scene.proxy.count("certificate")
    await scene.drain()
    assert scene.proxy.count("certificate") == asked
    assert query(scene, "SELECT count(*) FROM files") == [(2,)]


@fault("D6")
async def test_a_checkpoint_that_fails_at_the_end_costs_nothing_that_was_acknowledged(
    scene: Scene,
) -> None:
    _, syncs = await owing_with_syncs(scene)
    fault_options = ("--only=fdatasync", f"--at={syncs - 1}", "--fault=EIO", "--ever")
    ran, report = await run_with_fault(scene, *fault_options)
    assert report["hit"]
    assert ran.code == 0
    log = scene.home.ledger.with_name(f"{scene.home.ledger.name}-wal")
    assert log.exists()  # what could not be folded in is no damage
    assert (await scene.drain()).collected.stored == 0
    assert not log.exists()
    assert query(scene, "SELECT count(*) FROM files") == [(2,)]
