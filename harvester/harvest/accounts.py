"""Which accounts are followed: the default one, named ones, or all the key reaches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta

import structlog

from harvester.domain.errors import AccountRefused, ConfigurationError
from harvester.domain.ledger import Ledger
from harvester.domain.orders import Account
from harvester.domain.ports import Lune
from harvester.domain.schedule import Cadence

log = structlog.get_logger()

DEFAULT = "default"
ALL = "all"


class AccountBook:
    """The accounts to follow, asked of Lune again from time to time and kept in the ledger.

    ``wanted`` is the configuration's list: ``("all",)``, or ids and ``default``.
    """

    def __init__(
        self,
        lune: Lune,
        ledger: Ledger,
        wanted: Sequence[str],
        cadence: Cadence,
        clock: Callable[[], datetime],
    ) -> None:
        self._lune = lune
        self._ledger = ledger
        self._wanted = tuple(wanted)
        self._clock = clock
        self._cadence = cadence
        # Under "all", accounts appear at any time; otherwise only a beneficiary's name changes.
        everything = ALL in self._wanted
        self._every = cadence.sweep_interval if everything else cadence.longest_interval
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
        now = self._clock()
        # abs(): a clock that stepped back must not keep an old list for ever.
        if self._refreshed_at is None or abs(now - self._refreshed_at) >= self._patience(now):
            self._known = await self._fetch()
            await self._ledger.record_accounts(self._known, now)
            self._refreshed_at = now
        return self._known

    def _patience(self, now: datetime) -> timedelta:
        parked = self._cadence.next_try_of_parked(now) - now
        return min(self._every, parked) if self._unreached else self._every

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
        await self._ledger.record_accounts([found], self._clock())
        return found

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
        held = await self._ledger.modes()
        for account in found:
            held = held or {account.mode}
            if account.mode not in held:
                raise ConfigurationError(
                    f"the API key is a {account.mode} key, but this ledger holds "
                    f"{'/'.join(sorted(held))} orders; use the other key, or another ledger and "
                    "archive for this one"
                )
