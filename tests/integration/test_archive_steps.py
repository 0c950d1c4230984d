"""The steps of a put: watched, failed and killed one by one, and killed at random.

What is watched or killed runs as a child: this file, as a program.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
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
KILLS = 20
ENVIRONMENT = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}


def child(*arguments: str | Path, under: tuple[str, ...] = ()) -> tuple[str, ...]:
    return (*under, sys.executable, str(Path(__file__)), *map(str, arguments))


def finish(command: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=ENVIRONMENT, check=False
    )


def file_names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# The steps of one put, watched, failed and killed one by one.


async def prepared(folder: Path) -> None:
    archive = DirectoryArchive(folder)
    await archive.prepare(create=True)
    await archive.close()


async def one_put(folder: Path) -> None:
    archive = DirectoryArchive(folder)
    try:
        print("stored" if await archive.put(PATH, BODY) else "other bytes")  # noqa: T201 - read by the test that started it
    except StorageUnavailable as refused:
        print(refused)  # noqa: T201 - read by the test that started it
    await archive.close()


async def ticking_put(folder: Path) -> None:
    """Put while the loop counts how often it comes round."""
    archive = DirectoryArchive(folder)
    put = asyncio.create_task(archive.put(PATH, BODY))
    ticks = 0
    while not put.done():
        await asyncio.sleep(0.01)
        ticks += 1
    print(ticks)  # noqa: T201 - read by the test that started it
    await archive.close()


def traced(
    folder: Path, *options: str, part: str = "one_put"
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run one put under strace; return how it ended and its steps inside the archive."""
    if shutil.which("strace") is None:
        cannot("strace is not installed")
    trace = folder.with_name("trace")
    strace = ("strace", "-f", "-y", "-qq", "-o", str(trace))
    if finish((*strace, "true")).returncode != 0:
        cannot("this machine does not let us trace")
    asyncio.run(prepared(folder))
    watched = "-etrace=mkdirat,write,fchmod,fsync,linkat,unlinkat,close"
    done = finish(child(part, folder, under=(*strace, watched, *options)))
    lines = trace.read_text().splitlines()
    # The folder of pids and the random name of the temporary say nothing.
    steps = [re.sub(r"[0-9a-f]{32}\.part", "TEMP", line.split(maxsplit=1)[1]) for line in lines]
    return done, [step for step in steps if str(folder) in step]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "certificates"
    made.mkdir()
    return made


def test_a_put_syncs_the_file_links_it_and_syncs_every_folder_up_to_the_root(folder: Path) -> None:
    done, steps = traced(folder)
    assert done.stdout == "stored\n", done.stderr
    calls = [re.sub(rf"\d+<{re.escape(str(folder))}(.*?)>", r"<\1>", step) for step in steps]
    calls = [call.partition(" = ")[0].rstrip() for call in calls if not call.startswith("close")]
    assert [re.sub(r', ".{32}"\.\.\., \d+', "", call) for call in calls] == [
        "fchmod(</.incoming/TEMP>, 0600)",
        "write(</.incoming/TEMP>)",
        "fsync(</.incoming/TEMP>)",
        'mkdirat(<>, "acct", 0700)',
        "fchmod(</acct>, 0700)",
        'mkdirat(</acct>, "2026-01", 0700)',
        "fchmod(</acct/2026-01>, 0700)",
        'linkat(</.incoming>, "TEMP", </acct/2026-01>, "ORDER.pdf", 0)',
        "fsync(</acct/2026-01>)",
        "fsync(</acct>)",
        "fsync(<>)",
        'unlinkat(</.incoming>, "TEMP", 0)',
    ]


def test_a_disk_that_takes_seconds_holds_up_the_put_and_not_the_loop(folder: Path) -> None:
    done, _ = traced(folder, "-einject=fsync:delay_enter=500000", part="ticking_put")
    assert int(done.stdout) > 20, (
        done.stderr
    )  # four syncs of 0.5 s; a blocked loop comes round once


@pytest.mark.parametrize("known", [False, True], ids=["new", "found"])
def test_a_file_that_cannot_be_synced_is_not_synced_again(folder: Path, known: bool) -> None:
    if known:
        path = folder / PATH
        path.parent.mkdir(parents=True)
        path.write_bytes(BODY)
    nth = 2 if known else 1
    done, steps = traced(folder, f"-einject=fsync:error=EIO:when={nth}")
    assert "the disk reports errors (EIO)" in done.stdout, done.stderr
    synced = [step for step in steps if step.startswith("fsync")]
    assert len(synced) == nth
    assert ("ORDER.pdf" if known else "TEMP") in synced[-1]
    assert file_names(folder) == ([PATH] if known else [])


@pytest.mark.parametrize("nth", [2, 3, 4])
def test_a_folder_that_cannot_be_synced_means_not_stored_and_the_next_put_finds_it(
    folder: Path, nth: int
) -> None:
    done, _ = traced(folder, f"-einject=fsync:error=EIO:when={nth}")
    assert "the disk reports errors (EIO)" in done.stdout, done.stderr
    assert file_names(folder) == [PATH]
    done, _ = traced(folder)
    assert done.stdout == "stored\n"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("linkat:error=EPERM", "has no hard links (EPERM)"),
        ("linkat:error=EMLINK", "Too many links (EMLINK)"),
        ("fsync:error=EDQUOT", "the disk quota is used up (EDQUOT)"),
        ("mkdirat:error=EACCES", "no permission (EACCES)"),
        ("mkdirat:error=ENFILE", "the system has too many open files (ENFILE)"),
    ],
)
def test_any_other_fault_of_a_step_is_named_and_nothing_is_left(
    folder: Path, fault: str, words: str
) -> None:
    done, _ = traced(folder, f"-einject={fault}:when=1")
    assert words in done.stdout, done.stderr
    assert str(folder) in done.stdout
    assert file_names(folder) == []


STEPS_BEFORE_THE_LINK = (
    "fchmod:when=1",
    "write:when=1",
    "fsync:when=1",
    "mkdirat:when=1",
    "mkdirat:when=2",
    "fchmod:when=3",
    "linkat:when=1",
)
STEPS_AFTER_THE_LINK = ("fsync:when=2", "fsync:when=3", "fsync:when=4", "unlinkat:when=1")


@pytest.mark.parametrize("step", [*STEPS_BEFORE_THE_LINK, *STEPS_AFTER_THE_LINK])
async def test_a_put_killed_before_any_step_leaves_a_whole_file_or_none(
    folder: Path, step: str
) -> None:
    call, when = step.split(":")
    done, _ = await asyncio.to_thread(traced, folder, f"-einject={call}:signal=KILL:{when}")
    assert done.stdout == "", "it was not killed"
    assert len(list((folder / ".incoming").iterdir())) == 1
    archive = DirectoryArchive(folder)
    await archive.prepare(create=True)
    assert await archive.read(PATH) == (BODY if step in STEPS_AFTER_THE_LINK else None)
    assert await archive.remove_temporaries() == 1
    assert await archive.put(PATH, BODY) == await archive.digest(PATH)
    assert file_names(folder) == [PATH]
    await archive.close()


# Killed at random, over and over, on the same folder.


def certificate(number: int) -> tuple[str, bytes]:
    """Return the path and bytes of a made-up certificate: known from its number alone."""
    body = hashlib.sha256(str(number).encode()).digest() * (number % 40 * 1_000 + 1)
    return f"acct{number % 5}/2026-{number % 12 + 1:02}/ORDER{number}.pdf", body


async def many_puts(folder: Path) -> None:
    archive = DirectoryArchive(folder)
    await archive.prepare(create=True)
    number = int(sys.argv[3])
    while True:
        batch = range(number, number + 4)
        await asyncio.gather(*(archive.put(*certificate(one)) for one in batch))
        number = batch.stop
        print(number, flush=True)  # noqa: T201 - acknowledged: all before this number


async def test_killed_at_random_moments_every_file_is_whole_and_none_acknowledged_is_lost(
    tmp_path: Path,
) -> None:
    dice = random.Random(20260101)
    archive = DirectoryArchive(tmp_path)
    await archive.prepare(create=True)
    acknowledged = 0
    leftovers = 0
    for _ in range(KILLS):
        process = await asyncio.create_subprocess_exec(
            *child("many_puts", tmp_path, str(acknowledged)),
            stdout=subprocess.PIPE,
            env=ENVIRONMENT,
        )
        assert process.stdout is not None
        printed = b""
        for _ in range(dice.randint(1, 6)):
            printed += await process.stdout.readline()
        await asyncio.sleep(dice.uniform(0, 0.01))  # the moment is the point
        process.kill()
        printed += await process.stdout.read()
        await process.wait()
        acknowledged = max([acknowledged, *map(int, printed.split(b"\n")[:-1])])

        expected = dict(certificate(number) for number in range(acknowledged + 8))
        present = {path async for path in archive.paths()}
        assert present <= expected.keys()
        assert {certificate(number)[0] for number in range(acknowledged)} <= present
        for path in present:
            assert await archive.read(path) == expected[path]
        leftovers += await archive.remove_temporaries()
        assert not list((tmp_path / ".incoming").iterdir())
    await archive.close()
    assert acknowledged >= KILLS
    assert leftovers > 0, "no kill ever came in the middle of a put"


PARTS: dict[str, Callable[[Path], Awaitable[None]]] = {
    part.__name__: part for part in (one_put, ticking_put, many_puts)
}


async def _play(part: str, folder: str) -> None:
    await PARTS[part](Path(folder))


if __name__ == "__main__":
    asyncio.run(_play(sys.argv[1], sys.argv[2]))
