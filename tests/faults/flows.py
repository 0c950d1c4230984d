"""What the harvester does to its files: each flow from a prepared beginning to its end.

The campaigns inject a fault into the command of a flow, at one call after another
(``replayed_flow.py``).
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from harvester.ledger import migrate
from tests.faults.invariants import BrokenError, check_invariants
from tests.faults.next_release import UPGRADE, go_back, next_migrations
from tests.faults.replayed_flow import BEGINNING, Flow, FlowScene
from tests.faults.scene import Scene
from tests.faults.tracer import InjectedFault

_COPY = "copy.db"
_LEDGER = "data/harvester.db"
_MIGRATIONS = "migrations"
_DRAIN = ("run", "--drain")

# Beginnings.


async def _new_orders(scene: Scene) -> None:
    for status in ("complete", "complete", "complete", "placed", "paid"):
        scene.order(status)


async def _drained(scene: Scene) -> None:
    await _new_orders(scene)
    await scene.drain()


async def _one_became_complete(scene: Scene) -> None:
    await _drained(scene)
    [order] = [one for one in scene.lune.orders() if scene.lune.status(one.id) == "paid"]
    scene.lune.move_order(order.id, "complete")


async def _one_moved(scene: Scene) -> None:
    await _drained(scene)
    [order] = [one for one in scene.lune.orders() if scene.lune.status(one.id) == "placed"]
    scene.lune.move_order(order.id, "paid")


async def _beside_next_release(scene: Scene) -> None:
    """Have a ledger of this release, and the migrations of the next one."""
    await _drained(scene)
    next_migrations(scene.home.folder / _MIGRATIONS)


async def _one_lost_one_changed(scene: Scene) -> None:
    await _drained(scene)
    lost, changed, _ = (scene.home.archive / name for name in sorted(scene.home.files()))
    lost.unlink()
    changed.write_bytes(changed.read_bytes() + b"\n")


async def _killed_while_storing(scene: FlowScene) -> None:
    """Leave a temporary, a file without a row, and a log that is not in the ledger yet."""
    await _new_orders(scene)
    run = await scene.run_with_fault(_DRAIN, InjectedFault(2, only="unlinkat"))
    assert run.hit is not None
    assert list((scene.home.archive / ".incoming").iterdir())


# What a command that was cut short leaves, where that differs from what a drain leaves.


async def _old_or_new(scene: Scene) -> None:
    """Check that ledger and archive are as they were, or else that the invariants hold."""
    home, before = scene.home, scene.home.folder.with_name(BEGINNING)
    if _contents(home.ledger) != _contents(before / "data" / home.ledger.name):
        await check_invariants(scene)
    elif len(home.files()) != len(list((before / "certificates").glob("*/*/*.pdf"))):
        raise BrokenError("a certificate was stored, and the ledger does not know its order")


async def _planted_or_repaired(scene: Scene) -> None:
    """Check all but that files are missing and changed, as they were to begin with."""
    for invariant in ("I2", "I3"):
        scene.excuse(invariant, "what the command is to repair")
    await check_invariants(scene)
    scene.excused.clear()
    scene.stored.clear()


# Ends.


async def _drain(scene: Scene) -> int:
    report = await scene.drain()
    if report.unfinished:
        raise BrokenError(f"a drain without faults left {report.unfinished}")
    if left := [path.name for path in scene.home.ledger.parent.glob(".*.part*")]:
        raise BrokenError(f"half-made copies stay beside the ledger: {left}")
    collected = report.collected.stored + report.collected.recovered
    return report.swept.new + report.swept.changed + collected


async def _upgrade(scene: Scene) -> int:
    ledger, migrations = scene.home.ledger, scene.home.folder / _MIGRATIONS
    left = int(migrate.current(ledger, migrations) != migrate.head(migrations))
    await asyncio.to_thread(migrate.upgrade, ledger, migrations)
    go_back(ledger)
    return left + await _drain(scene)


async def _back_up(scene: Scene) -> int:
    copy = scene.home.folder / _COPY
    if left := not copy.exists():
        await asyncio.to_thread(migrate.backup, scene.home.ledger, copy)
    if _contents(copy) != _contents(scene.home.ledger):
        raise BrokenError(f"{copy} is not what the ledger holds")
    return left + await _drain(scene)


def _contents(path: Path) -> list[str]:
    """Return a database as SQL, read from a copy; one that is not there is like an empty one."""
    with TemporaryDirectory(prefix="harvester-contents-") as folder:
        copy = Path(folder) / "copy.db"
        for suffix in ("", "-wal", "-journal"):
            if (part := Path(f"{path}{suffix}")).exists():
                shutil.copyfile(part, f"{copy}{suffix}")
        with closing(sqlite3.connect(copy)) as connection:
            return list(connection.iterdump())


async def _repair(scene: Scene) -> int:
    ran = await scene.command("verify", "--repair", "--json")
    if ran.code != 0:
        raise BrokenError(f"not repaired: {ran.code}: {ran.err}")
    found = ran.document()["discrepancies"]
    return sum(one["finding"] in {"missing", "changed"} for one in found) + await _drain(scene)


FLOWS: dict[str, Flow] = {
    flow.name: flow
    for flow in (
        Flow("first-drain", _DRAIN, _new_orders, _drain, _old_or_new),
        Flow("one-certificate", _DRAIN, _one_became_complete, _drain),
        Flow("status-change", _DRAIN, _one_moved, _drain),
        Flow(
            "migration",
            (UPGRADE, _LEDGER, _MIGRATIONS),
            _beside_next_release,
            _upgrade,
            _old_or_new,
        ),
        Flow("backup", ("db", "backup", _COPY), _drained, _back_up),
        Flow(
            "repair", ("verify", "--repair"), _one_lost_one_changed, _repair, _planted_or_repaired
        ),
        Flow("recovery", _DRAIN, _killed_while_storing, _drain),
    )
}
