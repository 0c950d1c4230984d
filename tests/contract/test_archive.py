"""What any archive must do, whatever keeps its files. A new kind joins by its fixture."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from harvester.archive.directory import DirectoryArchive
from harvester.domain.orders import StoredFile

PATH = "acct/2026-01/ORDER.pdf"


def stored(path: str, data: bytes) -> StoredFile:
    return StoredFile(path, hashlib.sha256(data).hexdigest(), len(data))


async def directory(folder: Path) -> AsyncIterator[DirectoryArchive]:
    archive = DirectoryArchive(folder / "certificates")
    await archive.prepare(create=True)
    yield archive
    await archive.close()


@pytest.fixture(params=[directory], ids=["directory"])
async def archive(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[DirectoryArchive]:
    async for made in request.param(tmp_path):
        yield made


@pytest.mark.parametrize("data", [b"", b"%PDF-1.7 one", bytes(range(256)) * 20_000])
async def test_what_was_put_is_read_back(archive: DirectoryArchive, data: bytes) -> None:
    assert await archive.put(PATH, data) == stored(PATH, data)
    assert await archive.read(PATH) == data


async def test_a_path_that_was_never_put_reads_as_none(archive: DirectoryArchive) -> None:
    await archive.put(PATH, b"one")
    assert await archive.read("acct/2026-01/OTHER.pdf") is None
    assert await archive.read("nobody/2026-01/ORDER.pdf") is None


async def test_the_same_bytes_again_are_found(archive: DirectoryArchive) -> None:
    await archive.put(PATH, b"one")
    assert await archive.put(PATH, b"one") == stored(PATH, b"one")


@pytest.mark.parametrize("other", [b"", b"two", b"one and more", b"on"])
async def test_other_bytes_are_refused_and_the_first_stay(
    archive: DirectoryArchive, other: bytes
) -> None:
    await archive.put(PATH, b"one")
    assert await archive.put(PATH, other) is None
    assert await archive.read(PATH) == b"one"


async def test_versions_of_one_order_lie_side_by_side(archive: DirectoryArchive) -> None:
    paths = {f"acct/2026-01/ORDER{suffix}.pdf": suffix.encode() for suffix in ("", ".v2", ".v3")}
    for path, data in paths.items():
        await archive.put(path, data)
    assert {path: await archive.read(path) for path in paths} == paths


async def test_many_puts_of_the_same_bytes_at_once_all_find_them(archive: DirectoryArchive) -> None:
    answers = await asyncio.gather(*(archive.put(PATH, b"one" * 50_000) for _ in range(20)))
    assert set(answers) == {stored(PATH, b"one" * 50_000)}


async def test_of_many_different_puts_at_once_exactly_one_wins(archive: DirectoryArchive) -> None:
    bodies = [f"body {number}".encode() * 10_000 for number in range(20)]
    answers = await asyncio.gather(*(archive.put(PATH, body) for body in bodies))
    winners = [body for body, answer in zip(bodies, answers, strict=True) if answer is not None]
    assert len(winners) == 1
    assert await archive.read(PATH) == winners[0]


async def test_puts_to_many_new_folders_at_once_all_arrive(archive: DirectoryArchive) -> None:
    paths = [f"acct{number % 3}/2026-{number:02}/ORDER.pdf" for number in range(1, 13)]
    await asyncio.gather(*(archive.put(path, path.encode()) for path in paths))
    assert [await archive.read(path) for path in paths] == [path.encode() for path in paths]


async def test_a_cancelled_put_leaves_a_whole_file_or_nothing(archive: DirectoryArchive) -> None:
    body = b"whole" * 100_000
    paths = [f"acct/2026-01/ORDER{number}.pdf" for number in range(12)]
    for number, path in enumerate(paths):
        put = asyncio.create_task(archive.put(path, body))
        for _ in range(number % 4):
            await asyncio.sleep(0)
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put
    # What went on in the background is found, not fought over.
    for path in paths:
        assert await archive.read(path) in {None, body}
        assert await archive.put(path, body) == stored(path, body)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/etc/passwd",
        "..",
        "../outside.pdf",
        "acct/../../outside.pdf",
        "acct//ORDER.pdf",
        "acct/",
        "./ORDER.pdf",
        "acct/.hidden.pdf",
        ".incoming/ORDER.pdf",
        "quarantine/ORDER.pdf",
        "acct/nul\0.pdf",
        "acct/\ud800.pdf",
        "acct/" + "x" * 252 + ".pdf",
    ],
)
async def test_a_path_that_is_no_name_below_the_root_is_an_error(
    archive: DirectoryArchive, path: str
) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - some are raised by the codec, all mean the same
        await archive.put(path, b"one")
    with pytest.raises(ValueError):  # noqa: PT011 - some are raised by the codec, all mean the same
        await archive.read(path)


async def test_quarantine_takes_the_same_bytes_twice_and_any_name(
    archive: DirectoryArchive,
) -> None:
    for name in ("ORDER", "ORDER", "", "..", "../../etc/passwd", "x" * 5000, "nul\0", "\ud800"):
        await archive.quarantine(name, b"<html>", "not a whole PDF: \ud800\n")


async def test_what_is_in_quarantine_is_not_a_certificate(archive: DirectoryArchive) -> None:
    await archive.quarantine("ORDER", b"<html>", "not a whole PDF")
    assert await archive.read("ORDER.pdf") is None
    assert await archive.put("ORDER.pdf", b"one") == stored("ORDER.pdf", b"one")
