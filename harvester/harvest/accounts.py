"""Which accounts are followed: the default one, named ones, or all the key reaches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

import structlog

from harvester.context import Context
from harvester.domain.errors import AccountRefused, ConfigurationError
from harvester.domain.orders import Account
from harvester.ledger.accounts import park_account, record_accounts, recorded_modes
from harvester.ledger.database import Database
from harvester.lune.client import LuneClient

log = structlog.get_logger()

DEFAULT = "default"
ALL = "all"


class AccountBook:
    """The accounts to follow, asked of Lune again from time to time and kept in the ledger.

    ``wanted`` is the configuration's list: ``("all",)``, or ids and ``default``.
    """

    def __init__(
        self, lune: LuneClient, database: Database, wanted: Sequence[str], context: Context
    ) -> None:
        self._lune = lune
        self._database = database
        self._wanted = tuple(wanted)
        self._context = context
        # Under "all", accounts appear at any time; otherwise only a beneficiary's name changes.
        schedule = context.schedule
        everything = ALL in self._wanted
        self._every = schedule.sweep_interval if everything else schedule.longest_interval
        self._known: list[Account] = []
        self._unreached: dict[str, str] = {}
        self._refreshed_at: datetime | None = None

    @property
    def unreached(self) -> dict[str, str]:
        """The named accounts that the key did not reach when last asked, each with the reason."""
        return dict(self._unreached)

    async def accounts(self) -> list[Account]:
        """Return the accounts to follow, asking Lune again when the list is old.

        ``ConfigurationError`` when the key's mode is not the one the ledger has seen: test and
        live orders are never mixed.
        """
        now = self._context.clock()
        # abs(): a clock that stepped back must not keep an old list for ever.
        if self._refreshed_at is None or abs(now - self._refreshed_at) >= self._interval(now):
            self._known = await self._fetch()
            await record_accounts(self._database, self._known, now)
            self._refreshed_at = now
        return self._known

    async def account(self, account_id: str | None) -> Account:
        """Return one account the key reaches, followed or not; None means the default one.

        It is in the ledger when this returns. ``AccountRefused`` when the key does not reach it.
        """
        for account in await self.accounts():  # also holds the key's mode against the ledger
            if account.id == account_id or (account_id is None and account.is_default):
                return account
        found = (
            await self._lune.fetch_own_account()
            if account_id is None
            else await self._lune.fetch_account(account_id)
        )
        await self._require_mode([found])
        await record_accounts(self._database, [found], self._context.clock())
        return found

    def _interval(self, now: datetime) -> timedelta:
        parked = self._context.schedule.next_sweep_of_parked(now) - now
        return min(self._every, parked) if self._unreached else self._every

    async def _fetch(self) -> list[Account]:
        if ALL in self._wanted:
            found = await self._lune.fetch_accounts()
            await self._require_mode(found)
            return found
        named: dict[str, Account] = {}
        self._unreached = {}
        for wanted in self._wanted:
            try:
                account = await self._fetch_named(wanted)
            except AccountRefused as error:
                self._unreached[wanted] = str(error)
                log.warning("account refused", account=wanted, reason=str(error))
            else:
                named[account.id] = account
                await self._require_mode(named.values())
        return list(named.values())

    async def _fetch_named(self, wanted: str) -> Account:
        if wanted == DEFAULT:
            return await self._lune.fetch_own_account()
        return await self._lune.fetch_account(wanted)

    async def _require_mode(self, found: Iterable[Account]) -> None:
        """Raise ``ConfigurationError`` unless these are of one mode, and it is the ledger's."""
        held = await recorded_modes(self._database)
        for account in found:
            held = held or {account.mode}
            if account.mode not in held:
                raise ConfigurationError(
                    f"the API key is a {account.mode} key, but this ledger holds "
                    f"{'/'.join(sorted(held))} orders; use the other key, or another ledger and "
                    "archive for this one"
                )


async def park(
    database: Database, account: Account, refusal: AccountRefused, context: Context
) -> None:
    """Leave an account alone that Lune refuses, until it may have been mended; log it once."""
    now = context.clock()
    until = context.schedule.next_sweep_of_parked(now)
    if await park_account(database, account.id, str(refusal), until, now):
        log.warning("account parked", account=account.id, reason=str(refusal))
