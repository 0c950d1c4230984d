"""A disk that takes nothing, and a process at its limits: storing waits, following goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from harvester.domain.orders import OrderFilter
from harvester.runtime.drain import Drain
from tests.acceptance.harness import HARVESTER
from tests.faults.catalogue import fault
from tests.faults.disks import fill, query, remount, run_with_fault, small_disk
from tests.faults.proxy import changed
from tests.faults.scene import Scene
from tests.needs import need


@pytest.fixture
def archive_disk(tmp_path: Path) -> Iterator[Path]:
    """The archive on a small disk of its own; named before ``scene``, so that it outlives it."""
    with small_disk(tmp_path / "certificates") as disk:
        yield disk


@dataclass(frozen=True)
class Trouble:
    """A way for a disk to take no files, its cure, and how it is reported."""

    spoil: Callable[[Path], object]
    mend: Callable[[Path], object]
    words: str


def use_up_inodes(disk: Path) -> None:
    inodes = os.statvfs(disk)
    remount(disk, f"nr_inodes={inodes.f_files - inodes.f_ffree}")


TROUBLES = {
    "full": Trouble(fill, lambda disk: (disk / ".ballast").unlink(), "the disk is full (ENOSPC)"),
    "no inodes": Trouble(
        use_up_inodes, lambda disk: remount(disk, "nr_inodes=1000"), "the disk is full (ENOSPC)"
    ),
    "read-only": Trouble(
        lambda disk: remount(disk, "ro"),
        lambda disk: remount(disk, "rw"),
        "the file system is read-only (EROFS)",
    ),
}


@fault("F1", "F8", "F19")
@pytest.mark.parametrize("name", TROUBLES)
async def test_a_disk_that_takes_no_files_holds_up_storing_and_nothing_else(
    archive_disk: Path, scene: Scene, name: str
) -> None:
    trouble = TROUBLES[name]
    for _ in range(3):
        scene.order()
    async with scene.open() as app:
        trouble.spoil(archive_disk)
        report = await Drain(app).run()
        assert trouble.words in (report.collected.storage or "")
        assert (report.swept.new, report.collected.stored, len(report.missing)) == (3, 0, 3)
        assert [one.attempts for one in report.missing] == [0, 0, 0]  # no order is at fault
        asked = scene.proxy.count("certificate")
        late = scene.order("paid")
        report = await Drain(app).run()
        assert [one.order_id for one in report.open] == [late.id]
        assert scene.proxy.count("certificate") == asked  # not fetched to be thrown away
        trouble.mend(archive_disk)
        assert (await Drain(app).run()).collected.stored == 3


@fault("F2", "F3", "F8", "F11", "F15")
@pytest.mark.parametrize(
    ("call", "at", "error", "words"),
    [
        ("fsync", 2, "EDQUOT", "the disk quota is used up (EDQUOT)"),
        ("fsync", 2, "EIO", "the disk reports errors (EIO)"),
        ("mkdirat", 2, "EACCES", "no permission (EACCES)"),
        ("linkat", 1, "ENOSPC", "the disk is full (ENOSPC)"),
        ("linkat", 1, "EXDEV", "lie on different file systems"),
        ("linkat", 1, "EPERM", "has no hard links (EPERM)"),  # as on vfat
    ],
)
async def test_a_step_of_storing_that_fails_leaves_no_file_and_no_row_and_is_done_again(
    scene: Scene, call: str, at: int, error: str, words: str
) -> None:
    order = scene.order("placed")
    await scene.drain()
    scene.lune.move_order(order.id, "complete")
    ran, report = await run_with_fault(scene, f"--only={call}", f"--at={at}", f"--fault={error}")
    assert report["hit"].startswith(f"{call} ")
    assert ran.code == 3
    assert words in ran.err
    assert str(scene.home.archive) in ran.err
    assert scene.home.files() == set()
    assert not list((scene.home.archive / ".incoming").iterdir())
    assert (await scene.drain()).collected.stored == 1
    assert scene.proxy.count("certificate") == 2  # the whole of it was fetched again


@fault("F4")
@pytest.mark.parametrize("at", [3, 5])
async def test_a_file_whose_folder_is_not_synced_has_no_row_and_is_recovered(
    scene: Scene, at: int
) -> None:
    order = scene.order("placed")
    await scene.drain()
    scene.lune.move_order(order.id, "complete")
    ran, report = await run_with_fault(scene, "--only=fsync", f"--at={at}", "--fault=EIO")
    assert report["hit"].startswith(f"fsync {scene.home.archive}")
    assert ran.code == 3
    assert "the disk reports errors (EIO)" in ran.err
    assert len(scene.home.files()) == 1
    assert query(scene, "SELECT certificate_state FROM orders") == [("owed",)]
    assert (await scene.drain()).collected.recovered == 1


@fault("F7")
@pytest.mark.parametrize("descriptors", [16, 20])
async def test_a_process_with_too_few_descriptors_ends_by_itself_and_loses_nothing(
    scene: Scene, descriptors: int
) -> None:
    for _ in range(4):
        scene.order()
    await scene.drain(OrderFilter(until=datetime(2000, 1, 1, tzinfo=UTC)))  # makes all but files
    assert scene.home.files() == set()
    need(shutil.which("prlimit"), "prlimit")
    limited = ("prlimit", f"--nofile={descriptors}", HARVESTER)
    ran = await scene.home.run("run", "--drain", program=limited)
    scene.keep(ran.err)
    assert len(scene.home.files()) < 4
    assert ran.code in {1, 3}
    assert "files" in ran.err  # too many open
    assert set(query(scene, "SELECT certificate_state FROM orders")) <= {("owed",), ("stored",)}
    await scene.drain()
    assert len(scene.home.files()) == 4


@fault("F18")
async def test_a_write_that_takes_only_a_part_is_not_taken_for_a_whole_one(scene: Scene) -> None:
    need(shutil.which("prlimit"), "prlimit")
    scene.order()

    def longer(body: bytes) -> bytes:
        end = body.rindex(b"xref\n", 0, body.rindex(b"startxref"))
        padded = body[:end] + b"%" + b"x" * 2_000_000 + b"\n" + body[end:]
        return padded.replace(b"startxref\n%d" % end, b"startxref\n%d" % (end + 2_000_002))

    scene.proxy.script(changed(longer), "certificate", times=2)
    # The first write takes a million bytes and says so; only the second one fails.
    limited = ("prlimit", "--fsize=1000000", HARVESTER)
    ran = await scene.home.run("run", "--drain", program=limited)
    scene.keep(ran.err)
    assert ran.code == 3
    assert "EFBIG" in ran.err
    assert scene.home.files() == set()
    assert (await scene.drain()).collected.bytes > 2_000_000
