"""Follow orders that somebody names, by id or by idempotency key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog

from harvester.domain.errors import KeyRefused, LuneError, NotFound
from harvester.domain.ledger import Ledger
from harvester.domain.orders import Account, Order, OrderPage, Source, is_identifier
from harvester.domain.ports import Lune
from harvester.domain.schedule import Cadence
from harvester.harvest.accounts import AccountBook
from harvester.harvest.listing import tell
from harvester.lune.priority import Urgency

log = structlog.get_logger()

_LONGEST_KEY = 100


@dataclass(frozen=True, slots=True)
class Tracked:
    """What became of one reference: the order now followed, or why there is none."""

    reference: str
    account_id: str | None = None
    order_id: str | None = None
    status: str | None = None
    problem: str | None = None


class Tracker:
    """Asks Lune for named orders and records them, whatever the listing has reached."""

    def __init__(
        self,
        lune: Lune,
        ledger: Ledger,
        book: AccountBook,
        cadence: Cadence,
        clock: Callable[[], datetime],
    ) -> None:
        self._lune = lune
        self._ledger = ledger
        self._book = book
        self._cadence = cadence
        self._clock = clock

    async def track(
        self, references: Sequence[str], *, by_key: bool, account_id: str | None
    ) -> list[Tracked]:
        """Follow each order; it is in the ledger when this returns it without a problem.

        Without ``account_id`` the followed accounts are asked in turn. Idempotent.
        """
        accounts = (
            await self._book.accounts()
            if account_id is None
            else [await self._book.account(account_id)]
        )
        return [await self._track(one, by_key, accounts) for one in dict.fromkeys(references)]

    async def _track(self, reference: str, by_key: bool, accounts: Sequence[Account]) -> Tracked:
        problem = _rule_broken(reference, by_key=by_key)
        if problem is not None:
            return Tracked(reference, problem=problem)
        problem = f"Lune knows no such order in {_named(accounts)}"
        for account in accounts:
            try:
                order = await self._fetch(account, reference, by_key)
            except NotFound:
                continue
            except KeyRefused:
                raise
            except LuneError as error:
                problem = str(error)
                continue
            return await self._record(reference, account, order)
        return Tracked(reference, problem=problem)

    async def _fetch(self, account: Account, reference: str, by_key: bool) -> Order:
        if by_key:
            return await self._lune.fetch_order_by_key(account, reference)
        return await self._lune.fetch_order(account, reference, urgency=Urgency.WAITED_FOR)

    async def _record(self, reference: str, account: Account, order: Order) -> Tracked:
        recorded = await self._ledger.record_orders(
            account, OrderPage((order,), (), None), Source.TRACK, self._clock(), self._cadence
        )
        tell(account.id, recorded, Source.TRACK)
        return Tracked(reference, account.id, order.id, order.status)


def _rule_broken(reference: str, *, by_key: bool) -> str | None:
    if by_key:
        whole = 0 < len(reference) <= _LONGEST_KEY and reference.isprintable()
        return None if whole else f"an idempotency key has 1 to {_LONGEST_KEY} printable characters"
    return None if is_identifier(reference) else "not an order id: letters, digits, - and _ only"


def _named(accounts: Sequence[Account]) -> str:
    if len(accounts) == 1:
        return f"account {accounts[0].id}"
    return f"any of the {len(accounts)} followed accounts"
