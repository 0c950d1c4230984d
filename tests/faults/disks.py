"""Disks that fill up, fall silent or fail a call, for the faults of files and the ledger."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tests.acceptance.harness import HARVESTER, Ran, until
from tests.faults.scene import Scene
from tests.needs import need

Command = tuple[str | Path, ...]

TRACER = Path(__file__).with_name("tracer.py")


def mount(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ``mount``; how it went is for the caller to see."""
    command = ["mount", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@contextmanager
def small_disk(at: Path, options: str = "size=1m") -> Iterator[Path]:
    """Put a disk of its own, in memory, under a folder."""
    can = os.geteuid() == 0 and shutil.which("mount") and shutil.which("umount")
    need(can, "root and mount, for a small disk of its own")
    at.mkdir(exist_ok=True)
    made = mount("-t", "tmpfs", "-o", f"mode=0700,{options}", "harvester-test", at)
    need(made.returncode == 0, f"a tmpfs: {made.stderr.strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


def remount(at: Path, options: str) -> None:
    """Change a disk under whoever uses it."""
    assert mount("-o", f"remount,{options}", at).returncode == 0


def fill(disk: Path) -> Path:
    """Leave no byte free; return the file to delete for room. Its name is not a certificate's."""
    ballast = disk / ".ballast"
    free = os.statvfs(disk)
    ballast.write_bytes(bytes(free.f_bavail * free.f_frsize))
    assert os.statvfs(disk).f_bavail == 0
    return ballast


def query(scene: Scene, statement: str) -> list[Any]:
    """Ask the ledger's file itself."""
    with closing(sqlite3.connect(scene.home.ledger)) as connection:
        return connection.execute(statement).fetchall()


async def run_with_fault(
    scene: Scene,
    *fault: str,
    arguments: tuple[str | Path, ...] = ("run", "--drain"),
    program: Command = (sys.executable, HARVESTER),
) -> tuple[Ran, dict[str, Any]]:
    """Run a command whose N-th call fails or kills it (``tracer.py``); return its report, too."""
    need(platform.machine() == "x86_64" and sys.platform == "linux", "Linux on x86-64, to trace")
    file = scene.home.folder / "fault.json"
    tracer: Command = (sys.executable, TRACER, "--report", file, *fault, *program)
    ran = await scene.home.run(*arguments, program=tracer)
    scene.keep(ran.err)
    report = json.loads(file.read_text())
    return Ran(report["code"], ran.out, ran.err), report


def strace(*options: str | Path) -> tuple[str, ...]:
    """Return strace with its options, for in front of a command; skip where it cannot trace."""
    need(shutil.which("strace"), "strace")
    trial = subprocess.run(["strace", "-qq", "-o/dev/null", "true"], check=False)
    need(trial.returncode == 0, "to be allowed to trace")
    return ("strace", "-f", "-qq", *map(str, options))


@contextmanager
def attached(pid: int, trace: Path, *options: str) -> Iterator[None]:
    """Have strace at a running process while inside."""
    command = [*strace("-o", trace, *options), "-p", str(pid)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


async def until_attached(pid: int) -> None:
    """Return once something traces every thread of a process."""
    await until(
        lambda: all("TracerPid:\t0\n" not in status.read_text() for status in _threads_of(pid)), 20
    )


def _threads_of(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/task").glob("*/status"))
