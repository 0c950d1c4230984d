"""Killed between any two steps, or without power: what is recorded is there, nothing is lost."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.acceptance.harness import HARVESTER, events
from tests.faults.catalogue import fault
from tests.faults.disks import Command, query, run_with_fault, strace
from tests.faults.scene import Scene

LEFT = 10_000


async def owing(scene: Scene) -> None:
    """Have all made and one certificate owed."""
    order = scene.order("placed")
    await scene.drain()
    scene.lune.move_order(order.id, "complete")


@fault("F5")
@pytest.mark.parametrize(
    ("call", "at"),
    [("fsync", 2), ("linkat", 1), ("fsync", 3), ("unlinkat", 1), ("fdatasync", 1)],
    ids=["unsynced", "unlinked", "linked", "synced", "unrecorded"],
)
async def test_killed_between_two_steps_the_next_drain_stores_it_once(
    scene: Scene, call: str, at: int
) -> None:
    await owing(scene)
    ran, report = await run_with_fault(scene, f"--only={call}", f"--at={at}", "--fault=KILL")
    assert report["hit"], ran.err
    assert ran.code == -9
    await scene.drain()
    assert query(scene, "SELECT version, path FROM files") == [
        (1, *scene.home.files()),
    ]


@fault("F6")
async def test_nothing_is_recorded_or_logged_before_it_would_survive_a_power_cut(
    scene: Scene,
) -> None:
    """The order of the calls: the file, its name, its folders, its row, and only then the log."""
    await owing(scene)
    trace = scene.home.folder / "trace"
    watched = "-etrace=write,pwrite64,fsync,fdatasync,linkat"
    traced: Command = (*strace("-y", "-s", "4096", "-o", trace, watched), sys.executable, HARVESTER)
    ran = await scene.home.run("run", "--drain", program=traced)
    scene.keep(ran.err)
    assert ran.code == 0
    lines = trace.read_text("utf-8", errors="replace").splitlines()
    steps = [_step(line, scene.home.archive, scene.home.ledger) for line in lines]
    story = [step for step in steps if step]
    linked = story.index("link")
    assert story[linked - 1 : linked + 4] == ["sync file", "link", *["sync folder"] * 3]
    logged = story.index("log")
    recorded = story[linked + 4 : logged]
    assert set(recorded) == {"write ledger", "sync ledger"}
    assert recorded[-1] == "sync ledger"
    assert [step for step in story if "ledger" in step][-1] == "sync ledger"


def _step(line: str, archive: Path, ledger: Path) -> str | None:
    call = line.split(maxsplit=1)[1]
    if call.startswith("linkat("):
        return "link" if call.count(".pdf") else None
    if call.startswith("fsync(") and f"<{archive}" in call:
        return "sync file" if ".part>" in call else "sync folder"
    if f"<{ledger}-wal>" in call:
        return "sync ledger" if call.startswith("fdatasync(") else "write ledger"
    return "log" if "certificate stored" in call else None


@fault("F12")
async def test_ten_thousand_temporaries_of_crashes_are_removed_at_the_start(scene: Scene) -> None:
    await owing(scene)
    for number in range(LEFT):
        (scene.home.archive / ".incoming" / f"{number:032x}.part").touch()
    report = await scene.drain()
    assert report.collected.stored == 1
    (removed,) = events(scene.log_text(), "temporary files removed")
    assert removed["files"] == LEFT
