"""Other users of the same machine: what they may read of ours."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.catalogue import fault
from tests.faults.proxy import response, saying
from tests.faults.scene import Scene


@pytest.fixture
def open_umask() -> Iterator[None]:
    """Let this process, and what it starts, create files that everybody may read and write."""
    before = os.umask(0)
    yield
    os.umask(before)


def exposed(folder: Path) -> list[str]:
    """Return what group or others may read, write or enter, the folder itself included."""
    return [
        f"{stat.S_IMODE(path.lstat().st_mode):o} {path.relative_to(folder.parent)}"
        for path in (folder, *folder.rglob("*"))
        if path.lstat().st_mode & 0o077
    ]


@fault("X19")
async def test_nobody_else_reads_the_ledger_or_the_certificates_whatever_the_umask(
    scene: Scene, open_umask: None
) -> None:
    good, bad = scene.order(), scene.order()
    page = saying(response(200, b"<html>no certificate</html>" * 20, "text/html"))
    scene.proxy.script(page, "certificate", times=4)
    await scene.command("run", "--drain")
    scene.proxy.clear()
    assert (await scene.command("retry", "--all")).code == 0
    assert (await scene.command("run", "--drain")).code == 0
    assert len(scene.home.files()) == len({good.id, bad.id})
    assert list((scene.home.archive / "quarantine").iterdir())
    assert exposed(scene.home.archive) == []
    assert exposed(scene.home.ledger.parent) == []


@fault("X19")
async def test_what_is_written_out_is_for_the_one_who_asked(
    scene: Scene, open_umask: None, tmp_path: Path
) -> None:
    scene.order()
    await scene.drain()
    written = [tmp_path / name for name in ("backup.db", "report.json", "orders.csv")]
    assert (await scene.command("db", "backup", written[0])).code == 0
    assert (await scene.command("run", "--drain", "--report", written[1])).code == 0
    assert (await scene.command("export", "--format", "csv", "-o", written[2])).code == 0
    assert [one for path in written for one in exposed(path)] == []


@fault("X19")
async def test_nobody_else_talks_to_the_daemon(scene: Scene, open_umask: None) -> None:
    async with scene.home.daemon() as running:
        sockets = [path for path in scene.home.folder.rglob("*") if path.is_socket()]
        assert sockets
        for path in sockets:
            assert exposed(path) == []
            with socket.socket(socket.AF_UNIX) as one:
                one.connect(str(path))
        assert exposed(scene.home.ledger.parent) == []
        scene.keep((await running.end()).err)
