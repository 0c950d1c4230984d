"""Small files that appear under their names whole and on disk, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import IO


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[str]]:
    """Open a text file that takes the place of ``path`` once the block ends, durably.

    A fault leaves what was there as it was. Only its owner may read the new file; one that root
    replaces keeps its owner. Raises ``OSError``.
    """
    partial = path.with_name(f".{path.name}.{token_hex(8)}.part")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            if path.exists() and os.geteuid() == 0:
                owner = path.stat()
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            yield stream
            stream.flush()
            os.fsync(descriptor)
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Raises ``OSError``."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
