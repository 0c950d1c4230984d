"""Where a ledger lies: on a disk of this machine, and still in the file that was opened."""

from __future__ import annotations

import os
import re
from pathlib import Path

from harvester.domain.errors import ConfigurationError, LedgerReplaced

Identity = tuple[int, int]
"""Device and inode of a file: another file under the same name has another one."""

_SHARED = re.compile(
    r"9p|afs|beegfs|ceph|cifs|coda|gfs2|gpfs|lustre|ncpfs|nfs4?|ocfs2|orangefs|smb[23]?|smbfs|"
    r"vboxsf|virtiofs|vmhgfs|"
    r"fuse\.(ceph|ceph-fuse|curlftpfs|davfs2?|gcsfuse|glusterfs|goofys|grpcfuse|juicefs|"
    r"mount-s3|mountpoint-s3|rclone|s3fs|smbnetfs|sshfs|vmhgfs-fuse)"
)
"""File systems by their names in ``mount``: networks', clusters', virtual machines' shared ones."""


def is_shared(kind: str) -> bool:
    """Tell whether another machine may write a file system of this kind.

    All who open SQLite's write-ahead log need locks that hold and memory in common, which only
    processes of one machine have (SQLite, "Write-Ahead Logging").
    """
    return _SHARED.fullmatch(kind) is not None


def kind_of_mount(mountinfo: str, mount_id: int) -> str | None:
    """Return a mount's kind of file system from the text of ``/proc/self/mountinfo`` (proc(5))."""
    for line in mountinfo.splitlines():
        mount, _, source = line.partition(" - ")
        if mount.split(" ", 1)[0] == str(mount_id):
            return source.split(" ", 1)[0] or None
    return None


def kind_of_disk(path: Path) -> str | None:
    """Return the kind of file system a file lies on, or would be made on; None when unknown."""
    folder = next(one for one in path.resolve().parents if one.is_dir())
    try:
        # O_PATH asks the file system nothing, and a folder's descriptor holds no lock of SQLite's.
        descriptor = os.open(folder, os.O_PATH | os.O_CLOEXEC)
        try:
            about = Path(f"/proc/self/fdinfo/{descriptor}").read_text("utf-8")
        finally:
            os.close(descriptor)
        mounts = Path("/proc/self/mountinfo").read_text("utf-8", errors="replace")
    except (OSError, AttributeError):  # no /proc, or not Linux
        return None
    (mount_id,) = [line.split()[1] for line in about.splitlines() if line.startswith("mnt_id:")]
    return kind_of_mount(mounts, int(mount_id))


def refuse_shared_disk(ledger: Path) -> None:
    """Raise ``ConfigurationError`` for a ledger on a disk that other machines may write."""
    kind = kind_of_disk(ledger)
    if kind is not None and is_shared(kind):
        raise ConfigurationError(
            f"{ledger}: lies on {kind}, a network or shared file system, where SQLite loses data; "
            "put database.url on a disk of this machine"
        )


def refuse_other_user(ledger: Path) -> None:
    """Raise ``ConfigurationError`` where root would write the ledger of another user.

    The lock, backups and certificates that root makes are root's, and the user whose ledger it is
    could not open them any more. SQLite gives its own files to the ledger's owner, so that root may
    read.
    """
    if os.geteuid() != 0:
        return
    try:
        owner = (ledger if ledger.exists() else ledger.parent).stat().st_uid
    except OSError:
        return  # opening it says why
    if owner != 0:
        raise ConfigurationError(
            f"{ledger}: belongs to user {owner}, and what root writes here that user could not "
            "open; run this as that user, or while the service runs, which is asked to do it"
        )


def identity(ledger: Path) -> Identity | None:
    """Return which file a ledger is now; None when there is none."""
    try:
        found = ledger.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def require_same(ledger: Path, opened: Identity | None) -> None:
    """Raise ``LedgerReplaced`` when a ledger is not the file any more that was opened.

    SQLite would go on writing the old file, which has no name: all of it would be gone at the
    end. Costs one ``stat``; ask before every write.
    """
    if identity(ledger) != opened:
        raise LedgerReplaced(
            f"{ledger}: deleted or replaced while it was open; nothing more is written. Put it "
            "back, or restore a backup, and start again: what is missing then is asked of Lune anew"
        )
