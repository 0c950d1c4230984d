"""A disk that is gone, read-only or full: tracking goes on, downloads resume by themselves."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from harvester.sandbox import Sandbox, SandboxOptions
from tests.acceptance.harness import Home, Running, until
from tests.needs import need


@pytest.fixture
async def lune() -> AsyncIterator[Sandbox]:
    options = SandboxOptions(orders=0, client_accounts=0, speed=0, rate_limit=0)
    async with Sandbox(options) as sandbox:
        yield sandbox


@pytest.fixture
def home(tmp_path: Path, lune: Sandbox) -> Home:
    lune.create_order("complete", hold=True)
    return Home(tmp_path, lune, harvest__sweep_interval="500ms")


@pytest.fixture
def disk(home: Home) -> Iterator[Path]:
    """The archive on a disk of its own, two MiB small."""
    can = os.geteuid() == 0 and shutil.which("mount") and shutil.which("umount")
    need(can, "root and mount, for a small disk of its own")
    home.archive.mkdir()
    made = _mount("-t", "tmpfs", "-o", "size=2m,mode=0700", "harvester-test", str(home.archive))
    need(made.returncode == 0, f"a tmpfs: {made.stderr.strip()}")
    try:
        yield home.archive
    finally:
        subprocess.run(["umount", "--lazy", str(home.archive)], check=True)


def _mount(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)


async def goes_on_tracking_and_resumes(
    home: Home,
    lune: Sandbox,
    daemon: Running,
    *,
    spoil: Callable[[], object],
    mend: Callable[[], object],
) -> None:
    """Spoil the archive under a running daemon, mend it, and hold it to what it promises."""
    await until(lambda: daemon.events("certificate stored"))
    spoil()
    late = lune.create_order("retiring", hold=True)
    lune.move_order(late.id, "complete")
    # It is said once, whatever it takes.
    (said,) = await until(lambda: daemon.events("archive unavailable"))
    assert str(home.archive) in said["reason"]
    placed = lune.create_order("placed", hold=True)
    await until(lambda: placed.id in _moved(daemon))
    lune.move_order(placed.id, "paid")
    await until(lambda: _moved(daemon).count(placed.id) == 2)
    row = (await home.orders())[late.id]
    assert (row["status"], row["certificate"]["state"]) == ("complete", "owed")
    asked = lune.journal.count("GET /orders/{id}/certificate")
    swept = len(daemon.events("sweep finished"))
    await until(lambda: len(daemon.events("sweep finished")) > swept + 1)
    assert lune.journal.count("GET /orders/{id}/certificate") == asked
    assert len(daemon.events("archive unavailable")) == 1
    mend()
    await until(lambda: len(daemon.events("certificate stored")) == 2)
    ended = await daemon.end()
    assert ended.code == 0
    rows = await home.orders()
    assert rows[late.id]["certificate"]["state"] == "stored"
    assert (await home.run("verify")).code == 0
    assert "Traceback" not in ended.err


def _moved(daemon: Running) -> list[str]:
    return [event["order"] for event in daemon.events("order moved")]


async def test_downloads_resume_when_a_folder_that_was_gone_is_back(
    home: Home, lune: Sandbox
) -> None:
    elsewhere = home.folder / "unmounted"
    async with home.daemon() as daemon:
        await goes_on_tracking_and_resumes(
            home,
            lune,
            daemon,
            spoil=lambda: home.archive.rename(elsewhere),
            mend=lambda: elsewhere.rename(home.archive),
        )


async def test_downloads_resume_when_a_full_disk_has_room_again(
    home: Home, lune: Sandbox, disk: Path
) -> None:
    filler = disk / ".filler"

    def fill() -> None:
        with filler.open("wb", 0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        assert os.statvfs(disk).f_bavail == 0

    async with home.daemon() as daemon:
        await goes_on_tracking_and_resumes(home, lune, daemon, spoil=fill, mend=filler.unlink)


async def test_downloads_resume_when_a_read_only_disk_is_writable_again(
    home: Home, lune: Sandbox, disk: Path
) -> None:
    def remount(mode: str) -> None:
        assert _mount("-o", f"remount,{mode}", str(disk)).returncode == 0

    async with home.daemon() as daemon:
        await goes_on_tracking_and_resumes(
            home, lune, daemon, spoil=lambda: remount("ro"), mend=lambda: remount("rw")
        )


async def test_doctor_says_that_a_read_only_archive_takes_no_files(
    home: Home, lune: Sandbox, disk: Path
) -> None:
    assert (await home.run("run", "--drain")).code == 0
    assert _mount("-o", "remount,ro", str(disk)).returncode == 0
    ran = await home.run("doctor", "--json")
    assert ran.code != 0
    (archive,) = [one for one in ran.document() if one["subject"] == "archive"]
    assert archive["level"] == "fail"
    assert "read-only" in archive["text"]
    assert str(disk) in archive["text"]


async def test_a_daemon_that_starts_without_its_archive_tracks_and_makes_no_other(
    home: Home, lune: Sandbox
) -> None:
    assert (await home.run("run", "--drain")).code == 0
    elsewhere = home.folder / "unmounted"
    home.archive.rename(elsewhere)
    late = lune.create_order("complete", hold=True)
    async with home.daemon() as daemon:
        await until(lambda: late.id in _moved(daemon))
        await until(lambda: daemon.events("archive unavailable"))
        assert not home.archive.exists()
        elsewhere.rename(home.archive)
        await until(lambda: daemon.events("certificate stored"))
        assert (await daemon.end()).code == 0


async def test_a_drain_without_its_archive_records_the_orders_and_exits_3(
    home: Home, lune: Sandbox
) -> None:
    assert (await home.run("run", "--drain")).code == 0
    home.archive.rename(home.folder / "unmounted")
    late = lune.create_order("complete", hold=True)
    ran = await home.run("run", "--drain", "--json")
    assert ran.code == 3
    report = ran.document()
    assert str(home.archive) in report["storage"]
    assert [one["id"] for one in report["certificates_missing"]] == [late.id]
    assert str(home.archive) in ran.err
    assert late.id in ran.err
    assert not home.archive.exists()
