"""The ledger, as the harvest needs it: the port that ``harvester.ledger`` implements."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from harvester.domain.lune_events import WebhookLedger
from harvester.domain.orders import (
    Account,
    CertificateState,
    OrderPage,
    Source,
)
from harvester.domain.purchases import Purchase
from harvester.domain.records import (
    EVERYTHING,
    DueLook,
    FiledCertificate,
    Intention,
    KnownCertificate,
    KnownOrder,
    MissingCertificate,
    NewCertificate,
    OpenOrder,
    OrderFilter,
    Recorded,
    SweepMark,
)
from harvester.domain.schedule import Cadence, Stay
from harvester.domain.stuck import Bound, StuckOrder


class Ledger(WebhookLedger, Protocol):
    """The record of what was observed and stored.

    Every writing call is one transaction, durable when it returns, and raises
    ``LedgerUnavailable`` when it did not happen.
    """

    async def record_accounts(self, found: Sequence[Account], at: datetime) -> None:
        """Insert or refresh accounts. Idempotent."""
        ...

    async def modes(self) -> set[str]:
        """Return the modes (live, test) of all accounts ever recorded."""
        ...

    async def accounts(self, ids: Collection[str] | None = None) -> list[Account]:
        """Return recorded accounts: those with these ids, or all."""
        ...

    async def due_accounts(self, now: datetime, horizon: datetime) -> set[str]:
        """Return ids of accounts whose newest page is due, parked ones whose time has come too."""
        ...

    async def parked_accounts(self) -> set[str]:
        """Return ids of the accounts that are left alone for now."""
        ...

    async def begin_sweep(self, account_id: str) -> SweepMark:
        """Start a sweep of the account under a new number. Not idempotent."""
        ...

    async def finish_sweep(
        self, account_id: str, mark: SweepMark, at: datetime, due: datetime, *, joined: bool
    ) -> None:
        """Record a good sweep, lift a parking, and say when the next one is due."""
        ...

    async def park_account(
        self, account_id: str, reason: str, until: datetime, at: datetime
    ) -> bool:
        """Leave an account alone until ``until``; True when it was not parked before."""
        ...

    async def postpone_sweep(self, account_id: str, due: datetime) -> None:
        """Set an account's next sweep after a failed one."""
        ...

    async def due_looks(
        self, now: datetime, horizon: datetime, account_ids: Collection[str] | None = None
    ) -> Mapping[str, Sequence[DueLook]]:
        """Return the open orders whose look is due, by account: these accounts' or all.

        Parked accounts' are among them; an account without any is absent.
        """
        ...

    async def newest_places(self, account_ids: Collection[str]) -> Mapping[str, int]:
        """Return the place of each account's newest order; absent when no order has one."""
        ...

    async def order_above(self, account_id: str, order_id: str) -> DueLook | None:
        """Return the order just newer than this one, and its place; None above the newest."""
        ...

    async def place_orders(self, account_id: str, order_ids: Sequence[str], first: int) -> None:
        """Give consecutive orders of a listing, newest first, the places from ``first`` down.

        Idempotent; orders that have a place keep it.
        """
        ...

    async def record_orders(
        self,
        account: Account,
        page: OrderPage,
        source: Source,
        at: datetime,
        cadence: Cadence,
        sweep: SweepMark | None = None,
        place: int | None = None,
    ) -> Recorded:
        """Record served orders: new ones, moves, anomalies, what is owed, when to look next.

        ``place`` is the place of the page's first order, as far as the caller knows.
        """
        ...

    async def recent_stays(self, count: int, now: datetime) -> list[Stay]:
        """Return how long the ``count`` orders that moved last were in each of their statuses.

        Only stays that were seen to begin are told.
        """
        ...

    async def announce_stuck(
        self, bounds: Mapping[str, Bound], now: datetime
    ) -> Sequence[StuckOrder]:
        """Return open orders beyond their status's bound, each once a stay, and write the event."""
        ...

    async def record_missing(
        self, account_id: str, order_id: str, at: datetime, due: datetime
    ) -> None:
        """Record that Lune answered 404 for a known order; its status stays."""
        ...

    async def postpone_looks(
        self, account_id: str, order_ids: Iterable[str], due: datetime
    ) -> None:
        """Set when to look again at orders that could not be looked at."""
        ...

    async def unseen_open(self, account_id: str, before: datetime, scope: OrderFilter) -> list[str]:
        """Return the account's open orders in scope that were last looked at before an instant."""
        ...

    async def due_certificates(
        self,
        now: datetime,
        horizon: datetime,
        limit: int,
        *,
        scope: OrderFilter = EVERYTHING,
        untried_since: datetime | None = None,
    ) -> list[KnownOrder]:
        """Return orders whose certificate is to be asked for now, the longest due first.

        With ``untried_since`` a missing certificate that was not asked for since then is due
        whatever its date. Orders of parked accounts are left out.
        """
        ...

    async def certificates(self, account_id: str, order_id: str) -> list[KnownCertificate]:
        """Return the recorded certificate versions of an order, oldest first."""
        ...

    def stored_certificates(self) -> AsyncIterator[FiledCertificate]:
        """Iterate over every recorded certificate version, in constant memory."""
        ...

    async def known_files(self, keys: Collection[str]) -> set[str]:
        """Return those of the archive keys that a certificate is recorded under."""
        ...

    async def reopen_certificate(
        self, account_id: str, order_id: str, version: int, at: datetime
    ) -> None:
        """Owe an order's certificate anew, due now: this version's file is missing or changed."""
        ...

    async def retry_certificates(
        self, at: datetime, order_ids: Collection[str] | None
    ) -> list[tuple[str, str]]:
        """Make missing certificates due now, of these orders or all; return (account, order)."""
        ...

    async def missing_certificates(self, scope: OrderFilter) -> list[MissingCertificate]:
        """Return complete orders in scope whose certificate is not in the archive."""
        ...

    async def count_missing_certificates(self, scope: OrderFilter) -> int:
        """Count what :meth:`missing_certificates` would return."""
        ...

    async def open_orders(self, scope: OrderFilter) -> list[OpenOrder]:
        """Return orders in scope whose status can still change."""
        ...

    async def earliest_due(self, scope: OrderFilter) -> datetime | None:
        """Return the earliest date at which something in scope is due."""
        ...

    async def record_certificates(self, filed: Sequence[NewCertificate]) -> None:
        """Record stored files as these versions. Idempotent for the same versions and bytes."""
        ...

    async def record_certificate_failure(
        self,
        order: KnownOrder,
        at: datetime,
        *,
        state: CertificateState,
        reason: str,
        due: datetime | None,
        spent: bool,
    ) -> None:
        """Record why a certificate could not be had and when to try again.

        ``due`` None leaves the order's due date alone (its next look asks again); ``spent``
        counts an attempt.
        """
        ...

    async def record_intention(
        self, account_id: str, idempotency_key: str, purchase: Purchase, at: datetime
    ) -> Intention | None:
        """Write down what is to be bought; None when that is new.

        A key that was used before gives what was written then, which stays, unless it was
        refused: then it is written anew.
        """
        ...

    async def settle_intention(
        self,
        account_id: str,
        idempotency_key: str,
        at: datetime,
        *,
        order_id: str | None = None,
        refusal: str | None = None,
    ) -> None:
        """Write down the order an intention became, or why it became none. Idempotent."""
        ...

    async def unsettled_intentions(self) -> list[Intention]:
        """Return intentions of which nobody knows what became, oldest first."""
        ...
