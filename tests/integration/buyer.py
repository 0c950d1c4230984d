"""A purchaser on real parts, with a clock of its own and a sleep that takes no time."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from harvester.context import Context
from harvester.domain.orders import Account
from harvester.domain.purchases import Purchase, by_mass
from harvester.domain.schedule import Schedule
from harvester.harvest.purchase import Placed, Purchaser
from harvester.ledger.accounts import read_accounts
from harvester.ledger.database import Database
from harvester.ledger.purchases import record_purchase, unsettled_purchases
from harvester.ledger.queries import OrderDetail, find_orders
from harvester.lune import LuneClient
from tests.integration.order_desk import OWN, OrderDesk
from tests.integration.raw_server import Naps

SCHEDULE = Schedule(timedelta(minutes=15), timedelta(hours=6))
MASS = by_mass("259.11", "kg", metadata={"customer": "Zoë"})


@dataclass(slots=True)
class Buyer:
    """A purchaser with everything it works on; ``at`` is its clock."""

    desk: OrderDesk
    lune: LuneClient
    database: Database
    path: Path
    naps: Naps
    at: datetime = datetime(2026, 3, 1, 12, tzinfo=UTC)

    @property
    def purchaser(self) -> Purchaser:
        """A new one each time, as after a restart: nothing may depend on what it remembers."""
        context = Context(SCHEDULE, clock=lambda: self.at)
        return Purchaser(self.lune, self.database, context, self.naps)

    async def buy(self, purchase: Purchase = MASS, key: str = "K", account: str = OWN) -> Placed:
        return await self.purchaser.place(await self.account(account), purchase, key)

    async def account(self, account_id: str = OWN) -> Account:
        (found,) = await read_accounts(self.database, [account_id])
        return found

    async def rows(self, key: str = "K") -> list[OrderDetail]:
        return await find_orders(self.database, key)

    async def open_keys(self) -> list[str]:
        return [one.idempotency_key for one in await unsettled_purchases(self.database)]

    def written(self) -> list[tuple[str, str | None, str | None]]:
        """Return key, order and refusal of every purchase, as another process would see them."""
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as connection:
            rows = "SELECT idempotency_key, order_id, refusal FROM purchases ORDER BY recorded_at"
            return connection.execute(rows).fetchall()

    async def leave_open(self, key: str = "K", account: str = OWN) -> None:
        """Leave behind what a process does that is killed after recording its purchase."""
        await record_purchase(self.database, account, key, MASS, self.at)
