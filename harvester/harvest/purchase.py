"""Place orders: money is spent at most once, whatever is cut off in between.

The intention is in the ledger before Lune is asked. When nobody knows whether Lune took an order,
its idempotency key tells, and it is never answered with another key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

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
from harvester.domain.ledger import Ledger
from harvester.domain.orders import Account, Order, OrderPage, Source
from harvester.domain.ports import Lune
from harvester.domain.purchases import Purchase
from harvester.domain.records import Intention
from harvester.domain.schedule import Cadence
from harvester.harvest.listing import tell

log = structlog.get_logger()

KEY_WAS_USED = "order_idempotency_already_exists"

_IN_DOUBT = (Unreachable, ServerFault, UnexpectedAnswer, EdgeBlocked)
"""After these nobody knows whether the order was taken."""

_LOOKS = (1.0, 3.0, 6.0)
"""Seconds between questions for an order in doubt: Lune may still be at it."""

_GIVE_UP = timedelta(days=1)
"""After this long an order Lune does not know was never taken: a request lasts a minute."""


@dataclass(frozen=True, slots=True)
class Placed:
    """An order that exists and is followed; ``existed`` when an earlier attempt placed it."""

    account_id: str
    order_id: str
    status: str
    existed: bool


class Placer:
    """Buys once, and settles what earlier attempts left open."""

    def __init__(
        self,
        lune: Lune,
        ledger: Ledger,
        cadence: Cadence,
        clock: Callable[[], datetime],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._lune = lune
        self._ledger = ledger
        self._cadence = cadence
        self._clock = clock
        self._sleep = sleep

    async def place(self, account: Account, purchase: Purchase, key: str) -> Placed:
        """Place an order under a key, or find the one the key already bought.

        Lune's refusals are raised as they are, with nothing left open. ``OutcomeUnknown`` leaves
        the intention open: the same call settles it, and so does the daemon.
        """
        before = await self._ledger.record_intention(account.id, key, purchase, self._clock())
        if before is not None:
            if before.purchase.request != purchase.request:
                raise KeyTaken(f"the key {key!a} was used for another purchase; nothing was sent")
            if before.order_id is not None:
                order = await self._lune.fetch_order(account, before.order_id)
                return await self._ours(account, key, order, existed=True)
            found = await self._find(account, key)
            if found is not None:
                return await self._ours(account, key, found, existed=True)
        try:
            order = await self._lune.place_order(account, purchase, key)
        except RequestRefused as refusal:
            if refusal.code != KEY_WAS_USED:
                await self._refused(account, key, refusal)
                raise
            order = await self._lune.fetch_order_by_key(account, key)
            return await self._ours(account, key, order, existed=True)
        except _IN_DOUBT as doubt:
            return await self._settle(account, key, doubt)
        except LuneError as refusal:  # refused before it was looked at: key, account, rate, path
            await self._refused(account, key, refusal)
            raise
        return await self._ours(account, key, order, existed=False)

    async def settle_open(self) -> int:
        """Ask after every intention left open; return how many are settled now.

        One that cannot be asked about now stays open and keeps nothing else. ``KeyRefused`` ends
        it.
        """
        settled = 0
        for open_one in await self._ledger.unsettled_intentions():
            try:
                settled += await self._settle_one(open_one)
            except KeyRefused:
                raise
            except LuneError as error:
                log.warning(
                    "order in doubt",
                    account=open_one.account_id,
                    reason=str(error),
                    cf_ray=error.cf_ray,
                )
        return settled

    async def _settle_one(self, open_one: Intention) -> bool:
        (account,) = await self._ledger.accounts([open_one.account_id])
        key = open_one.idempotency_key
        found = await self._find(account, key)
        if found is not None:
            await self._ours(account, key, found, existed=True)
            return True
        if self._clock() - open_one.intended_at <= _GIVE_UP:
            return False
        await self._ledger.settle_intention(
            account.id, key, self._clock(), refusal="Lune never knew of it"
        )
        log.warning("order was never placed", account=account.id)
        return True

    async def _settle(self, account: Account, key: str, doubt: LuneError) -> Placed:
        log.warning("order in doubt", account=account.id, reason=str(doubt), cf_ray=doubt.cf_ray)
        for seconds in _LOOKS:
            await self._sleep(seconds)
            try:
                found = await self._find(account, key)
            except LuneError:
                continue
            if found is not None:
                return await self._ours(account, key, found, existed=False)
        raise OutcomeUnknown(
            f"nobody knows yet whether Lune took the order: {doubt}. Run the same command with "
            f"--idempotency-key {key}: that finds it or places it, and never buys twice"
        ) from doubt

    async def _find(self, account: Account, key: str) -> Order | None:
        try:
            return await self._lune.fetch_order_by_key(account, key)
        except NotFound:
            return None

    async def _ours(self, account: Account, key: str, order: Order, *, existed: bool) -> Placed:
        recorded = await self._ledger.record_orders(
            account, OrderPage((order,), (), None), Source.TRACK, self._clock(), self._cadence
        )
        await self._ledger.settle_intention(account.id, key, self._clock(), order_id=order.id)
        tell(account.id, recorded, Source.TRACK)
        return Placed(account.id, order.id, order.status, existed)

    async def _refused(self, account: Account, key: str, refusal: LuneError) -> None:
        await self._ledger.settle_intention(account.id, key, self._clock(), refusal=str(refusal))
