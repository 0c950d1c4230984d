"""Certificates in a folder: whole files under final names that survive a power cut."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
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
from harvester.domain.certificate_names import QUARANTINE, is_layout_folder, split_path
from harvester.domain.errors import StorageUnavailable
from harvester.domain.orders import StoredFile

_THREADS = 2
_PIECE = 256 * 1024
_PROBE = ".probe"
_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file to be stored: path below the root, bytes, and their SHA-256 where it is known."""

    path: str
    data: bytes = field(repr=False)
    sha256: str = ""


class DirectoryArchive:
    """An archive in the folder ``root`` of a local disk: whole files under names that never change.

    All file work runs in threads of its own: a disk that takes seconds for an fsync holds up
    neither the event loop nor the name look-ups in the loop's default threads; who reads stored
    files has other threads than who stores. A cancelled call goes on in its thread to its end, so
    it leaves a whole file or nothing. Call ``prepare`` first and ``close`` last. Paths are relative
    to the root, as ``CertificateNames`` makes them; others are a ValueError. Every fault of the
    disk is ``StorageUnavailable``.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._device: int | None = None
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="archive")
        self._readers = ThreadPoolExecutor(_THREADS, thread_name_prefix="reading")

    async def prepare(self, *, create: bool) -> None:
        """Set the folder up; a missing one is made, mode 0700, only with ``create``.

        Idempotent. Without ``create`` a root that is missing or has nothing in it is
        ``StorageUnavailable``: it is the mount point of a disk that is absent.
        """
        await self._in_thread(self._prepare, create)

    async def put(self, path: str, data: bytes) -> StoredFile | None:
        """Store bytes under a path, durably; None when other bytes lie there already.

        Idempotent: the same bytes under the same path are found, made durable and returned. Returns
        only once the file survives a power cut.
        """
        (stored,) = await self.put_all([NewFile(path, data)])
        if isinstance(stored, StorageUnavailable):
            raise stored
        return stored

    async def put_all(
        self, files: Sequence[NewFile]
    ) -> list[StoredFile | StorageUnavailable | None]:
        """Store several files as ``put`` does; those in one folder share its fsync.

        A file that cannot be stored has its fault in its place; a folder that cannot be made
        durable is a fault of all, which is raised.
        """
        return await self._in_thread(self._put_all, files)

    async def existing(self, paths: Iterable[str]) -> set[str]:
        """Return those paths that something lies under."""
        return await self._in_thread(self._existing, list(paths))

    async def read(self, path: str) -> bytes | None:
        """Return the bytes under a path; None when there are none."""
        return await self._in_thread(self._read, path)

    async def digest(self, path: str) -> StoredFile | None:
        """Return what the file under a path is now, hashed afresh; None when there is none."""
        return await self._in_thread(self._digest, path)

    @contextlib.asynccontextmanager
    async def open(self, file: StoredFile) -> AsyncIterator[OpenCertificate | None]:
        """Open a stored file while inside; None when it is missing or not what was stored.

        It is hashed first, in constant memory.
        """
        opening = asyncio.get_running_loop().run_in_executor(self._readers, self._open, file)
        try:
            descriptor = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_opened)  # the thread goes on to its end
            raise
        if descriptor is None:
            yield None
            return
        try:
            yield OpenCertificate(descriptor, self._readers)
        finally:
            os.close(descriptor)

    async def quarantine(self, name: str, data: bytes, reason: str) -> None:
        """Keep rejected bytes and the reason for inspection; best effort, never raises."""
        with contextlib.suppress(StorageUnavailable):
            await self._in_thread(self._quarantine, name, data, reason)

    async def remove_to_quarantine(self, path: str, reason: str) -> Path | None:
        """Move a file that is not what it should be out of the way, durably.

        Returns where it went; None when there is none under the path.
        """
        return await self._in_thread(self._remove_to_quarantine, path, reason)

    async def paths(self) -> AsyncIterator[str]:
        """Yield the path of every file, known or not, one folder at a time in order of names.

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

    async def remove_temporaries(self) -> int:
        """Remove what puts cut short by a crash left behind; return how many there were.

        A put that is running elsewhere fails cleanly when its temporary is removed.
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

    def locate(self, path: str) -> Path:
        """Return the absolute path of a file, for showing."""
        split_path(path)
        return self._root / path

    async def close(self) -> None:
        """Wait for running work and end the threads. Idempotent."""
        await asyncio.to_thread(self._threads.shutdown)
        await asyncio.to_thread(self._readers.shutdown)

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

    def _put_all(self, files: Sequence[NewFile]) -> list[StoredFile | StorageUnavailable | None]:
        stored: list[StoredFile | StorageUnavailable | None] = []
        chains: dict[tuple[str, ...], list[int]] = {}
        with (
            storage_faults("store in", self._root),
            open_root(self._root) as archive,
            contextlib.ExitStack() as temporaries,
        ):
            for file in files:
                try:
                    stored.append(self._link(archive, chains, temporaries, file))
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
        file: NewFile,
    ) -> StoredFile | None:
        """Give a synced file its final name; the folders in ``chains`` are still to be synced."""
        folders, name = split_path(file.path)
        sha256 = file.sha256 or hashlib.sha256(file.data).hexdigest()
        where = self._root / file.path
        with storage_faults("store", where):
            temporary = temporaries.enter_context(staged(archive.incoming, file.data))
            chain = chains.get(tuple(folders))
            if chain is None:
                chain = chains[tuple(folders)] = archive.descend(folders, create=True)
            if not link_new(archive.incoming, temporary, chain[-1], name):
                with open_file(chain[-1], name, where) as existing:
                    if hash_file(existing)[0] != sha256:
                        return None
                    # Who put it there may have been cut off before it was durable.
                    os.fsync(existing)
        return StoredFile(file.path, sha256, len(file.data))

    def _existing(self, paths: list[str]) -> set[str]:
        found = set()
        with storage_faults("look into", self._root), open_root(self._root) as archive:
            for folders, names in _by_folder(paths).items():
                try:
                    folder = archive.descend(folders)[-1]
                except FileNotFoundError:
                    continue
                for path, name in names:
                    with contextlib.suppress(FileNotFoundError):
                        os.stat(name, dir_fd=folder, follow_symlinks=False)
                        found.add(path)
        return found

    def _read(self, path: str) -> bytes | None:
        return self._look(path, _read_whole)

    def _digest(self, path: str) -> StoredFile | None:
        found = self._look(path, hash_file)
        return None if found is None else StoredFile(path, *found)

    def _open(self, file: StoredFile) -> int | None:
        def checked(descriptor: int) -> int | None:
            is_as_stored = hash_file(descriptor) == (file.sha256, file.size)
            return os.dup(descriptor) if is_as_stored else None

        return self._look(file.path, checked)

    def _look(self, path: str, at: Callable[[int], _T]) -> _T | None:
        folders, name = split_path(path)
        where = self._root / path
        with storage_faults("read", where), open_root(self._root) as archive:
            try:
                with open_file(archive.descend(folders)[-1], name, where) as descriptor:
                    return at(descriptor)
            except FileNotFoundError:
                return None

    def _quarantine(self, name: str, data: bytes, reason: str) -> None:
        with (
            storage_faults("quarantine something in", self._root),
            open_root(self._root) as archive,
        ):
            keep_rejected(archive, name, data, reason)

    def _remove_to_quarantine(self, path: str, reason: str) -> Path | None:
        folders, name = split_path(path)
        where = self._root / path
        with storage_faults("move to quarantine", where), open_root(self._root) as archive:
            try:
                folder = archive.descend(folders)[-1]
                with open_file(folder, name, where) as descriptor:
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


class OpenCertificate:
    """A stored file that is open, and is what was stored."""

    def __init__(self, descriptor: int, threads: ThreadPoolExecutor) -> None:
        self._descriptor = descriptor
        self._threads = threads

    async def pieces(self, start: int, stop: int) -> AsyncIterator[bytes]:
        """Yield the bytes from ``start`` up to ``stop``, in pieces of 256 KiB."""
        loop = asyncio.get_running_loop()
        while start < stop:
            size = min(_PIECE, stop - start)
            piece = await loop.run_in_executor(
                self._threads, os.pread, self._descriptor, size, start
            )
            if not piece:
                return
            start += len(piece)
            yield piece


def _by_folder(paths: list[str]) -> dict[tuple[str, ...], list[tuple[str, str]]]:
    """Return paths and names by the folders they lie in."""
    found: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for path in paths:
        folders, name = split_path(path)
        found.setdefault(tuple(folders), []).append((path, name))
    return found


def _read_whole(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb", closefd=False) as file:
        return file.read()


def _unlink_probe(archive: OpenRoot) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_PROBE, dir_fd=archive.root)


def _close_opened(opening: asyncio.Future[int | None]) -> None:
    if opening.cancelled() or opening.exception() is not None:
        return
    descriptor = opening.result()
    if descriptor is not None:
        os.close(descriptor)
