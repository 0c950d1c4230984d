"""The ledger's file: damaged, deleted, replaced, restored, opened by strangers, too new."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from harvester.domain.errors import LedgerDamaged
from harvester.ledger import migrate
from tests.acceptance.harness import until
from tests.faults.catalogue import fault
from tests.faults.disks import query
from tests.faults.scene import Scene

WATCHED = """
import sys
ledger = sys.argv.pop(1)
def watch(event, arguments):
    if event in ("open", "os.open") and str(arguments[0]) in (ledger, ledger + "-wal"):
        print("opened outside SQLite:", arguments, file=sys.stderr)
    if event in ("os.fork", "os.forkpty", "os.posix_spawn", "subprocess.Popen"):
        print("made a process:", event, arguments, file=sys.stderr)
sys.addaudithook(watch)
from harvester.cli import main
main()
"""


def contents(folder: Path) -> dict[str, str]:
    """Return the digest of every file, but for what the lock says."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.is_file() and path.suffix != ".lock"
    }


def tear_a_page(ledger: Path) -> None:
    data = bytearray(ledger.read_bytes())
    data[-4096:] = b"\xde\xad" * 2048
    ledger.write_bytes(data)


def overwrite_the_header(ledger: Path) -> None:
    data = bytearray(ledger.read_bytes())
    data[:100] = b"\xde\xad" * 50
    ledger.write_bytes(data)


def cut_it(ledger: Path) -> None:
    os.truncate(ledger, ledger.stat().st_size // 2)


@fault("D9")
@pytest.mark.parametrize("damage", [tear_a_page, overwrite_the_header, cut_it])
async def test_a_damaged_ledger_is_refused_untouched_with_what_to_do(
    scene: Scene, damage: Callable[[Path], None]
) -> None:
    scene.order()
    await scene.drain()
    backup = scene.home.folder / "backup.db"
    migrate.backup(scene.home.ledger, backup)
    damage(scene.home.ledger)
    before, asked = contents(scene.home.ledger.parent), scene.proxy.count()
    ran = await scene.command("run", "--drain")
    assert ran.code == 1
    assert f"Error: {scene.home.ledger}" in ran.err
    assert "left as it is. Restore a backup, or move it away" in ran.err
    assert "Traceback" not in ran.err
    with pytest.raises(LedgerDamaged):
        await scene.drain()
    assert contents(scene.home.ledger.parent) == before
    assert scene.proxy.count() == asked
    backup.replace(scene.home.ledger)
    scene.order()
    assert (await scene.drain()).collected.stored == 1


def delete(ledger: Path) -> None:
    ledger.unlink()


def replace(ledger: Path) -> None:
    ledger.rename(ledger.with_name("old.db"))
    shutil.copyfile(ledger.with_name("old.db"), ledger)
    ledger.chmod(0o600)


@fault("D10")
@pytest.mark.parametrize("change", [delete, replace])
async def test_a_ledger_deleted_or_replaced_under_a_daemon_ends_it_before_its_next_write(
    scene: Scene, change: Callable[[Path], None]
) -> None:
    scene.home.configure(harvest__sweep_interval="500ms")
    scene.order()
    async with scene.home.daemon() as daemon:
        await until(lambda: daemon.events("certificate stored"))
        change(scene.home.ledger)
        await until(lambda: daemon.ended, 30)
        ended = await daemon.result()
    scene.keep(ended.err)
    assert ended.code == 1
    assert "deleted or replaced while it was open" in ended.err
    assert "Traceback" not in ended.err
    for left in scene.home.ledger.parent.glob("*-wal"):
        left.unlink()  # of the old file; the backup that is put back has none
    scene.order()
    report = await scene.drain()
    assert report.collected.stored + report.collected.recovered >= 1
    assert len(scene.home.files()) == 2


@fault("D11", "D12")
async def test_a_drain_opens_its_ledger_through_sqlite_alone_and_makes_no_process(
    scene: Scene,
) -> None:
    """Closing a descriptor of our own would drop SQLite's locks; so would a fork's exit."""
    await scene.drain()
    scene.order()
    watched = (sys.executable, "-c", WATCHED, scene.home.ledger)
    ran = await scene.home.run("run", "--drain", program=watched)
    scene.keep(ran.err)
    assert ran.code == 0
    assert len(scene.home.files()) == 1
    assert "outside SQLite" not in ran.err
    assert "made a process" not in ran.err


@fault("D14")
async def test_a_ledger_of_a_newer_release_exits_78_before_anything_is_written(
    scene: Scene,
) -> None:
    scene.order()
    await scene.drain()
    query_and_commit(scene, "UPDATE alembic_version SET version_num = '9999'")
    before, asked = scene.home.ledger.read_bytes(), scene.proxy.count()
    ran = await scene.command("run", "--drain")
    assert ran.code == 78
    assert "newer than this release" in ran.err
    assert scene.home.ledger.read_bytes() == before
    assert scene.proxy.count() == asked


def query_and_commit(scene: Scene, statement: str) -> None:
    with closing(sqlite3.connect(scene.home.ledger)) as connection, connection:
        connection.execute(statement)


@fault("D17")
async def test_an_older_backup_put_back_catches_up_and_overwrites_no_file(scene: Scene) -> None:
    early, moving = scene.order(), scene.order("placed")
    await scene.drain()
    backup = scene.home.folder / "backup.db"
    migrate.backup(scene.home.ledger, backup)
    scene.lune.move_order(moving.id, "complete")
    late = scene.order()
    await scene.drain()
    before = {name: (scene.home.archive / name).stat().st_mtime_ns for name in scene.home.files()}
    assert len(before) == 3
    backup.replace(scene.home.ledger)
    report = await scene.drain()
    assert (report.collected.recovered, report.collected.stored) == (2, 0)
    after = {name: (scene.home.archive / name).stat().st_mtime_ns for name in scene.home.files()}
    assert after == before
    assert set(query(scene, "SELECT order_id, version FROM files")) == {
        (order.id, 1) for order in (early, moving, late)
    }


@fault("D19")
async def test_instants_are_whole_microseconds_of_utc_in_any_time_zone(scene: Scene) -> None:
    order = scene.order("paid")
    before = datetime.now(UTC).timestamp()
    ran = await scene.home.run("run", "--drain", env={"TZ": "America/St_Johns"})
    scene.keep(ran.err)
    assert ran.code == 0
    (row,) = query(scene, "SELECT created_at, first_seen_at FROM orders")
    created = datetime.fromisoformat(str(scene.lune.document(order.id)["created_at"]))
    assert row[0] == round(created.timestamp() * 1e6)
    assert before * 1e6 - 1 <= row[1] <= datetime.now(UTC).timestamp() * 1e6
    kinds = query(
        scene,
        "SELECT DISTINCT columns.type FROM sqlite_schema AS tables,"
        " pragma_table_info(tables.name) AS columns"
        " WHERE tables.type = 'table' AND columns.name GLOB '*_at'",
    )
    assert kinds == [("INTEGER",)]
