"""Files and folders that are swapped, spoilt, taken or too open."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from harvester.app import App
from harvester.context import utc_now
from harvester.domain.certificate_names import DEFAULT_LAYOUT, CertificateNames
from harvester.harvest.verify import Finding, reopen, verify_archive
from harvester.runtime.drain import Drain
from harvester.sandbox.world import Order
from tests.faults.catalogue import fault
from tests.faults.disks import query
from tests.faults.scene import Scene

LONGEST_NAME = 120


def name_of(scene: Scene, order: Order) -> Path:
    """Return where an order's certificate is stored."""
    created = datetime.fromisoformat(str(scene.lune.document(order.id)["created_at"]))
    return scene.home.archive / CertificateNames(DEFAULT_LAYOUT).path(
        order.account_id, order.id, created, 1
    )


def nothing(archive: Path, outside: Path) -> None:
    """Leave the archive's place empty."""


def a_link(archive: Path, outside: Path) -> None:
    archive.symlink_to(outside)


def a_mount_point(archive: Path, outside: Path) -> None:
    archive.mkdir()


@fault("F9")
@pytest.mark.parametrize("instead", [nothing, a_link])
async def test_an_archive_swapped_under_a_running_harvester_takes_files_only_once_it_is_back(
    scene: Scene, tmp_path: Path, instead: Callable[[Path, Path], None]
) -> None:
    scene.order()
    outside = tmp_path / "outside"
    outside.mkdir()
    async with scene.open() as app:
        await Drain(app).run()
        scene.home.archive.rename(tmp_path / "away")
        instead(scene.home.archive, outside)
        scene.order()
        for _ in range(2):  # the second round tries the archive before it asks for certificates
            report = await Drain(app).run()
            assert report.collected.storage is not None
            assert str(scene.home.archive) in report.collected.storage
        assert list(outside.iterdir()) == []
        scene.home.archive.unlink(missing_ok=True)
        (tmp_path / "away").rename(scene.home.archive)
        assert (await Drain(app).run()).collected.stored == 1


@fault("F9")
@pytest.mark.parametrize("instead", [nothing, a_mount_point])
async def test_a_harvester_that_starts_without_its_disk_begins_no_other_archive(
    scene: Scene, tmp_path: Path, instead: Callable[[Path, Path], None]
) -> None:
    scene.order()
    await scene.drain()
    scene.home.archive.rename(tmp_path / "away")
    instead(scene.home.archive, tmp_path)
    scene.order()
    report = await scene.drain()
    assert str(scene.home.archive) in (report.collected.storage or "")
    assert report.swept.new == 1
    if scene.home.archive.exists():
        assert list(scene.home.archive.iterdir()) == []
        scene.home.archive.rmdir()
    (tmp_path / "away").rename(scene.home.archive)
    assert (await scene.drain()).collected.stored == 1


@fault("F10")
async def test_a_file_that_is_there_already_with_the_same_bytes_is_recovered(scene: Scene) -> None:
    path = name_of(scene, order := scene.order())
    body = scene.lune.certificate(order.id)
    assert body is not None
    path.parent.mkdir(parents=True)
    path.write_bytes(body)
    path.chmod(0o600)
    before = path.stat()
    assert (await scene.drain()).collected.recovered == 1
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@fault("F10")
async def test_a_file_that_is_there_already_with_other_bytes_is_left_alone(scene: Scene) -> None:
    path = name_of(scene, scene.order())
    path.parent.mkdir(parents=True)
    path.write_bytes(b"somebody's notes")
    path.chmod(0o600)
    assert (await scene.drain()).collected.stored == 1
    assert path.read_bytes() == b"somebody's notes"
    assert query(scene, "SELECT path FROM files") == [
        (str(path.with_suffix(".v2.pdf").relative_to(scene.home.archive)),)
    ]
    scene.excuse("I1", "the foreign file is planted and stays")


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


async def findings(app: App) -> list[Finding]:
    report = await verify_archive(app.database, app.archive)
    return [one.finding for one in report.discrepancies]


@fault("F13", "F14")
@pytest.mark.parametrize(
    ("spoil", "finding"),
    [
        (Path.unlink, Finding.MISSING),
        (lambda path: os.truncate(path, 100), Finding.CHANGED),
        (flip_a_bit, Finding.CHANGED),
    ],
    ids=["deleted", "cut", "rotten"],
)
async def test_a_spoilt_file_is_found_kept_apart_and_had_again(
    scene: Scene, spoil: Callable[[Path], object], finding: Finding
) -> None:
    path = name_of(scene, scene.order())
    scene.order()
    await scene.drain()
    whole = path.read_bytes()
    spoil(path)
    spoilt = path.read_bytes() if path.exists() else None
    async with scene.open() as app:
        report = await verify_archive(app.database, app.archive)
        assert [one.finding for one in report.discrepancies] == [finding]
        await reopen(app.database, app.archive, report.discrepancies, utc_now())
        await app.collector.run_once()
        assert await findings(app) == []
    assert path.read_bytes() == whole
    kept = [one.read_bytes() for one in scene.home.archive.glob("quarantine/*.pdf")]
    assert kept == ([] if spoilt is None else [spoilt])


@fault("F15")
async def test_names_fit_every_file_system_and_ids_that_differ_in_case_only_share_none(
    scene: Scene,
) -> None:
    created = datetime.fromisoformat("2026-03-01T12:00:00+00:00")
    path = CertificateNames(DEFAULT_LAYOUT).path(
        "A" * 64, "B" * 64, created, 9_999_999_999, interim=True
    )
    assert path.isascii()
    assert max(len(part) for part in path.split("/")) <= LONGEST_NAME
    # A file system that folds case answers the second of two such names as any that is taken.
    async with scene.open() as app:
        taken = CertificateNames(DEFAULT_LAYOUT).path("acct", "ORDER", created, 1)
        assert await app.archive.put(taken, b"one") is not None
        assert await app.archive.put(taken, b"two") is None
        assert await app.archive.read(taken) == b"one"
        assert await app.archive.remove_to_quarantine(taken, "a test's") is not None


@pytest.fixture(params=[0o000, 0o077, 0o022], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@fault("F16")
async def test_folders_and_files_are_their_owner_s_alone_whatever_the_umask(
    umask: int, scene: Scene, tmp_path: Path
) -> None:
    tmp_path.chmod(0o2755)  # what is made below inherits the group
    scene.order()
    await scene.drain()
    for top in (scene.home.archive, scene.home.ledger.parent):
        for path in (top, *top.rglob("*")):
            mode = stat.S_IMODE(path.lstat().st_mode) & 0o777
            assert mode == (0o700 if path.is_dir() else 0o600), path
