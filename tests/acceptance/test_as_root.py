"""Root, beside a ledger of another user: reading leaves nothing, writing is refused."""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
from pathlib import Path

import pytest

from harvester.domain.errors import ConfigurationError
from harvester.ledger import migrate
from harvester.ledger.lock import LedgerLock
from tests.acceptance.harness import Home
from tests.needs import need

TEMPORARY = Path(tempfile.gettempdir())
OTHER = 64_725
"""A user of the range that systemd takes dynamic users from."""


@pytest.fixture
def theirs(tmp_path: Path) -> Home:
    need(os.geteuid() == 0, "root")
    home = Home(tmp_path, lune__base_url="http://127.0.0.1:9/v1", lune__api_key="canary-key")
    home.ledger.parent.mkdir()
    migrate.upgrade(home.ledger)
    for path in (home.ledger.parent, *home.ledger.parent.iterdir()):
        os.chown(path, OTHER, OTHER)
    return home


@pytest.mark.parametrize("command", ["status", "orders", "export", "db current", "events list"])
async def test_what_only_reads_leaves_no_file_of_root(theirs: Home, command: str) -> None:
    ran = await theirs.run(*command.split())
    assert ran.code == 0, ran.err
    assert {path.stat().st_uid for path in theirs.ledger.parent.iterdir()} == {OTHER}


@pytest.mark.parametrize("command", ["retry --all", "db upgrade", "run --drain", "run"])
async def test_what_writes_is_refused_and_leaves_nothing(theirs: Home, command: str) -> None:
    before = sorted(theirs.ledger.parent.iterdir())
    ran = await theirs.run(*command.split())
    assert ran.code == 78
    assert f"belongs to user {OTHER}" in ran.err
    assert sorted(theirs.ledger.parent.iterdir()) == before


async def test_the_user_whose_ledger_it_is_may_write_it(theirs: Home) -> None:
    def hold() -> int:
        child = os.fork()
        if child == 0:
            try:
                os.setuid(OTHER)
                with LedgerLock(theirs.ledger, "test"):
                    os._exit(0)
            finally:
                os._exit(1)  # whatever happens, there must not be two of us
        return os.waitpid(child, 0)[1]

    above = theirs.folder.parents
    for folder in (theirs.folder, *itertools.takewhile(lambda one: one != TEMPORARY, above)):
        folder.chmod(0o755)
    assert await asyncio.to_thread(hold) == 0


def test_roots_own_ledger_in_a_folder_of_another_user_stays_its_own(tmp_path: Path) -> None:
    need(os.geteuid() == 0, "root")
    ledger = tmp_path / "ledger.db"
    ledger.touch(0o600)
    os.chown(tmp_path, OTHER, OTHER)
    with LedgerLock(ledger, "test"):
        pass
    ledger.unlink()
    with pytest.raises(ConfigurationError, match="belongs to user"), LedgerLock(ledger, "test"):
        pass
