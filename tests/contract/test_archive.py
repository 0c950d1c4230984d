"""What any archive must do, whatever keeps its files. A new kind joins by its fixture."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from harvester.archive.directory import DirectoryArchive
from harvester.domain.orders import StoredFile
from harvester.domain.ports import Archive

KEY = "acct/2026-01/ORDER.pdf"


def stored(key: str, data: bytes) -> StoredFile:
    return StoredFile(key, hashlib.sha256(data).hexdigest(), len(data))


async def directory(folder: Path) -> AsyncIterator[Archive]:
    archive = DirectoryArchive(folder / "certificates")
    await archive.prepare(create=True)
    yield archive
    await archive.close()


@pytest.fixture(params=[directory], ids=["directory"])
async def archive(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Archive]:
    async for made in request.param(tmp_path):
        yield made


@pytest.mark.parametrize("data", [b"", b"%PDF-1.7 one", bytes(range(256)) * 20_000])
async def test_what_was_put_is_read_back(archive: Archive, data: bytes) -> None:
    assert await archive.put(KEY, data) == stored(KEY, data)
    assert await archive.read(KEY) == data


async def test_a_key_that_was_never_put_reads_as_none(archive: Archive) -> None:
    await archive.put(KEY, b"one")
    assert await archive.read("acct/2026-01/OTHER.pdf") is None
    assert await archive.read("nobody/2026-01/ORDER.pdf") is None


async def test_the_same_bytes_again_are_found(archive: Archive) -> None:
    await archive.put(KEY, b"one")
    assert await archive.put(KEY, b"one") == stored(KEY, b"one")


@pytest.mark.parametrize("other", [b"", b"two", b"one and more", b"on"])
async def test_other_bytes_are_refused_and_the_first_stay(archive: Archive, other: bytes) -> None:
    await archive.put(KEY, b"one")
    assert await archive.put(KEY, other) is None
    assert await archive.read(KEY) == b"one"


async def test_versions_of_one_order_lie_side_by_side(archive: Archive) -> None:
    keys = {f"acct/2026-01/ORDER{suffix}.pdf": suffix.encode() for suffix in ("", ".v2", ".v3")}
    for key, data in keys.items():
        await archive.put(key, data)
    assert {key: await archive.read(key) for key in keys} == keys


async def test_many_puts_of_the_same_bytes_at_once_all_find_them(archive: Archive) -> None:
    answers = await asyncio.gather(*(archive.put(KEY, b"one" * 50_000) for _ in range(20)))
    assert set(answers) == {stored(KEY, b"one" * 50_000)}


async def test_of_many_different_puts_at_once_exactly_one_wins(archive: Archive) -> None:
    bodies = [f"body {number}".encode() * 10_000 for number in range(20)]
    answers = await asyncio.gather(*(archive.put(KEY, body) for body in bodies))
    winners = [body for body, answer in zip(bodies, answers, strict=True) if answer is not None]
    assert len(winners) == 1
    assert await archive.read(KEY) == winners[0]


async def test_puts_to_many_new_folders_at_once_all_arrive(archive: Archive) -> None:
    keys = [f"acct{number % 3}/2026-{number:02}/ORDER.pdf" for number in range(1, 13)]
    await asyncio.gather(*(archive.put(key, key.encode()) for key in keys))
    assert [await archive.read(key) for key in keys] == [key.encode() for key in keys]


async def test_a_cancelled_put_leaves_a_whole_file_or_nothing(archive: Archive) -> None:
    body = b"whole" * 100_000
    keys = [f"acct/2026-01/ORDER{number}.pdf" for number in range(12)]
    for number, key in enumerate(keys):
        put = asyncio.create_task(archive.put(key, body))
        for _ in range(number % 4):
            await asyncio.sleep(0)
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put
    # What went on in the background is found, not fought over.
    for key in keys:
        assert await archive.read(key) in {None, body}
        assert await archive.put(key, body) == stored(key, body)


@pytest.mark.parametrize(
    "key",
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
async def test_a_key_that_is_no_name_below_the_root_is_an_error(archive: Archive, key: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - some are raised by the codec, all mean the same
        await archive.put(key, b"one")
    with pytest.raises(ValueError):  # noqa: PT011 - some are raised by the codec, all mean the same
        await archive.read(key)


async def test_quarantine_takes_the_same_bytes_twice_and_any_name(archive: Archive) -> None:
    for name in ("ORDER", "ORDER", "", "..", "../../etc/passwd", "x" * 5000, "nul\0", "\ud800"):
        await archive.quarantine(name, b"<html>", "not a whole PDF: \ud800\n")


async def test_what_is_in_quarantine_is_not_a_certificate(archive: Archive) -> None:
    await archive.quarantine("ORDER", b"<html>", "not a whole PDF")
    assert await archive.read("ORDER.pdf") is None
    assert await archive.put("ORDER.pdf", b"one") == stored("ORDER.pdf", b"one")
