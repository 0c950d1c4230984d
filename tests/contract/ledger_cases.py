"""What the tests of ledgers are written with: an account, orders, pages, and an open ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from harvester.domain.ledger import Ledger
from harvester.domain.orders import (
    Account,
    CertificateKind,
    CertificateState,
    Order,
    OrderPage,
    SetAside,
    Source,
    StoredFile,
)
from harvester.domain.records import (
    KnownCertificate,
    KnownOrder,
    NewCertificate,
    Recorded,
    SweepMark,
)
from harvester.domain.schedule import Cadence
from harvester.ledger.database import Database
from harvester.ledger.queries import OrderDetail, find_orders

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
FAR = NOW + 3650 * DAY
CADENCE = Cadence(sweep_interval=15 * MINUTE, longest_interval=6 * HOUR)
EAGER = replace(CADENCE, interim=True)
ACCOUNT = Account("acct", "Acme", "live", "account", "EUR", "Acme Ltd", "org", is_default=True)
CLIENT = replace(ACCOUNT, id="client", name="Client", scope="client_account", is_default=False)


def order(
    order_id: str = "o1",
    status: str = "placed",
    *,
    created_at: datetime = NOW - DAY,
    key: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    **served: Any,
) -> Order:
    """Make an order as Lune serves it; ``served`` are further fields of its document."""
    return Order(
        id=order_id,
        status=status,
        created_at=created_at,
        idempotency_key=key,
        quantity="1.250",
        metadata=metadata or {},
        document={"id": order_id, "status": status, "metadata": metadata or {}, **served},
    )


def stored(
    version: int = 1,
    kind: CertificateKind = CertificateKind.FINAL,
    *,
    key: str = "acct/o1.pdf",
    sha256: str = "a" * 64,
    at: datetime = NOW,
) -> KnownCertificate:
    return KnownCertificate(version, kind, StoredFile(key, sha256, 61_440), at)


@dataclass(frozen=True, slots=True)
class Kept:
    """An open ledger under test, and the database that the queries read it from."""

    ledger: Ledger
    database: Database

    async def see(
        self,
        *orders: Order,
        at: datetime = NOW,
        account: Account = ACCOUNT,
        source: Source = Source.SWEEP,
        cadence: Cadence = CADENCE,
        sweep: SweepMark | None = None,
        set_aside: Sequence[SetAside] = (),
    ) -> Recorded:
        """Record one answer of Lune's that holds these orders."""
        page = OrderPage(orders, tuple(set_aside), None)
        return await self.ledger.record_orders(account, page, source, at, cadence, sweep)

    async def whole(self, order_id: str = "o1", account: Account = ACCOUNT) -> OrderDetail:
        (found,) = await find_orders(self.database, order_id, account.id)
        return found

    async def chain(
        self, order_id: str = "o1", account: Account = ACCOUNT
    ) -> list[tuple[str | None, str]]:
        """Return an order's transitions, having seen that the chain has no gap."""
        steps = (await self.whole(order_id, account)).transitions
        assert [step.seq for step in steps] == list(range(1, len(steps) + 1))
        assert [step.from_status for step in steps] == [
            None,
            *(step.to_status for step in steps[:-1]),
        ]
        return [(step.from_status, step.to_status) for step in steps]

    async def due(self, now: datetime = NOW, **more: Any) -> list[KnownOrder]:
        """Return whose certificate is to be asked for."""
        return await self.ledger.due_certificates(now, CADENCE.horizon(now), 1000, **more)

    async def due_ids(self, now: datetime = NOW, **more: Any) -> list[str]:
        return [one.id for one in await self.due(now, **more)]

    async def looks(self, now: datetime = NOW, account: Account = ACCOUNT) -> dict[str, int | None]:
        """Return the orders due to be looked at, and their places in the listing."""
        looks = await self.ledger.due_looks(now, CADENCE.horizon(now), [account.id])
        assert set(looks) <= {account.id}
        due = looks.get(account.id, ())
        assert len({look.order_id for look in due}) == len(due)
        return {look.order_id: look.place for look in due}

    async def fail(
        self,
        one: KnownOrder,
        at: datetime = NOW,
        *,
        state: CertificateState = CertificateState.OWED,
        reason: str = "none yet",
        due: datetime | None = None,
        spent: bool = True,
    ) -> None:
        """Record that a certificate could not be had."""
        await self.ledger.record_certificate_failure(
            one, at, state=state, reason=reason, due=due, spent=spent
        )

    async def file(
        self, certificate: KnownCertificate, order_id: str = "o1", account: Account = ACCOUNT
    ) -> None:
        """Record a certificate that lies in the archive."""
        new = NewCertificate(account.id, order_id, certificate, "8f-AMS")
        await self.ledger.record_certificates([new])
