"""What the tests of ledgers are written with: an account, orders, pages, and an open ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from harvester.domain.certificates import Certificate, NewCertificate
from harvester.domain.orders import (
    Account,
    CertificateKind,
    CertificateState,
    Order,
    OrderPage,
    RejectedOrder,
    Source,
    StoredFile,
)
from harvester.domain.schedule import Schedule
from harvester.ledger.accounts import SweepMark
from harvester.ledger.certificates import (
    DueCertificate,
    due_certificates,
    record_certificate_failure,
    record_certificates,
)
from harvester.ledger.database import Database
from harvester.ledger.orders import Recorded, record_orders
from harvester.ledger.queries import OrderDetail, find_orders
from harvester.ledger.schedule import due_checks
from harvester.ledger.statistics import Statistics, read_statistics

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
FAR = NOW + 3650 * DAY
SCHEDULE = Schedule(sweep_interval=15 * MINUTE, longest_interval=6 * HOUR)
EAGER = replace(SCHEDULE, interim=True)
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
    path: str = "acct/o1.pdf",
    sha256: str = "a" * 64,
    at: datetime = NOW,
) -> Certificate:
    return Certificate(version, kind, StoredFile(path, sha256, 61_440), at)


@dataclass(frozen=True, slots=True)
class Kept:
    """An open ledger under test."""

    database: Database

    async def see(
        self,
        *orders: Order,
        at: datetime = NOW,
        account: Account = ACCOUNT,
        source: Source = Source.SWEEP,
        schedule: Schedule = SCHEDULE,
        sweep: SweepMark | None = None,
        rejected: Sequence[RejectedOrder] = (),
    ) -> Recorded:
        """Record one answer of Lune's that holds these orders."""
        page = OrderPage(orders, tuple(rejected), None)
        return await record_orders(self.database, account, page, source, at, schedule, sweep=sweep)

    async def whole(self, order_id: str = "o1", account: Account = ACCOUNT) -> OrderDetail:
        (found,) = await find_orders(self.database, order_id, account.id)
        return found

    async def chain(
        self, order_id: str = "o1", account: Account = ACCOUNT
    ) -> list[tuple[str | None, str]]:
        """Return an order's transitions, having seen that the chain has no gap."""
        steps = (await self.whole(order_id, account)).transitions
        assert [step.seq for step in steps] == list(range(1, len(steps) + 1))
        assert [step.before for step in steps] == [None, *(step.after for step in steps[:-1])]
        return [(step.before, step.after) for step in steps]

    async def due(self, now: datetime = NOW, **more: Any) -> list[DueCertificate]:
        """Return which certificates are to be asked for."""
        return await due_certificates(self.database, now, SCHEDULE.horizon(now), 1000, **more)

    async def due_ids(self, now: datetime = NOW, **more: Any) -> list[str]:
        return [one.order_id for one in await self.due(now, **more)]

    async def checks(
        self, now: datetime = NOW, account: Account = ACCOUNT
    ) -> dict[str, int | None]:
        """Return the orders due to be checked, and their positions in the listing."""
        found = await due_checks(self.database, now, SCHEDULE.horizon(now), [account.id])
        assert set(found) <= {account.id}
        due = found.get(account.id, ())
        assert len({check.order_id for check in due}) == len(due)
        return {check.order_id: check.position for check in due}

    async def fail(
        self,
        one: DueCertificate,
        at: datetime = NOW,
        *,
        state: CertificateState = CertificateState.OWED,
        reason: str = "none yet",
        again: datetime | None = None,
        counts: bool = True,
    ) -> None:
        """Record that a certificate could not be had."""
        await record_certificate_failure(
            self.database,
            one,
            at,
            state=state,
            reason=reason,
            next_attempt_at=again,
            counts=counts,
        )

    async def store(
        self, certificate: Certificate, order_id: str = "o1", account: Account = ACCOUNT
    ) -> None:
        """Record a certificate that lies in the archive."""
        new = NewCertificate(account.id, order_id, certificate, "8f-AMS")
        await record_certificates(self.database, [new])

    async def statistics(self, now: datetime = NOW) -> Statistics:
        """Count everything."""
        async with self.database.read() as connection:
            return await read_statistics(connection, now)
