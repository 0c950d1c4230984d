"""The folder archive when its disk is full, read-only or gone, or its process at a limit.

What needs a disk or limits of its own runs as a child: this file, as a program.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from harvester.archive.directory import DirectoryArchive
from harvester.domain.errors import StorageUnavailable
from tests.needs import cannot

PATH = "acct/2026-01/ORDER.pdf"
BODY = b"certificate" * 5_000
ENVIRONMENT = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}


def child(*arguments: str | Path, under: tuple[str, ...] = ()) -> tuple[str, ...]:
    return (*under, sys.executable, str(Path(__file__)), *map(str, arguments))


def finish(command: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=ENVIRONMENT, check=False
    )


async def refusal(action: Awaitable[object]) -> str:
    try:
        await action
    except StorageUnavailable as refused:
        return str(refused)
    raise AssertionError("it was not refused")


def file_names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# Disks of their own: each child mounts one in its own mount namespace.


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


async def full_disk(folder: Path) -> None:
    mount("-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder))
    archive = DirectoryArchive(folder)
    await archive.prepare(create=True)
    await archive.put(PATH, BODY)
    assert "the disk is full (ENOSPC)" in await refusal(archive.put("acct/big.pdf", BODY * 9))
    assert file_names(folder) == [PATH]
    (folder / "ballast").write_bytes(b"x" * (await archive.free_bytes()))
    assert "ENOSPC" in await refusal(archive.put("acct/2026-01/SMALL.pdf", b"one"))
    assert "ENOSPC" in await refusal(archive.probe())
    await archive.quarantine("ORDER", BODY, "never raises")
    assert await archive.read(PATH) == BODY
    (folder / "ballast").unlink()
    assert await archive.put("acct/2026-01/SMALL.pdf", b"one") is not None
    assert not list((folder / ".incoming").iterdir())
    await archive.close()


async def disk_without_inodes(folder: Path) -> None:
    mount("-t", "tmpfs", "-o", "size=1m,nr_inodes=12", "tmpfs", str(folder))
    archive = DirectoryArchive(folder)
    await archive.prepare(create=True)
    stored = 0
    for number in range(12):
        try:
            await archive.put(f"acct/{number}.pdf", b"one")
            stored += 1
        except StorageUnavailable as refused:
            assert "ENOSPC" in str(refused)  # noqa: PT017 - how many fit is the kernel's affair
    assert 0 < stored < 12
    assert len(file_names(folder)) == stored
    await archive.close()


async def read_only_disk(folder: Path) -> None:
    mount("-t", "tmpfs", "tmpfs", str(folder))
    archive = DirectoryArchive(folder)
    await archive.prepare(create=True)
    await archive.put(PATH, BODY)
    mount("-o", "remount,ro", str(folder))
    for action in (archive.put("acct/NEXT.pdf", b"one"), archive.probe()):
        assert "the file system is read-only (EROFS)" in await refusal(action)
    assert "EROFS" in await refusal(archive.remove_to_quarantine(PATH, "changed"))
    await archive.quarantine("ORDER", BODY, "never raises")
    assert await archive.read(PATH) == BODY
    mount("-o", "remount,rw", str(folder))
    assert await archive.put("acct/NEXT.pdf", b"one") is not None
    await archive.close()


async def absent_disk(folder: Path) -> None:
    mount("-t", "tmpfs", "tmpfs", str(folder))
    archive = DirectoryArchive(folder)
    await archive.prepare(create=True)
    subprocess.run(["umount", str(folder)], check=True)
    assert "mount its disk" in await refusal(archive.put(PATH, BODY))
    assert not list(folder.iterdir())
    await archive.close()


async def two_disks(folder: Path) -> None:
    archive = DirectoryArchive(folder)
    await archive.prepare(create=True)
    mount("-t", "tmpfs", "tmpfs", str(folder / ".incoming"))
    for action in (archive.put(PATH, BODY), archive.probe()):
        assert "different file systems; keep the archive on one (EXDEV)" in await refusal(action)
    await archive.close()


async def two_disks_by_account(folder: Path) -> None:
    archive = DirectoryArchive(folder)
    await archive.prepare(create=True)
    (folder / "acct").mkdir()
    mount("-t", "tmpfs", "tmpfs", str(folder / "acct"))
    assert "EXDEV" in await refusal(archive.put(PATH, BODY))
    await archive.probe()
    await archive.close()


DISKS = (
    full_disk,
    disk_without_inodes,
    read_only_disk,
    absent_disk,
    two_disks,
    two_disks_by_account,
)


@pytest.mark.parametrize("disk", DISKS, ids=lambda disk: disk.__name__)
def test_a_disk_that_cannot_take_files_says_so_and_loses_none(
    tmp_path: Path, disk: Callable[[Path], Awaitable[None]]
) -> None:
    own = ("unshare", "-m")
    if shutil.which("unshare") is None:
        cannot("unshare is not installed")
    if finish((*own, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path))).returncode != 0:
        cannot("this machine does not let us mount a tmpfs")
    done = finish(child(disk.__name__, tmp_path, under=own))
    assert done.returncode == 0, done.stderr


# Limits of the process.


async def prepared(folder: Path) -> None:
    archive = DirectoryArchive(folder)
    await archive.prepare(create=True)
    await archive.close()


async def few_descriptors(folder: Path) -> None:
    archive = DirectoryArchive(folder)
    await archive.put(PATH, BODY)
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    try:
        while True:
            taken.append(os.open(folder, os.O_RDONLY))
    except OSError as full:
        assert full.errno == errno.EMFILE  # noqa: PT017 - this is the state to be in
    for freed in range(4):  # each further step of a put gets a little further
        answer = await refusal(archive.put("acct/2026-01/NEXT.pdf", BODY))
        assert "this process has too many open files (EMFILE)" in answer, freed
        os.close(taken.pop())
    while taken:
        os.close(taken.pop())
    assert await archive.put("acct/2026-01/NEXT.pdf", BODY) is not None
    assert not list((folder / ".incoming").iterdir())
    await archive.close()


async def short_writes(folder: Path) -> None:
    archive = DirectoryArchive(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    # The first write takes 100 000 bytes of it and says so; only the second one fails.
    assert "EFBIG" in await refusal(archive.put(PATH, BODY * 3))
    assert file_names(folder) == []
    await archive.close()


@pytest.mark.parametrize("limit", [few_descriptors, short_writes], ids=lambda limit: limit.__name__)
def test_a_process_at_its_limits_says_so_and_leaves_nothing_half(
    tmp_path: Path, limit: Callable[[Path], Awaitable[None]]
) -> None:
    asyncio.run(prepared(tmp_path))
    done = finish(child(limit.__name__, tmp_path))
    assert done.returncode == 0, done.stderr


PARTS: dict[str, Callable[[Path], Awaitable[None]]] = {
    part.__name__: part for part in (*DISKS, few_descriptors, short_writes)
}


async def _play(part: str, folder: str) -> None:
    await PARTS[part](Path(folder))


if __name__ == "__main__":
    asyncio.run(_play(sys.argv[1], sys.argv[2]))
