"""Follow orders that somebody names, by id or by idempotency key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harvester.context import Context
from harvester.domain.errors import KeyRefused, LuneError, NotFound
from harvester.domain.orders import Account, Order, OrderPage, Source, is_identifier
from harvester.domain.purchases import check_idempotency_key
from harvester.harvest.accounts import AccountBook
from harvester.harvest.listing import log_recorded
from harvester.ledger.database import Database
from harvester.ledger.orders import record_orders
from harvester.lune.client import LuneClient
from harvester.lune.rate_limiter import Priority


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
        self, lune: LuneClient, database: Database, book: AccountBook, context: Context
    ) -> None:
        self._lune = lune
        self._database = database
        self._book = book
        self._context = context

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
        problem = broken_rule(reference, by_key=by_key)
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
            await record_tracked(self._database, account, order, self._context)
            return Tracked(reference, account.id, order.id, order.status)
        return Tracked(reference, problem=problem)

    async def _fetch(self, account: Account, reference: str, by_key: bool) -> Order:
        if by_key:
            return await self._lune.fetch_order_by_key(account, reference)
        return await self._lune.fetch_order(account, reference, priority=Priority.WAITED_FOR)


async def record_tracked(
    database: Database, account: Account, order: Order, context: Context
) -> None:
    """Record an order that somebody named or bought, and log what that changed. Idempotent."""
    recorded = await record_orders(
        database, account, OrderPage((order,)), Source.TRACK, context.clock(), context.schedule
    )
    log_recorded(account.id, recorded)


def broken_rule(reference: str, *, by_key: bool) -> str | None:
    """Say why a reference can be no order's id, or no idempotency key; None when it can."""
    if not by_key:
        return (
            None if is_identifier(reference) else "not an order id: letters, digits, - and _ only"
        )
    try:
        check_idempotency_key(reference)
    except ValueError as error:
        return str(error)
    return None


def _named(accounts: Sequence[Account]) -> str:
    if len(accounts) == 1:
        return f"account {accounts[0].id}"
    return f"any of the {len(accounts)} followed accounts"
