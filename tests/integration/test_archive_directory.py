"""The folder archive on a real disk: modes, links, leftovers, quarantine, a root that goes away."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from harvester.archive.directory import DirectoryArchive
from harvester.domain.errors import StorageUnavailable
from harvester.domain.orders import StoredFile

PATH = "acct/2026-01/ORDER.pdf"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "certificates"


@pytest.fixture
async def archive(root: Path) -> AsyncIterator[DirectoryArchive]:
    made = DirectoryArchive(root)
    await made.prepare(create=True)
    yield made
    await made.close()


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


async def paths_of(archive: DirectoryArchive) -> list[str]:
    return [path async for path in archive.paths()]


@pytest.mark.usefixtures("umask")
async def test_folders_are_0700_and_files_0600_at_any_umask(tmp_path: Path) -> None:
    archive = DirectoryArchive(tmp_path / "above" / "certificates")
    await archive.prepare(create=True)
    await archive.put(PATH, b"one")
    await archive.quarantine("ORDER", b"<html>", "not a whole PDF")
    await archive.close()
    for path in (tmp_path / "above").rglob("*"):
        assert mode(path) == (0o700 if path.is_dir() else 0o600), path
    assert mode(tmp_path / "above") == 0o700


async def test_a_finished_put_leaves_nothing_but_the_file(
    archive: DirectoryArchive, root: Path
) -> None:
    await archive.put(PATH, b"one")
    await archive.put(PATH, b"one")
    await archive.put(PATH, b"two")
    await archive.probe()
    assert names(root) == [".incoming", "acct"]
    assert names(root / ".incoming") == []
    assert archive.locate(PATH) == root / PATH
    assert (root / PATH).stat().st_nlink == 1


async def test_a_missing_or_empty_root_is_set_up_only_when_asked_to(root: Path) -> None:
    archive = DirectoryArchive(root)
    with pytest.raises(StorageUnavailable, match=r"does not exist: mount its disk.*/\.incoming"):
        await archive.prepare(create=False)
    assert not root.exists()
    root.mkdir()
    with pytest.raises(StorageUnavailable, match=r"is empty: mount its disk.*/\.incoming"):
        await archive.prepare(create=False)
    with pytest.raises(StorageUnavailable, match="mount its disk"):
        await archive.probe()
    assert names(root) == []
    await archive.prepare(create=True)
    await archive.prepare(create=False)
    assert await archive.put(PATH, b"one") is not None
    await archive.close()


async def test_the_root_may_be_a_link_the_operator_made(tmp_path: Path, root: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    root.symlink_to("elsewhere")
    archive = DirectoryArchive(root)
    await archive.prepare(create=True)
    await archive.put(PATH, b"one")
    await archive.close()
    assert (tmp_path / "elsewhere" / PATH).read_bytes() == b"one"


async def test_a_root_that_vanished_is_not_remade_and_is_used_again_once_back(
    archive: DirectoryArchive, root: Path, tmp_path: Path
) -> None:
    await archive.put(PATH, b"one")
    root.rename(tmp_path / "away")
    with pytest.raises(StorageUnavailable, match=f"open the archive {root}: it is gone"):
        await archive.put("acct/2026-01/NEXT.pdf", b"two")
    for answer in (archive.read(PATH), archive.digest(PATH), archive.probe(), archive.free_bytes()):
        with pytest.raises(StorageUnavailable, match="gone"):
            await answer
    await archive.quarantine("ORDER", b"<html>", "never raises")
    assert not root.exists()
    (tmp_path / "away").rename(root)
    assert await archive.put("acct/2026-01/NEXT.pdf", b"two") is not None
    assert await archive.read(PATH) == b"one"


async def test_an_empty_folder_in_place_of_the_root_is_taken_for_an_absent_disk(
    archive: DirectoryArchive, root: Path, tmp_path: Path
) -> None:
    root.rename(tmp_path / "disk")
    root.mkdir()
    with pytest.raises(StorageUnavailable, match=r"no \.incoming folder.*mount its disk"):
        await archive.put(PATH, b"one")
    with pytest.raises(StorageUnavailable, match="mount its disk"):
        await archive.read(PATH)
    assert names(root) == []


async def test_the_folder_a_restored_archive_came_without_is_made(root: Path) -> None:
    (root / "acct").mkdir(parents=True)
    (root / "acct" / "ORDER.pdf").write_bytes(b"one")
    archive = DirectoryArchive(root)
    await archive.prepare(create=False)
    assert await archive.read("acct/ORDER.pdf") == b"one"
    assert await archive.put(PATH, b"one") is not None
    await archive.close()


async def test_a_root_made_again_is_used_after_a_probe_and_one_that_is_a_link_is_not(
    archive: DirectoryArchive, root: Path, tmp_path: Path
) -> None:
    root.rename(tmp_path / "away")
    root.mkdir()
    await archive.probe()
    assert await archive.put(PATH, b"one") is not None
    root.rename(tmp_path / "away too")
    (tmp_path / "outside").mkdir()
    root.symlink_to(tmp_path / "outside")
    with pytest.raises(StorageUnavailable, match=r"no \.incoming folder"):
        await archive.probe()
    assert names(tmp_path / "outside") == []


@pytest.mark.parametrize("planted", ["acct", "acct/2026-01"])
async def test_a_planted_link_to_a_folder_is_not_entered(
    archive: DirectoryArchive, root: Path, tmp_path: Path, planted: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / planted).parent.mkdir(exist_ok=True)
    (root / planted).symlink_to(outside)
    with pytest.raises(StorageUnavailable, match=f"enter {root / planted}: .*links are not"):
        await archive.put(PATH, b"one")
    with pytest.raises(StorageUnavailable, match="links are not"):
        await archive.read(PATH)
    assert list(outside.iterdir()) == []
    assert names(root / ".incoming") == []


@pytest.mark.parametrize("planted", [".incoming", "quarantine"])
async def test_links_in_place_of_the_archive_s_own_folders_are_not_entered(
    archive: DirectoryArchive, root: Path, tmp_path: Path, planted: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    if planted == ".incoming":
        (root / ".incoming").rmdir()
    (root / planted).symlink_to(outside)
    await archive.quarantine("ORDER", b"<html>", "not a whole PDF")
    if planted == ".incoming":
        with pytest.raises(StorageUnavailable, match=r"\.incoming: .*links are not"):
            await archive.put(PATH, b"one")
        with pytest.raises(StorageUnavailable, match=r"\.incoming: .*links are not"):
            await archive.prepare(create=True)
    assert list(outside.iterdir()) == []


async def test_a_link_or_pipe_under_a_final_name_is_neither_followed_nor_waited_for(
    archive: DirectoryArchive, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "target").write_bytes(b"one")
    (root / "link.pdf").symlink_to(tmp_path / "target")
    (root / "dangling.pdf").symlink_to(tmp_path / "nowhere")
    os.mkfifo(root / "pipe.pdf")
    (root / "folder.pdf").mkdir()
    for path in ("link.pdf", "dangling.pdf", "pipe.pdf", "folder.pdf"):
        with pytest.raises(StorageUnavailable, match=path):
            await archive.put(path, b"one")
        with pytest.raises(StorageUnavailable, match=path):
            await archive.digest(path)
    assert not (tmp_path / "nowhere").exists()
    assert await paths_of(archive) == ["dangling.pdf", "link.pdf", "pipe.pdf"]


async def test_a_file_where_a_folder_should_be_is_named(
    archive: DirectoryArchive, root: Path
) -> None:
    (root / "acct").write_bytes(b"")
    with pytest.raises(StorageUnavailable, match=f"enter {root / 'acct'}: .*not a folder"):
        await archive.put(PATH, b"one")


async def test_leftovers_of_a_crash_are_removed_and_whole_files_stay(
    archive: DirectoryArchive, root: Path
) -> None:
    await archive.put(PATH, b"one")
    # Linked, and killed before the temporary was removed: one file under two names.
    os.link(root / PATH, root / ".incoming" / "linked.part")
    for number in range(2000):
        (root / ".incoming" / f"{number}.part").write_bytes(b"half")
    assert await archive.remove_temporaries() == 2001
    assert names(root / ".incoming") == []
    assert await archive.read(PATH) == b"one"
    assert await archive.put(PATH, b"one") is not None
    assert await archive.remove_temporaries() == 0


async def test_every_file_is_listed_but_what_is_not_ours(
    archive: DirectoryArchive, root: Path
) -> None:
    stored = ["b/2026-01/A.pdf", "b/2026-02/A.pdf", "a/2026-01/Z.pdf", "a/2026-01/A.v2.pdf"]
    for path in stored:
        await archive.put(path, b"one")
    await archive.quarantine("ORDER", b"<html>", "not a whole PDF")
    (root / "a" / "read me.txt").write_bytes(b"unknown")
    (root / ".probe").write_bytes(b"of a probe that was killed")
    (root / "lost+found").mkdir()
    (root / "lost+found" / "#1").write_bytes(b"")
    (root / "a" / "quarantine").mkdir()
    (root / "a" / "quarantine" / "A.pdf").write_bytes(b"one")
    assert await paths_of(archive) == [
        "a/read me.txt",
        "a/2026-01/A.v2.pdf",
        "a/2026-01/Z.pdf",
        "a/quarantine/A.pdf",
        "b/2026-01/A.pdf",
        "b/2026-02/A.pdf",
    ]
    for path in await paths_of(archive):
        assert await archive.digest(path) is not None
    await archive.probe()
    assert not (root / ".probe").exists()


async def test_a_digest_is_of_the_file_as_it_is_now(archive: DirectoryArchive, root: Path) -> None:
    assert await archive.digest(PATH) is None
    body = os.urandom(3_000_000)
    assert await archive.digest(PATH) is None
    assert await archive.put(PATH, body) == await archive.digest(PATH)
    (root / PATH).write_bytes(b"rotten")
    assert await archive.digest(PATH) == StoredFile(PATH, hashlib.sha256(b"rotten").hexdigest(), 6)


async def test_a_changed_file_is_moved_away_and_its_name_is_free(
    archive: DirectoryArchive, root: Path
) -> None:
    await archive.put(PATH, b"one")
    (root / PATH).write_bytes(b"rotten")
    sha12 = hashlib.sha256(b"rotten").hexdigest()[:12]
    moved = await archive.remove_to_quarantine(PATH, "its SHA-256 changed")
    assert moved == root / "quarantine" / f"ORDER.{sha12}.pdf"
    assert moved.read_bytes() == b"rotten"
    reason = moved.with_name(f"ORDER.{sha12}.reason.txt")
    assert reason.read_text() == "its SHA-256 changed\n"
    assert await archive.remove_to_quarantine(PATH, "again") is None
    assert await archive.put(PATH, b"one") is not None
    assert await paths_of(archive) == [PATH]


async def test_rejected_bytes_are_kept_once_with_their_first_reason(
    archive: DirectoryArchive, root: Path
) -> None:
    await archive.quarantine("ORDER", b"<html>", "not a whole PDF")
    await archive.quarantine("ORDER", b"<html>", "another reason")
    stem = f"ORDER-{hashlib.sha256(b'<html>').hexdigest()[:12]}"
    assert names(root / "quarantine") == [f"{stem}.bin", f"{stem}.reason.txt"]
    assert (root / "quarantine" / f"{stem}.bin").read_bytes() == b"<html>"
    assert (root / "quarantine" / f"{stem}.reason.txt").read_text() == "not a whole PDF\n"


async def test_only_the_newest_ten_rejected_answers_of_a_name_are_kept(
    archive: DirectoryArchive, root: Path
) -> None:
    await archive.put(PATH, b"moved, and never dropped")
    moved = await archive.remove_to_quarantine(PATH, "changed")
    await archive.quarantine("ORDER-X", b"of another order", "not a whole PDF")
    for number in range(14):
        await archive.quarantine("ORDER", b"answer %d" % number, "not a whole PDF")
        for path in (root / "quarantine").glob("ORDER-*.bin"):
            if path.read_bytes() == b"answer %d" % number:
                os.utime(path, (number + 1, number + 1))
    bodies = {path.read_bytes() for path in (root / "quarantine").glob("*.bin")}
    assert bodies == {b"of another order", *(b"answer %d" % number for number in range(4, 14))}
    assert len(list((root / "quarantine").glob("*.reason.txt"))) == 12
    assert moved is not None
    assert moved.exists()


async def test_a_name_that_is_no_identifier_never_becomes_a_path(
    archive: DirectoryArchive, root: Path, tmp_path: Path
) -> None:
    await archive.quarantine("../../escaped", b"<html>", "not a whole PDF")
    assert names(tmp_path) == ["certificates"]
    assert all(name.startswith("unnamed-") for name in names(root / "quarantine"))


async def test_a_put_cancelled_while_it_waits_for_a_thread_never_happens(
    archive: DirectoryArchive, root: Path
) -> None:
    body = os.urandom(8_000_000)
    puts = [asyncio.create_task(archive.put(f"a/{n}.pdf", body)) for n in range(8)]
    await asyncio.sleep(0)
    for put in puts:
        put.cancel()
    await asyncio.gather(*puts, return_exceptions=True)
    await archive.close()
    assert names(root / ".incoming") == []
    assert all((root / path).read_bytes() == body for path in map(str, (root / "a").glob("*")))


async def test_free_bytes_and_a_second_close_are_uneventful(archive: DirectoryArchive) -> None:
    assert await archive.free_bytes() > 0
    await archive.close()
    await archive.close()
