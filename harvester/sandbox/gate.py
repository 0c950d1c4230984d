"""Who may ask: the key, its limit, the API version and the account acted on."""

from __future__ import annotations

import hmac

from aiohttp import web

from harvester.sandbox.faults import Faults
from harvester.sandbox.journal import SlidingSecond
from harvester.sandbox.options import SandboxOptions
from harvester.sandbox.refusals import ApiError
from harvester.sandbox.world import Account, World

VERSIONS = frozenset({"2024-08-08"})


class Gate:
    """What every request passes before it is looked at any closer."""

    def __init__(self, options: SandboxOptions, world: World, faults: Faults) -> None:
        self._expected = f"Bearer {options.key}".encode()
        self._world = world
        self._faults = faults
        self._second = SlidingSecond(options.rate_limit, world.clock.monotonic)

    def admit(self, request: web.Request) -> Account:
        """Return the account the request acts on. Raises ``ApiError``."""
        self._check_key(request)
        if not self._second.admit():
            raise ApiError(429, message="Too many requests, please try again later.")
        version = request.headers.get("Lune-Version")
        if version is not None and version not in VERSIONS:
            raise ApiError(400, "api_version_invalid", "The Lune-Version header is not supported.")
        return self._account(request)

    def _check_key(self, request: web.Request) -> None:
        given = request.headers.get("Authorization", "").encode(errors="surrogateescape")
        if not hmac.compare_digest(given, self._expected) or self._faults.strike("revoked-key"):
            raise ApiError(401, "unauthorised", "The API Key is missing or is invalid.")

    def _account(self, request: web.Request) -> Account:
        default = self._world.own_accounts()[0]
        account_id = request.headers.get("Lune-Account", default.id)
        account = self._world.accounts.get(account_id)
        # A key never acts on accounts of the other mode (Lune's authentication page).
        if account is None or account.mode != self._world.mode:
            raise ApiError(
                400, "invalid_selected_account_id", "The Lune-Account header names no account."
            )
        suspended = self._faults.get("suspended-account")
        is_meant = suspended is not None and (suspended.arg or default.id) == account.id
        if is_meant and self._faults.strike("suspended-account"):
            raise ApiError(403, "account_suspended", "The account is suspended.")
        return account
