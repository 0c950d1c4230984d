"""Which accounts are followed: the default one, named ones, or all the key reaches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

import structlog

from harvester.domain.cadence import Cadence
from harvester.domain.errors import AccountRefused, ConfigurationError
from harvester.domain.orders import Account
from harvester.domain.ports import Ledger, Lune

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
        if self._refreshed_at is None or abs(now - self._refreshed_at) >= self._every:
            self._known = await self._fetch()
            await self._ledger.record_accounts(self._known, now)
            self._refreshed_at = now
        return self._known

    async def _fetch(self) -> list[Account]:
        if ALL in self._wanted:
            found = await self._lune.fetch_accounts()
            await self._require_mode(found[0])
            return found
        own = await self._lune.fetch_own_account()
        await self._require_mode(own)
        named = {}
        self._unreached = {}
        for wanted in self._wanted:
            if wanted in {DEFAULT, own.id}:
                named[own.id] = own
                continue
            try:
                named[wanted] = await self._lune.fetch_account(wanted)
            except AccountRefused as error:
                self._unreached[wanted] = str(error)
                log.warning("account refused", account=wanted, reason=str(error))
        return list(named.values())

    async def _require_mode(self, own: Account) -> None:
        seen = await self._ledger.modes()
        if seen and own.mode not in seen:
            raise ConfigurationError(
                f"the API key is a {own.mode} key, but this ledger holds {'/'.join(sorted(seen))} "
                "orders; use the other key, or another ledger and archive for this one"
            )
