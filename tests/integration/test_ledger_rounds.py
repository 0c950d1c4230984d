"""A round of the sweep on a real ledger: planned once for all accounts, true to what came since."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from harvester.context import Context
from harvester.domain.orders import EVERYTHING, Account, Order, OrderPage
from harvester.harvest.sweep import Sweep
from harvester.ledger import migrate
from harvester.ledger.accounts import (
    park_account,
    parked_accounts,
    postpone_sweep,
    record_accounts,
)
from harvester.ledger.certificates import count_missing_certificates
from harvester.ledger.database import Database
from harvester.ledger.schedule import due_checks, newest_positions, status_durations
from harvester.lune.client import LuneClient
from harvester.lune.rate_limiter import Priority
from tests.contract.ledger_cases import ACCOUNT, CLIENT, DAY, FAR, HOUR, NOW, SCHEDULE, Kept, order

LATER = NOW + DAY


class SlowLune:
    """A Lune whose single orders are served when ``go`` is set; notes what it is asked for."""

    def __init__(self, *pages: OrderPage) -> None:
        self.asked: list[tuple[str, str]] = []
        self._pages = iter(pages)
        self.begun, self.go = asyncio.Event(), asyncio.Event()

    async def fetch_order(
        self, account: Account, order_id: str, *, priority: Priority = Priority.DUE
    ) -> Order:
        self.asked.append((account.id, order_id))
        self.begun.set()
        await self.go.wait()
        return order(order_id, "paid")

    async def fetch_orders(
        self, account: Account, after: str | None = None, *, priority: Priority = Priority.DUE
    ) -> OrderPage:
        self.asked.append((account.id, "newest" if priority is Priority.BACKGROUND else str(after)))
        return next(self._pages, OrderPage(()))


class PlannedFrom(Database):
    """A ledger that says when a round has read what it plans from: the accounts come last."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.planned = asyncio.Event()
        event.listen(self._reader.sync_engine, "before_cursor_execute", self._note)

    def _note(self, _c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT accounts.id, accounts.name"):
            self.planned.set()


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncIterator[Kept]:
    path = tmp_path / "ledger.db"
    migrate.upgrade(path)
    database = PlannedFrom(path)
    await record_accounts(database, [ACCOUNT, CLIENT], NOW)
    for account in (ACCOUNT, CLIENT):
        await postpone_sweep(database, account.id, LATER + HOUR)
    yield Kept(database)
    await database.close()


def sweep_of(kept: Kept, lune: SlowLune) -> Sweep:
    context = Context(SCHEDULE, clock=lambda: LATER)
    return Sweep(cast(LuneClient, lune), kept.database, context)


async def plan_of(kept: Kept, table: str, *asking: Awaitable[object]) -> list[str]:
    """Return SQLite's steps for what is asked of a table, of whatever else it takes too."""
    asked: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if f"FROM {table}" in statement:
            asked.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        for one in asking:
            await one
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    with closing(sqlite3.connect(kept.database.path)) as connection:
        return [
            step[3]
            for statement, parameters in asked
            for step in connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]


async def test_a_round_is_planned_and_the_ledger_counted_from_indexes_alone(kept: Kept) -> None:
    plan = await plan_of(
        kept,
        "orders",
        due_checks(kept.database, NOW, FAR),
        newest_positions(kept.database, ["acct"]),
        count_missing_certificates(kept.database, EVERYTHING),
        kept.statistics(),
    )
    steps = [step for step in plan if " orders" in step]
    assert len(steps) >= 6
    assert [step for step in steps if " COVERING INDEX orders_" not in step] == []


async def test_durations_are_read_from_the_orders_that_moved_last_and_not_from_all(
    kept: Kept,
) -> None:
    plan = await plan_of(kept, "transitions", status_durations(kept.database, NOW, 10))
    (moved,) = (step for step in plan if " orders" in step)
    (durations,) = (step for step in plan if " transitions" in step)
    assert " COVERING INDEX orders_changed" in moved
    assert durations.startswith("SEARCH transitions USING PRIMARY KEY (order_key=?)")


async def test_what_another_turn_checked_meanwhile_is_not_asked_for_again(kept: Kept) -> None:
    await kept.see(order("o1"))
    lune, database = SlowLune(), kept.database
    assert isinstance(database, PlannedFrom)
    sweep = sweep_of(kept, lune)
    first = asyncio.create_task(sweep.run_once([]))
    await lune.begun.wait()
    database.planned.clear()
    second = asyncio.create_task(sweep.run_once([]))
    await database.planned.wait()
    lune.go.set()
    reports = [await first, await second]
    assert lune.asked == [("acct", "o1")]
    assert [report.changed for report in reports] == [1, 0]


async def test_due_checks_of_all_accounts_but_the_parked_are_asked_for(kept: Kept) -> None:
    await kept.see(order("o1"))
    await kept.see(order("o2"), account=CLIENT)
    lune = SlowLune()
    lune.go.set()
    await park_account(kept.database, "client", "suspended", FAR, NOW)
    await sweep_of(kept, lune).run_once([])
    assert lune.asked == [("acct", "o1")]


async def test_a_parked_account_whose_time_has_come_is_asked_for_its_checks_too(kept: Kept) -> None:
    await kept.see(order("o2"), account=CLIENT)
    lune = SlowLune()
    lune.go.set()
    await park_account(kept.database, "client", "suspended", LATER, NOW)
    await sweep_of(kept, lune).run_once([ACCOUNT, CLIENT])
    assert lune.asked == [("client", "newest"), ("client", "o2")]
    assert await parked_accounts(kept.database) == set()


def page(*ids: str) -> OrderPage:
    return OrderPage(tuple(order(one) for one in ids), (), ids[-1] if ids else "more")


@pytest.mark.parametrize(
    "pages",
    [
        [page("o1", "o2"), page("o1", "o2")],
        [page("o1"), page("o2"), page("o3"), page("o2")],
        [page("o1"), page()],
    ],
    ids=["the same page", "an earlier page", "an empty page"],
)
async def test_a_listing_that_never_ends_is_given_up(kept: Kept, pages: list[OrderPage]) -> None:
    await postpone_sweep(kept.database, "acct", LATER)
    lune = SlowLune(*pages)
    report = await sweep_of(kept, lune).run_once([ACCOUNT])
    assert "never ends" in report.failed["acct"]
    assert len(lune.asked) == len(pages)


async def test_what_the_newest_page_shows_is_not_asked_for_by_itself(kept: Kept) -> None:
    await kept.see(order("o1"), order("o2"))
    await postpone_sweep(kept.database, "acct", LATER)
    lune = SlowLune(page("o3"), OrderPage((order("o1"),)))
    lune.go.set()
    await sweep_of(kept, lune).run_once([ACCOUNT])
    assert lune.asked == [("acct", "newest"), ("acct", "newest"), ("acct", "o2")]
