"""Ledgers under test: a new kind joins by a maker of its own in ``KINDS``."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from harvester.ledger import migrate
from harvester.ledger.accounts import record_accounts
from harvester.ledger.database import Database
from tests.contract.ledger_cases import ACCOUNT, CLIENT, NOW, Kept


async def sqlite(empty: Path, folder: Path) -> AsyncIterator[Kept]:
    path = folder / "ledger.db"
    shutil.copyfile(empty, path)
    database = Database(path)
    yield Kept(database)
    await database.close()


KINDS = [sqlite]


@pytest.fixture(scope="session")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger as the migrations leave it; copied, since making one takes half a second."""
    path = tmp_path_factory.mktemp("empty") / "ledger.db"
    migrate.upgrade(path)
    return path


@pytest.fixture(params=KINDS, ids=[kind.__name__ for kind in KINDS])
async def kept(
    request: pytest.FixtureRequest, empty_ledger: Path, tmp_path: Path
) -> AsyncIterator[Kept]:
    """An open ledger that knows two accounts and no orders."""
    async for made in request.param(empty_ledger, tmp_path):
        await record_accounts(made.database, [ACCOUNT, CLIENT], NOW)
        yield made
