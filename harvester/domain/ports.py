"""What the harvest needs of its neighbours, as Protocols: Lune and the archive.

The ledger, the largest, is in :mod:`harvester.domain.ledger`.

Absence is None or an empty answer unless a method says otherwise; faults are the errors of
:mod:`harvester.domain.errors`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Protocol

from harvester.domain.errors import StorageUnavailable
from harvester.domain.orders import (
    Account,
    CertificateBody,
    Order,
    OrderPage,
    StoredFile,
)
from harvester.domain.purchases import Purchase, Quote
from harvester.lune.priority import Urgency


class Lune(Protocol):
    """Lune's API, reading. Every call is idempotent and raises ``LuneError`` kinds."""

    async def fetch_own_account(self) -> Account:
        """Return the key's default account. ``KeyRefused`` when the key is not accepted."""
        ...

    async def probe(self) -> Account:
        """Ask for the default account with the key read anew; lifts an earlier refusal."""
        ...

    async def fetch_account(self, account_id: str) -> Account:
        """Return one account the key may act on."""
        ...

    async def fetch_accounts(self) -> list[Account]:
        """Return every account and client account of the key's own mode, the default one first."""
        ...

    async def fetch_orders(
        self, account: Account, after: str | None = None, *, urgency: Urgency = Urgency.DUE
    ) -> OrderPage:
        """Return one page of 100 orders, newest first, after a cursor."""
        ...

    async def fetch_order(
        self, account: Account, order_id: str, *, urgency: Urgency = Urgency.DUE
    ) -> Order:
        """Return one order; ``NotFound`` when there is none in this account."""
        ...

    async def fetch_order_by_key(self, account: Account, idempotency_key: str) -> Order:
        """Return the order with this idempotency key; ``NotFound`` when there is none."""
        ...

    def redact(self, data: bytes) -> bytes:
        """Return served bytes without the key, should they quote it."""
        ...

    async def quote(self, account: Account, purchase: Purchase) -> Quote:
        """Price a purchase without placing it."""
        ...

    async def place_order(
        self, account: Account, purchase: Purchase, idempotency_key: str
    ) -> Order:
        """Place an order; sent once. Not idempotent, but a key buys at most once."""
        ...

    async def fetch_certificate(self, account: Account, order_id: str) -> CertificateBody:
        """Return the order's certificate, unchecked; ``NotFound`` when there is none yet."""
        ...


class Naming(Protocol):
    """How certificates are named: the archive key of an order's certificate version."""

    def __call__(
        self,
        account_id: str,
        order_id: str,
        created_at: datetime,
        version: int,
        *,
        interim: bool = False,
    ) -> str:
        """Return the key; the same arguments give the same key for ever."""
        ...


class Archive(Protocol):
    """Where certificates are kept: whole files under final names that never change."""

    async def put(self, key: str, data: bytes) -> StoredFile | None:
        """Store bytes under a key, durably; None when the key holds other bytes already.

        Idempotent: the same bytes under the same key are found, made durable and returned.
        Returns only once the file survives a power cut. Raises ``StorageUnavailable``.
        """
        ...

    async def put_all(
        self, files: Sequence[tuple[str, bytes]]
    ) -> list[StoredFile | StorageUnavailable | None]:
        """Store several files as ``put`` does, for less than one by one.

        A file that cannot be stored has its fault in its place; what concerns all is raised.
        """
        ...

    async def existing(self, keys: Iterable[str]) -> set[str]:
        """Return those keys that something lies under. Raises ``StorageUnavailable``."""
        ...

    async def read(self, key: str) -> bytes | None:
        """Return the bytes under a key; None when there are none. Raises ``StorageUnavailable``."""
        ...

    async def quarantine(self, name: str, data: bytes, reason: str) -> None:
        """Keep rejected bytes and the reason for inspection, apart from final names.

        Best effort: a full archive loses the inspection copy, never raises.
        """
        ...

    async def probe(self) -> None:
        """Store, sync and remove a file of no meaning; ``StorageUnavailable`` says why not."""
        ...

    async def digest(self, key: str) -> StoredFile | None:
        """Hash what lies under a key now; None when there is nothing."""
        ...

    async def remove_to_quarantine(self, key: str, reason: str) -> Path | None:
        """Move a file that is not what was stored away; return where, None when it is gone."""
        ...

    def keys(self) -> AsyncIterator[str]:
        """Iterate over the keys of all files under final names, in constant memory."""
        ...
