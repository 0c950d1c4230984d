"""The steps that make a file survive a power cut, on descriptors of folders below one root.

Everything here blocks and belongs in a worker thread. Folders are entered by descriptor and
never through a symbolic link, so nothing is written outside the root whoever else can write in
it; only the root itself may be a link, since the operator chose it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harvester.domain.errors import StorageUnavailable

INCOMING = ".incoming"
"""All temporaries, in one folder on the archive's own file system: clearing up after a crash
costs by the temporaries there are, not by the files that were ever stored.

Its mode also says who reads the archive. Made 0700, so nobody but us; an operator who opens it to
our group (``chmod -R g+rX``) has everything that is stored from then on open to the group."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 20
_WORDS = {
    errno.EACCES: "no permission",
    errno.EDQUOT: "the disk quota is used up",
    errno.EIO: "the disk reports errors",
    errno.ELOOP: "a symbolic link stands there and is not followed",
    errno.EMFILE: "this process has too many open files",
    errno.ENFILE: "the system has too many open files",
    errno.ENOENT: "it is gone",
    errno.ENOSPC: "the disk is full",
    errno.ENOTDIR: "something stands there that is not a folder; symbolic links are not followed",
    errno.EPERM: "not permitted, perhaps because this file system has no hard links",
    errno.EROFS: "the file system is read-only",
    errno.EXDEV: f"it and {INCOMING} lie on different file systems; keep the archive on one",
}


def unavailable(doing: str, where: Path, error: OSError) -> StorageUnavailable:
    """Return the archive's error for an OSError: what could not be done, where, and why."""
    number = error.errno or 0
    words = _WORDS.get(number) or os.strerror(number)
    name = errno.errorcode.get(number, "unknown errno")
    return StorageUnavailable(f"cannot {doing} {where}: {words} ({name})")


@contextlib.contextmanager
def storage_faults(doing: str, where: Path) -> Iterator[None]:
    """Turn any OSError of the block into ``StorageUnavailable``."""
    try:
        yield
    except OSError as error:
        raise unavailable(doing, where, error) from error


@dataclass(frozen=True, slots=True)
class OpenRoot:
    """Descriptors of the root and of ``.incoming``, open for one operation (``open_root``)."""

    path: Path
    root: int
    incoming: int
    _closing: contextlib.ExitStack

    def descend(self, folders: Sequence[str], *, create: bool = False) -> list[int]:
        """Return descriptors of the root and of each folder on the way down, the root first.

        Folders made with ``create`` are as open to the group as ``.incoming``. Raises
        FileNotFoundError for a missing folder unless ``create``, and ``StorageUnavailable``
        naming the folder that cannot be entered.
        """
        chain = [self.root]
        path = self.path
        mode = 0o700 | _group_may(self.incoming) if create else None
        for folder in folders:
            path /= folder
            try:
                chain.append(open_folder(folder, chain[-1], create=mode))
            except FileNotFoundError:
                raise
            except OSError as error:
                raise unavailable("enter", path, error) from error
            self._closing.callback(os.close, chain[-1])
        return chain


@contextlib.contextmanager
def open_root(path: Path) -> Iterator[OpenRoot]:
    """Open the archive for one operation; ``StorageUnavailable`` when it is not there.

    Opened afresh each time, so that a root that was gone is used again once it is back. A root
    without ``.incoming`` is refused and nothing is made in it: most likely it is the mount point
    of a disk that is not there.
    """
    with contextlib.ExitStack() as closing:
        with storage_faults("open the archive", path):
            root = os.open(path, _FOLDER)
        closing.callback(os.close, root)
        try:
            incoming = open_folder(INCOMING, root)
        except FileNotFoundError:
            raise StorageUnavailable(
                f"{path} has no {INCOMING} folder, so it is not the archive that was set up: "
                f"mount its disk, or make the folder {path / INCOMING} to begin anew there"
            ) from None
        except OSError as error:
            raise unavailable("enter", path / INCOMING, error) from error
        closing.callback(os.close, incoming)
        yield OpenRoot(path, root, incoming, closing)


def open_folder(name: str, parent: int, *, create: int | None = None) -> int:
    """Open a folder below another; a missing one is made with the mode ``create``, at any umask."""
    made = False
    if create is not None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, create, dir_fd=parent)
            made = True
    descriptor = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)
    if made and create is not None:
        os.fchmod(descriptor, create)
    return descriptor


def _group_may(folder: int) -> int:
    """Return which of reading and entering a folder is open to its group, as bits of a mode."""
    return os.fstat(folder).st_mode & (stat.S_IRGRP | stat.S_IXGRP)


def make_root(path: Path) -> None:
    """Make the root and what is missing above it, mode 0700, each durable in its parent."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        parent = os.open(folder.parent, _FOLDER)
        try:
            os.close(open_folder(folder.name, parent, create=0o700))
            os.fsync(parent)
        finally:
            os.close(parent)


def make_incoming(path: Path) -> None:
    """Make the folder of temporaries, which marks the root as an archive that was set up."""
    root = os.open(path, _FOLDER)
    try:
        with storage_faults("make", path / INCOMING):
            os.close(open_folder(INCOMING, root, create=0o700))
        os.fsync(root)
    finally:
        os.close(root)


@contextlib.contextmanager
def staged(incoming: int, data: bytes) -> Iterator[str]:
    """Yield the name of a synced temporary that is removed afterwards.

    Its mode is 0600 at any umask, or 0640 where the archive is open to the group.
    When fsync fails its descriptor is not synced again: the kernel may have dropped the pages
    and would report success.
    """
    name = f"{secrets.token_hex(16)}.part"
    descriptor = os.open(name, _NEW_FILE, 0o600, dir_fd=incoming)
    try:
        try:
            os.fchmod(descriptor, 0o600 | _group_may(incoming) & stat.S_IRGRP)
            _write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        yield name
    finally:
        with contextlib.suppress(OSError):  # what stays is removed at the next start
            os.unlink(name, dir_fd=incoming)


def link_new(incoming: int, temporary: str, folder: int, name: str) -> bool:
    """Give a temporary its final name; False when the name is taken. A rename would clobber."""
    try:
        os.link(temporary, name, src_dir_fd=incoming, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        return False
    return True


def sync_upwards(chains: Iterable[Sequence[int]]) -> None:
    """Make the folders' entries durable, deepest first, each folder once.

    All of them, not only those just made: another put may have made one a moment ago and not
    synced it yet, or a crash may have come between. Syncing an unchanged folder costs little.
    """
    folders: dict[tuple[int, int], tuple[int, int]] = {}
    for chain in chains:
        for depth, descriptor in enumerate(chain):
            info = os.fstat(descriptor)  # two chains have descriptors of their own for one folder
            folders[info.st_dev, info.st_ino] = depth, descriptor
    for _, descriptor in sorted(folders.values(), reverse=True):
        os.fsync(descriptor)


@contextlib.contextmanager
def open_file(folder: int, name: str, where: Path) -> Iterator[int]:
    """Open a regular file for reading; ``StorageUnavailable`` for anything else there."""
    descriptor = os.open(name, _FILE, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise StorageUnavailable(f"{where} is not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def hash_file(descriptor: int) -> tuple[str, int]:
    """Return a file's SHA-256 and size in bytes, in constant memory."""
    digest, size = hashlib.sha256(), 0
    while chunk := os.read(descriptor, _CHUNK):
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
