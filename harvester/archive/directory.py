"""Certificates in a folder: whole files under final names that survive a power cut."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from harvester.archive.durable import (
    INCOMING,
    OpenRoot,
    hash_file,
    link_new,
    make_incoming,
    make_root,
    open_file,
    open_root,
    staged,
    storage_faults,
    sync_upwards,
)
from harvester.archive.quarantine import keep_rejected, move_changed
from harvester.domain.certificate_names import QUARANTINE, is_layout_folder, split_key
from harvester.domain.errors import StorageUnavailable
from harvester.domain.orders import StoredFile

_THREADS = 2
_PROBE = ".probe"
_P = ParamSpec("_P")
_T = TypeVar("_T")


class DirectoryArchive:
    """An archive in the folder ``root`` of a local disk; the port is ``ports.Archive``.

    All file work runs in two threads of its own: a disk that takes seconds for an fsync holds up
    neither the event loop nor the name look-ups in the loop's default threads. A cancelled call
    goes on in its thread to its end, so it leaves a whole file or nothing. Call ``prepare`` first
    and ``close`` last. Keys that are not ``Layout`` keys are a ValueError; every fault of the disk
    is ``StorageUnavailable``.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._device: int | None = None
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="archive")

    async def prepare(self, *, create: bool) -> None:
        """Set the folder up; a missing one is made, mode 0700, only with ``create``.

        Idempotent. Without ``create`` a root that is missing or has nothing in it is
        ``StorageUnavailable``: it is the mount point of a disk that is absent.
        """
        await self._in_thread(self._prepare, create)

    async def put(self, key: str, data: bytes) -> StoredFile | None:
        """Store bytes under a key, durably; None when the key holds other bytes already."""
        (stored,) = await self.put_all([(key, data)])
        if isinstance(stored, StorageUnavailable):
            raise stored
        return stored

    async def put_all(
        self, files: Sequence[tuple[str, bytes]]
    ) -> list[StoredFile | StorageUnavailable | None]:
        """Store several files as ``put`` does; those in one folder share its fsync.

        A file that cannot be stored has its fault in its place; a folder that cannot be made
        durable is a fault of all, which is raised.
        """
        return await self._in_thread(self._put_all, files)

    async def existing(self, keys: Iterable[str]) -> set[str]:
        """Return those keys that something lies under."""
        return await self._in_thread(self._existing, list(keys))

    async def read(self, key: str) -> bytes | None:
        """Return the bytes under a key; None when there are none."""
        return await self._in_thread(self._read, key)

    async def digest(self, key: str) -> StoredFile | None:
        """Return what the file under a key is now, hashed afresh; None when there is none."""
        return await self._in_thread(self._digest, key)

    async def quarantine(self, name: str, data: bytes, reason: str) -> None:
        """Keep rejected bytes and the reason for inspection; best effort, never raises."""
        with contextlib.suppress(StorageUnavailable):
            await self._in_thread(self._quarantine, name, data, reason)

    async def remove_to_quarantine(self, key: str, reason: str) -> Path | None:
        """Move a file that is not what it should be out of the way, durably.

        Returns where it went; None when there is none under the key.
        """
        return await self._in_thread(self._remove_to_quarantine, key, reason)

    async def keys(self) -> AsyncIterator[str]:
        """Yield the key of every file, known or not, one folder at a time in order of names.

        Hidden names, ``quarantine`` and folders no layout can name are skipped. A symbolic link
        is yielded like a file, since one does not belong there, and is not followed.
        """
        pending = [""]
        while pending:
            folder = pending.pop()
            below, files = await self._in_thread(self._list, folder)
            pending.extend(f"{folder}{name}/" for name in sorted(below, reverse=True))
            for name in sorted(files):
                yield f"{folder}{name}"

    async def sweep_temporaries(self) -> int:
        """Remove what puts cut short by a crash left behind; return how many there were.

        A put that is running elsewhere fails cleanly when its temporary is swept.
        """
        return await self._in_thread(self._sweep)

    async def probe(self) -> None:
        """Try every step of a put on a small file; ``StorageUnavailable`` names what fails.

        A root that was emptied or made again on the same disk is set up anew.
        """
        await self._in_thread(self._probe)

    async def free_bytes(self) -> int:
        """Return how many bytes the disk still takes from this user."""
        return await self._in_thread(self._free_bytes)

    def path(self, key: str) -> Path:
        """Return the absolute path of a key, for showing."""
        split_key(key)
        return self._root / key

    async def close(self) -> None:
        """Wait for running work and end the threads. Idempotent."""
        await asyncio.to_thread(self._threads.shutdown)

    async def _in_thread(
        self, work: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: work(*args, **kwargs))

    def _prepare(self, create: bool) -> None:
        with storage_faults("set up the archive", self._root):
            if create:
                make_root(self._root)
            elif not self._root.exists():
                raise StorageUnavailable(
                    f"the archive {self._root} does not exist: mount its disk; if that is lost, "
                    f"make the folder {self._root / INCOMING} to begin anew"
                )
            elif not any(self._root.iterdir()):
                raise StorageUnavailable(
                    f"the archive {self._root} is empty: mount its disk; if that is lost, make "
                    f"the folder {self._root / INCOMING} to begin anew"
                )
            make_incoming(self._root)
            self._device = self._root.stat().st_dev

    def _put_all(
        self, files: Sequence[tuple[str, bytes]]
    ) -> list[StoredFile | StorageUnavailable | None]:
        stored: list[StoredFile | StorageUnavailable | None] = []
        chains: dict[tuple[str, ...], list[int]] = {}
        with (
            storage_faults("store in", self._root),
            open_root(self._root) as archive,
            contextlib.ExitStack() as temporaries,
        ):
            for key, data in files:
                try:
                    stored.append(self._link(archive, chains, temporaries, key, data))
                except StorageUnavailable as fault:
                    stored.append(fault)
            if any(isinstance(one, StoredFile) for one in stored):
                sync_upwards(chains.values())
        return stored

    def _link(
        self,
        archive: OpenRoot,
        chains: dict[tuple[str, ...], list[int]],
        temporaries: contextlib.ExitStack,
        key: str,
        data: bytes,
    ) -> StoredFile | None:
        """Give a synced file its final name; the folders in ``chains`` are still to be synced."""
        folders, name = split_key(key)
        sha256 = hashlib.sha256(data).hexdigest()
        path = self._root / key
        with storage_faults("store", path):
            temporary = temporaries.enter_context(staged(archive.incoming, data))
            chain = chains.get(tuple(folders))
            if chain is None:
                chain = chains[tuple(folders)] = archive.descend(folders, create=True)
            if not link_new(archive.incoming, temporary, chain[-1], name):
                with open_file(chain[-1], name, path) as existing:
                    if hash_file(existing)[0] != sha256:
                        return None
                    # Who put it there may have been cut off before it was durable.
                    os.fsync(existing)
        return StoredFile(key, sha256, len(data))

    def _existing(self, keys: list[str]) -> set[str]:
        found = set()
        with storage_faults("look into", self._root), open_root(self._root) as archive:
            for folders, names in _by_folder(keys).items():
                try:
                    folder = archive.descend(folders)[-1]
                except FileNotFoundError:
                    continue
                for key, name in names:
                    with contextlib.suppress(FileNotFoundError):
                        os.stat(name, dir_fd=folder, follow_symlinks=False)
                        found.add(key)
        return found

    def _read(self, key: str) -> bytes | None:
        return self._look(key, _read_whole)

    def _digest(self, key: str) -> StoredFile | None:
        found = self._look(key, hash_file)
        return None if found is None else StoredFile(key, *found)

    def _look(self, key: str, at: Callable[[int], _T]) -> _T | None:
        folders, name = split_key(key)
        path = self._root / key
        with storage_faults("read", path), open_root(self._root) as archive:
            try:
                with open_file(archive.descend(folders)[-1], name, path) as descriptor:
                    return at(descriptor)
            except FileNotFoundError:
                return None

    def _quarantine(self, name: str, data: bytes, reason: str) -> None:
        with (
            storage_faults("quarantine something in", self._root),
            open_root(self._root) as archive,
        ):
            keep_rejected(archive, name, data, reason)

    def _remove_to_quarantine(self, key: str, reason: str) -> Path | None:
        folders, name = split_key(key)
        path = self._root / key
        with storage_faults("move to quarantine", path), open_root(self._root) as archive:
            try:
                folder = archive.descend(folders)[-1]
                with open_file(folder, name, path) as descriptor:
                    sha256, _ = hash_file(descriptor)
            except FileNotFoundError:
                return None
            return self._root / move_changed(archive, folder, name, sha256, reason)

    def _list(self, folder: str) -> tuple[list[str], list[str]]:
        below: list[str] = []
        files: list[str] = []
        with storage_faults("list", self._root / folder), open_root(self._root) as archive:
            try:
                descriptor = archive.descend(folder.split("/")[:-1])[-1]
            except FileNotFoundError:  # removed since its parent was listed
                return below, files
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or (not folder and entry.name == QUARANTINE):
                        continue
                    if not entry.is_dir(follow_symlinks=False):
                        files.append(entry.name)
                    elif is_layout_folder(entry.name):
                        below.append(entry.name)
        return below, files

    def _sweep(self) -> int:
        with storage_faults("clear up", self._root), open_root(self._root) as archive:
            with os.scandir(archive.incoming) as entries:
                leftovers = [e.name for e in entries if not e.is_dir(follow_symlinks=False)]
            for name in leftovers:
                with contextlib.suppress(FileNotFoundError):  # its own put was faster
                    os.unlink(name, dir_fd=archive.incoming)
        return len(leftovers)

    def _probe(self) -> None:
        self._welcome_new_root()
        with (
            storage_faults("store a file in", self._root),
            open_root(self._root) as archive,
            staged(archive.incoming, b"probe\n") as temporary,
        ):
            _unlink_probe(archive)  # of a probe that was killed
            # A taken name means that another probe has just shown the same.
            link_new(archive.incoming, temporary, archive.root, _PROBE)
            os.fsync(archive.root)
            _unlink_probe(archive)

    def _welcome_new_root(self) -> None:
        """Set up a root that was removed and made again while we run.

        Only on the disk it was on before: on another it is the mount point of one that is absent.
        Nor through a symbolic link: whoever put it there, the files would go where it points.
        """
        with storage_faults("set up the archive", self._root):
            if self._root.stat().st_dev == self._device and not self._root.is_symlink():
                make_incoming(self._root)

    def _free_bytes(self) -> int:
        with storage_faults("measure", self._root), open_root(self._root) as archive:
            disk = os.fstatvfs(archive.root)
        return disk.f_bavail * disk.f_frsize


def _by_folder(keys: list[str]) -> dict[tuple[str, ...], list[tuple[str, str]]]:
    """Return keys and names by the folders they lie in."""
    found: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for key in keys:
        folders, name = split_key(key)
        found.setdefault(tuple(folders), []).append((key, name))
    return found


def _read_whole(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb", closefd=False) as file:
        return file.read()


def _unlink_probe(archive: OpenRoot) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_PROBE, dir_fd=archive.root)
