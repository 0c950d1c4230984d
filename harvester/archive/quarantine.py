"""What is not a certificate, kept apart for inspection, with the reason beside it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from pathlib import PurePosixPath

from harvester.archive.durable import OpenRoot, link_new, staged, sync_upwards
from harvester.domain.certificate_names import QUARANTINE
from harvester.domain.orders import is_identifier

COPIES_KEPT = 10
"""Rejected answers kept per name; a fault that repeats for months must not fill the disk."""


def keep_rejected(archive: OpenRoot, name: str, data: bytes, reason: str) -> None:
    """Store rejected bytes as ``NAME-<sha12>.bin``; the same bytes again change nothing."""
    safe_name = name if is_identifier(name) else "unnamed"
    stem = f"{safe_name}-{hashlib.sha256(data).hexdigest()[:12]}"
    chain = archive.descend((QUARANTINE,), create=True)
    _keep_reason(archive, chain[-1], stem, reason)
    with staged(archive.incoming, data) as temporary:
        link_new(archive.incoming, temporary, chain[-1], f"{stem}.bin")
    _drop_oldest(chain[-1], safe_name)
    sync_upwards([chain])


def move_changed(
    archive: OpenRoot, folder: int, name: str, sha256: str, reason: str
) -> PurePosixPath:
    """Move a file out of the certificates' folders, durably; return its path below the root.

    It becomes ``STEM.<sha12>.SUFFIX``: a dot before the digest, where rejected answers have a
    dash, so that it is never dropped as one of their oldest copies.
    """
    old = PurePosixPath(name)
    stem = f"{old.stem}.{sha256[:12]}"
    chain = archive.descend((QUARANTINE,), create=True)
    _keep_reason(archive, chain[-1], stem, reason)
    os.rename(name, f"{stem}{old.suffix}", src_dir_fd=folder, dst_dir_fd=chain[-1])
    sync_upwards([chain])
    os.fsync(folder)
    return PurePosixPath(QUARANTINE, f"{stem}{old.suffix}")


def _keep_reason(archive: OpenRoot, quarantine: int, stem: str, reason: str) -> None:
    """Store the reason, before the bytes: nothing lies in quarantine without one."""
    with staged(archive.incoming, f"{reason}\n".encode(errors="replace")) as temporary:
        link_new(archive.incoming, temporary, quarantine, f"{stem}.reason.txt")


def _drop_oldest(quarantine: int, name: str) -> None:
    copy = re.compile(rf"{re.escape(name)}-[0-9a-f]{{12}}\.bin")
    with os.scandir(quarantine) as entries:
        copies = [
            (entry.stat(follow_symlinks=False).st_mtime_ns, entry.name)
            for entry in entries
            if copy.fullmatch(entry.name)
        ]
    for _, oldest in sorted(copies, reverse=True)[COPIES_KEPT:]:
        for doomed in (oldest, f"{oldest.removesuffix('.bin')}.reason.txt"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(doomed, dir_fd=quarantine)
