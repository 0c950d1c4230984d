"""The lock on a ledger: held by one process, named to the others, gone when its holder dies."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harvester.domain.errors import LedgerHeld, LedgerUnavailable
from harvester.ledger.lock import LedgerLock, holder_of, lock_path

HOLD = """
import subprocess, sys
from pathlib import Path
from harvester.ledger.lock import LedgerLock
with LedgerLock(Path(sys.argv[1]), "run --drain"):
    if len(sys.argv) > 2:  # a child that would inherit whatever can be inherited
        child = subprocess.Popen(["sleep", "60"], close_fds=False, stdout=subprocess.DEVNULL)
        print(child.pid, flush=True)
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@contextmanager
def held_elsewhere(ledger: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """Have another process hold the ledger; it is gone when this ends."""
    process = subprocess.Popen(
        (sys.executable, "-c", HOLD, str(ledger), *more),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=30)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_second_process_is_refused_with_who_holds_the_ledger(ledger: Path) -> None:
    with held_elsewhere(ledger) as other:
        assert line_of(other) == "held"
        with pytest.raises(LedgerHeld) as refused, LedgerLock(ledger, "run"):
            pass
        assert f"harvester run --drain, process {other.pid} on " in str(refused.value)
        holder = holder_of(ledger)
        assert holder is not None
        assert (holder.pid, holder.command) == (other.pid, "run --drain")
        assert holder.since.endswith("Z")


def test_a_refused_process_leaves_the_holder_its_lock_and_its_name(ledger: Path) -> None:
    with LedgerLock(ledger, "run"):
        for _ in range(3):
            with pytest.raises(LedgerHeld), LedgerLock(ledger, "track"):
                pass
            holder = holder_of(ledger)
            assert holder is not None
            assert holder.command == "run"


def test_the_lock_is_free_once_its_holder_is_killed(ledger: Path) -> None:
    with held_elsewhere(ledger) as other:
        assert line_of(other) == "held"
        other.kill()
        other.wait(timeout=30)
        assert json.loads(lock_path(ledger).read_bytes())["pid"] == other.pid  # what it left
        assert holder_of(ledger) is None
        with LedgerLock(ledger, "run"):
            holder = holder_of(ledger)
            assert holder is not None
            assert holder.pid == os.getpid()


def test_a_child_of_a_killed_holder_does_not_keep_the_lock(ledger: Path) -> None:
    with held_elsewhere(ledger, "with a child") as other:
        child = int(line_of(other))
        try:
            assert line_of(other) == "held"
            other.kill()
            other.wait(timeout=30)
            os.kill(child, 0)  # still there
            with LedgerLock(ledger, "run"):
                pass
        finally:
            os.kill(child, 9)


def test_the_lock_is_free_after_its_holder_leaves_by_any_way(ledger: Path) -> None:
    with LedgerLock(ledger, "run"):
        pass
    assert holder_of(ledger) is None
    with pytest.raises(KeyError), LedgerLock(ledger, "run"):
        raise KeyError
    with LedgerLock(ledger, "run"):
        pass


@pytest.mark.parametrize(
    "left", [b"", b"{}", b"not json", b'{"pid": 1, "host": "h", "command": "run", "since": "x"}']
)
def test_a_stale_lock_file_is_no_obstacle(ledger: Path, left: bytes) -> None:
    lock_path(ledger).write_bytes(left)
    assert holder_of(ledger) is None
    with LedgerLock(ledger, "run"):
        assert json.loads(lock_path(ledger).read_bytes())["pid"] == os.getpid()


def test_nobody_holds_a_ledger_that_was_never_locked(ledger: Path) -> None:
    assert holder_of(ledger) is None
    assert holder_of(ledger.parent / "missing" / "ledger.db") is None


def test_a_holder_that_has_not_said_who_it_is_still_holds(ledger: Path) -> None:
    with LedgerLock(ledger, "run"):
        os.truncate(lock_path(ledger), 0)
        holder = holder_of(ledger)
        assert holder is not None
        assert "(starting)" in str(holder)
        with pytest.raises(LedgerHeld, match="held by another process"), LedgerLock(ledger, "x"):
            pass


def test_the_lock_is_a_file_of_its_own_for_its_owner_only(ledger: Path) -> None:
    with LedgerLock(ledger, "run"):
        assert not ledger.exists()
        assert stat.S_IMODE(lock_path(ledger).stat().st_mode) == 0o600


def test_a_lock_that_cannot_be_made_is_named(ledger: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(LedgerUnavailable, match="No such file"),
        LedgerLock(tmp_path / "missing" / "ledger.db", "run"),
    ):
        pass


def test_a_lock_is_not_taken_through_a_symbolic_link(ledger: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("untouched")
    lock_path(ledger).symlink_to(precious)
    with pytest.raises(LedgerUnavailable), LedgerLock(ledger, "run"):
        pass
    assert precious.read_text() == "untouched"


def test_asking_who_holds_the_ledger_never_keeps_anybody_from_taking_it(ledger: Path) -> None:
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            holder_of(ledger)

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for thread in asking:
        thread.start()
    try:
        for _ in range(2000):
            with LedgerLock(ledger, "run"):
                pass
    finally:
        done.set()
        for thread in asking:
            thread.join()
