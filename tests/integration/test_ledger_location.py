"""Where a ledger may lie, and noticing that it is not the same file any more."""

from __future__ import annotations

from pathlib import Path

import pytest

from harvester.domain.errors import ConfigurationError, LedgerDamaged
from harvester.ledger.location import (
    identity,
    is_shared,
    kind_of_disk,
    kind_of_mount,
    refuse_shared_disk,
    require_same,
)
from harvester.ledger.lock import LedgerLock
from tests.faults.disks import small_disk
from tests.faults.network_disk import network_disk

MOUNTS = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
270 27 0:48 / /srv/a\\040b rw,relatime shared:7 master:2 - nfs4 10.0.0.5:/srv rw,vers=4.2
"""


@pytest.mark.parametrize(
    "kind",
    ["nfs", "nfs4", "cifs", "smb2", "smb3", "9p", "ceph", "virtiofs", "fuse.sshfs", "fuse.rclone"],
)
def test_a_disk_that_other_machines_may_write_is_a_shared_one(kind: str) -> None:
    assert is_shared(kind)


@pytest.mark.parametrize(
    "kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "fuseblk", "fuse", "fuse.ntfs-3g"]
)
def test_a_disk_of_this_machine_is_not(kind: str) -> None:
    assert not is_shared(kind)


@pytest.mark.parametrize(
    ("mount", "kind"), [(22, "proc"), (27, "ext4"), (270, "nfs4"), (2, None), (1, None)]
)
def test_the_kind_of_a_mount_is_read_by_its_id(mount: int, kind: str | None) -> None:
    assert kind_of_mount(MOUNTS, mount) == kind


def test_the_disk_of_a_ledger_that_is_still_to_be_made_is_that_of_the_folder_above(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        assert kind_of_disk(disk / "not" / "yet" / "ledger.db") == "tmpfs"
        (tmp_path / "link.db").symlink_to(disk / "ledger.db")
        assert kind_of_disk(tmp_path / "link.db") == "tmpfs"
        refuse_shared_disk(disk / "ledger.db")
    assert kind_of_disk(tmp_path / "ledger.db") == kind_of_disk(tmp_path)


def test_a_lock_on_a_network_disk_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with (
        network_disk(tmp_path / "remote") as disk,
        pytest.raises(ConfigurationError, match=r"lies on fuse\.sshfs.*database\.url"),
        LedgerLock(disk / "ledger.db", "run"),
    ):
        pass


def test_a_ledger_that_was_deleted_or_replaced_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    assert identity(path) is None
    path.write_bytes(b"one")
    opened = identity(path)
    path.write_bytes(b"more of it")
    require_same(path, opened)
    away = path.rename(tmp_path / "away.db")
    with pytest.raises(LedgerDamaged, match="deleted or replaced while it was open"):
        require_same(path, opened)
    path.write_bytes(b"one")
    with pytest.raises(LedgerDamaged, match="deleted or replaced while it was open"):
        require_same(path, opened)
    away.replace(path)
    require_same(path, opened)
