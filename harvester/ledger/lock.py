"""The lock that lets one harvester write a ledger, and tells the others who that is.

An open-file-description lock, on a file of its own: the kernel lifts it when the holder dies,
however it dies; it can be asked about without being taken; and the database file is never opened
outside SQLite, since closing it would drop SQLite's own locks.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import struct
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from harvester.domain.errors import LedgerHeld, LedgerUnavailable
from harvester.domain.instants import rfc3339
from harvester.ledger.location import refuse_other_user, refuse_shared_disk

# struct flock: type, whence, start, length (0: to the end), process id.
_WHOLE_FILE = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a ledger: process id, host, what it runs, since when (RFC 3339 UTC)."""

    pid: int
    host: str
    command: str
    since: str

    def __str__(self) -> str:
        return f"harvester {self.command}, process {self.pid} on {self.host}, since {self.since}"


class LedgerLock:
    """Hold the ledger while inside; ``LedgerHeld`` at once when another does.

    On a disk that other machines may write, where no lock is worth anything, and by root where the
    ledger is another user's, nothing is touched: ``ConfigurationError``.
    """

    def __init__(self, ledger: Path, command: str) -> None:
        self._ledger = ledger
        self._path = lock_path(ledger)
        self._command = command
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        refuse_shared_disk(self._ledger)
        refuse_other_user(self._ledger)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(self._path, flags, 0o600)
        except OSError as error:
            raise LedgerUnavailable(f"{self._path}: {error.strerror}") from error
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _WHOLE_FILE)
        except (BlockingIOError, PermissionError):
            holder = _read(descriptor)
            os.close(descriptor)
            raise LedgerHeld(f"the ledger is held by {holder or 'another process'}") from None
        self._descriptor = descriptor
        holder = Holder(
            pid=os.getpid(),
            host=socket.gethostname(),
            command=self._command,
            since=rfc3339(datetime.now(UTC).replace(microsecond=0)),
        )
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(asdict(holder)).encode(), 0)
        except OSError as error:
            self._descriptor = None
            os.close(descriptor)
            raise LedgerUnavailable(f"{self._path}: {error.strerror}") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._descriptor is not None:
            # The file stays: unlinking it would let two processes lock two files of one name.
            with contextlib.suppress(OSError):  # who held it is asked only while it is held
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


def lock_path(ledger: Path) -> Path:
    """Return the lock's file, beside the ledger."""
    return ledger.with_name(ledger.name + ".lock")


def holder_of(ledger: Path) -> Holder | None:
    """Return who holds the ledger now; None when nobody does."""
    try:
        descriptor = os.open(lock_path(ledger), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _WHOLE_FILE)
        if struct.unpack_from("h", answer)[0] == fcntl.F_UNLCK:
            return None
        return _read(descriptor) or Holder(0, "unknown host", "(starting)", "just now")
    finally:
        os.close(descriptor)


def _read(descriptor: int) -> Holder | None:
    try:
        return Holder(**json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError, OSError):
        return None
