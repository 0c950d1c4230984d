"""Who reads the archive: the harvester alone, until an operator opens it to the group."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from harvester.archive.directory import DirectoryArchive

EARLIER, LATER = "acct/2026-01/ORDER1.pdf", "acct/2026-02/ORDER2.pdf"


def modes(root: Path) -> dict[str, int]:
    return {
        str(path.relative_to(root)): stat.S_IMODE(path.lstat().st_mode) for path in root.rglob("*")
    }


def open_to_the_group(root: Path) -> None:
    """Do what ``chmod -R g+rX`` does."""
    for path in (root, *root.rglob("*")):
        path.chmod(path.stat().st_mode | (0o050 if path.is_dir() else 0o040))


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
async def test_an_archive_that_was_opened_to_the_group_stays_so_for_what_is_stored_later(
    tmp_path: Path,
) -> None:
    root = tmp_path / "certificates"
    archive = DirectoryArchive(root)
    await archive.prepare(create=True)
    await archive.put(EARLIER, b"one")
    open_to_the_group(root)
    await archive.put(LATER, b"two")
    await archive.close()
    assert modes(root) == {
        ".incoming": 0o750,
        "acct": 0o750,
        "acct/2026-01": 0o750,
        EARLIER: 0o640,
        "acct/2026-02": 0o750,
        LATER: 0o640,
    }


async def test_a_root_that_others_may_enter_opens_nothing_by_itself(tmp_path: Path) -> None:
    root = tmp_path / "certificates"
    root.mkdir(mode=0o755)
    archive = DirectoryArchive(root)
    await archive.prepare(create=True)
    await archive.put(EARLIER, b"one")
    await archive.close()
    assert set(modes(root).values()) == {0o700, 0o600}


async def test_nothing_is_ever_opened_for_writing_or_to_everybody(tmp_path: Path) -> None:
    root = tmp_path / "certificates"
    archive = DirectoryArchive(root)
    await archive.prepare(create=True)
    (root / ".incoming").chmod(0o777)
    await archive.put(EARLIER, b"one")
    await archive.close()
    assert modes(root)["acct"] == 0o750
    assert modes(root)[EARLIER] == 0o640
