"""Place orders: money is spent at most once, whatever is cut off in between.

The purchase is in the ledger before Lune is asked. When nobody knows whether Lune took an order,
its idempotency key tells, and it is never answered with another key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

import structlog

from harvester.context import Context
from harvester.domain.errors import (
    EdgeBlocked,
    KeyRefused,
    KeyTaken,
    LuneError,
    NotFound,
    OutcomeUnknown,
    RequestRefused,
    ServerFault,
    UnexpectedAnswer,
    Unreachable,
)
from harvester.domain.orders import Account, Order
from harvester.domain.purchases import Purchase, in_doubt
from harvester.harvest.track import record_tracked
from harvester.ledger.accounts import read_accounts
from harvester.ledger.database import Database
from harvester.ledger.purchases import (
    RecordedPurchase,
    record_purchase,
    settle_purchase,
    unsettled_purchases,
)
from harvester.lune.client import LuneClient

log = structlog.get_logger()

KEY_WAS_USED = "order_idempotency_already_exists"

_IN_DOUBT = (Unreachable, ServerFault, UnexpectedAnswer, EdgeBlocked)
"""After these nobody knows whether the order was taken."""

_PAUSES = (1.0, 3.0, 6.0)
"""Seconds before each question for an order in doubt: Lune may still be at it."""

_GIVE_UP = timedelta(days=1)
"""After this long an order Lune does not know was never taken: a request lasts a minute."""


@dataclass(frozen=True, slots=True)
class Placed:
    """An order that exists and is followed; ``existed`` when an earlier attempt placed it."""

    account_id: str
    order_id: str
    status: str
    existed: bool


class Purchaser:
    """Buys once, and settles what earlier attempts left open. ``sleep`` takes seconds."""

    def __init__(
        self,
        lune: LuneClient,
        database: Database,
        context: Context,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._lune = lune
        self._database = database
        self._context = context
        self._sleep = sleep

    async def place(self, account: Account, purchase: Purchase, key: str) -> Placed:
        """Place an order under a key, or find the one the key already bought.

        Lune's refusals are raised as they are, with nothing left open. ``OutcomeUnknown`` leaves
        the purchase open: the same call settles it, and so does the daemon.
        """
        now = self._context.clock()
        before = await record_purchase(self._database, account.id, key, purchase, now)
        if before is not None:
            if before.purchase.request != purchase.request:
                raise KeyTaken(f"the key {key!a} was used for another purchase; nothing was sent")
            if before.order_id is not None:
                order = await self._lune.fetch_order(account, before.order_id)
                return await self._settle(account, key, order, existed=True)
            found = await self._find(account, key)
            if found is not None:
                return await self._settle(account, key, found, existed=True)
        try:
            order = await self._lune.place_order(account, purchase, key)
        except RequestRefused as refusal:
            if refusal.code != KEY_WAS_USED:
                await self._settle_refused(account, key, refusal)
                raise
            order = await self._lune.fetch_order_by_key(account, key)
            return await self._settle(account, key, order, existed=True)
        except _IN_DOUBT as doubt:
            return await self._resolve(account, key, doubt)
        except LuneError as refusal:  # refused before it was looked at: key, account, rate, path
            await self._settle_refused(account, key, refusal)
            raise
        return await self._settle(account, key, order, existed=False)

    async def settle_open(self) -> int:
        """Ask after every purchase left open; return how many are settled now.

        One that cannot be asked about now stays open and keeps nothing else. ``KeyRefused`` ends
        it.
        """
        settled = 0
        for open_one in await unsettled_purchases(self._database):
            try:
                settled += await self._settle_one(open_one)
            except KeyRefused:
                raise
            except LuneError as error:
                _log_doubt(open_one.account_id, error)
        return settled

    async def _settle_one(self, open_one: RecordedPurchase) -> bool:
        (account,) = await read_accounts(self._database, [open_one.account_id])
        key = open_one.idempotency_key
        found = await self._find(account, key)
        if found is not None:
            await self._settle(account, key, found, existed=True)
            return True
        now = self._context.clock()
        if now - open_one.recorded_at <= _GIVE_UP:
            return False
        await settle_purchase(self._database, account.id, key, now, refusal="Lune never knew of it")
        log.warning("purchase never reached Lune", account=account.id)
        return True

    async def _resolve(self, account: Account, key: str, doubt: LuneError) -> Placed:
        """Find out what became of an order that Lune may have taken."""
        _log_doubt(account.id, doubt)
        for seconds in _PAUSES:
            await self._sleep(seconds)
            try:
                found = await self._find(account, key)
            except LuneError:
                continue
            if found is not None:
                return await self._settle(account, key, found, existed=False)
        raise OutcomeUnknown(in_doubt(doubt, key)) from doubt

    async def _find(self, account: Account, key: str) -> Order | None:
        try:
            return await self._lune.fetch_order_by_key(account, key)
        except NotFound:
            return None

    async def _settle(self, account: Account, key: str, order: Order, *, existed: bool) -> Placed:
        await record_tracked(self._database, account, order, self._context)
        now = self._context.clock()
        await settle_purchase(self._database, account.id, key, now, order_id=order.id)
        return Placed(account.id, order.id, order.status, existed)

    async def _settle_refused(self, account: Account, key: str, refusal: LuneError) -> None:
        now = self._context.clock()
        await settle_purchase(self._database, account.id, key, now, refusal=str(refusal))


def _log_doubt(account_id: str, doubt: LuneError) -> None:
    log.warning("purchase in doubt", account=account_id, reason=str(doubt), cf_ray=doubt.cf_ray)
