"""Stored certificates as streams: checked against their digest, then read a piece at a time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from harvester.archive.durable import hash_file, open_file, open_root, storage_faults
from harvester.domain.certificate_names import split_key
from harvester.domain.orders import StoredFile

T = TypeVar("T")

_THREADS: Final = 2
_PIECE: Final = 256 * 1024


class OpenCertificate:
    """A stored file that is open, and is what was stored."""

    def __init__(self, descriptor: int, reader: CertificateReader) -> None:
        self._descriptor = descriptor
        self._reader = reader

    async def pieces(self, start: int, stop: int) -> AsyncIterator[bytes]:
        """Yield the bytes from ``start`` up to ``stop``, in pieces of 256 KiB."""
        while start < stop:
            size = min(_PIECE, stop - start)
            piece = await self._reader.in_thread(os.pread, self._descriptor, size, start)
            if not piece:
                return
            start += len(piece)
            yield piece


class CertificateReader:
    """Opens stored files for others to read, in threads of its own.

    Whoever downloads must hold up neither those who store nor the loop's default threads, where
    names are looked up.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="reading")

    @asynccontextmanager
    async def open(self, file: StoredFile) -> AsyncIterator[OpenCertificate | None]:
        """Open a file while inside; None when it is missing or not what was stored.

        It is hashed first, in constant memory. Raises ``StorageUnavailable``.
        """
        opening = asyncio.get_running_loop().run_in_executor(self._threads, self._open, file)
        try:
            descriptor = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close)  # the thread goes on to its end
            raise
        if descriptor is None:
            yield None
            return
        try:
            yield OpenCertificate(descriptor, self)
        finally:
            os.close(descriptor)

    async def in_thread(self, work: Callable[..., T], *args: Any) -> T:
        """Run what blocks in one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    async def close(self) -> None:
        """Wait for running work and end the threads. Idempotent."""
        await asyncio.to_thread(self._threads.shutdown)

    def _open(self, file: StoredFile) -> int | None:
        folders, name = split_key(file.key)
        path = self._root / file.key
        with storage_faults("read", path), open_root(self._root) as archive:
            try:
                with open_file(archive.descend(folders)[-1], name, path) as descriptor:
                    if hash_file(descriptor) != (file.sha256, file.size):
                        return None
                    return os.dup(descriptor)
            except FileNotFoundError:
                return None


def _close(opening: asyncio.Future[int | None]) -> None:
    if opening.cancelled() or opening.exception() is not None:
        return
    descriptor = opening.result()
    if descriptor is not None:
        os.close(descriptor)
