"""A ledger and an archive that hold one of each kind of record there is.

Made by the ledger's own functions at fixed instants, so that everything that reads them can be
compared with an answer that was written down. A new kind of record gets its example here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from harvester.archive.directory import DirectoryArchive
from harvester.domain.certificate_names import DEFAULT_LAYOUT, CertificateNames
from harvester.domain.certificates import Certificate, NewCertificate
from harvester.domain.events import EventFilter, EventType
from harvester.domain.lune_events import LuneEvent, LuneWebhook
from harvester.domain.orders import (
    Account,
    CertificateKind,
    CertificateState,
    Order,
    OrderPage,
    RejectedOrder,
    Source,
)
from harvester.domain.purchases import by_mass
from harvester.domain.schedule import Schedule
from harvester.domain.stuck import Basis, Bound
from harvester.ledger import migrate
from harvester.ledger.accounts import begin_sweep, finish_sweep, park_account, record_accounts
from harvester.ledger.certificates import (
    due_certificates,
    record_certificate_failure,
    record_certificates,
    reopen_certificate,
)
from harvester.ledger.database import Database
from harvester.ledger.hints import record_webhooks
from harvester.ledger.orders import record_not_found, record_orders
from harvester.ledger.outbox import (
    FailedAttempt,
    park_receiver,
    register_receivers,
    settle_deliveries,
)
from harvester.ledger.purchases import record_purchase, settle_purchase
from harvester.ledger.stuck import mark_stuck
from harvester.sandbox.pdf import Line, one_page

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
NOW = datetime(2024, 3, 1, 12, tzinfo=UTC)
SCHEDULE = Schedule(15 * MINUTE, 6 * HOUR, interim=True)
NAMES = CertificateNames(DEFAULT_LAYOUT)

OWN = Account("own", "Acme Logistics", "test", "account", "EUR", "Acme Ltd", "org", is_default=True)
CLIENT = Account("client", "Fjord Café", "test", "client_account", "NOK", None, "org")
PARKED = Account("parked", "Suspended & Sons", "test", "client_account", "GBP", "Sons", "org")

HOSTILE = "=cmd|' /C calc'!A0 \x1b[31m\u202e</td>"
"""What an order's own text may try: a formula, a terminal's escape, a reversal, an end of tag."""

RECEIVERS: Mapping[str, EventFilter] = {
    "billing": EventFilter(),
    "stored-only": EventFilter(types=frozenset({EventType.CERTIFICATE_STORED})),
    "gone": EventFilter(accounts=frozenset({"client"})),
}


def order(order_id: str, status: str, *, day: int = 1, **changed: Any) -> Order:
    """Make an order that was created on a day of February, as Lune serves it."""
    created_at = datetime(2024, 2, day, 9, 30, tzinfo=UTC)
    served: dict[str, Any] = {
        "id": order_id,
        "status": status,
        "currency": "EUR",
        "total_cost": "12.50",
        "payment_method": "invoice",
        "bundles": [],
        "projects": [],
        "metadata": changed.get("metadata", {}),
    } | changed.pop("document", {})
    made = Order(order_id, status, created_at, f"INV-{order_id}", "1.250", {}, served)
    return replace(made, **changed)


def pdf(text: str) -> bytes:
    """Make a whole PDF, the same bytes each time."""
    return one_page([Line(text)], title=text)


class Everything:
    """The builder; ``build`` makes ``ledger`` and ``archive`` from nothing."""

    def __init__(self, ledger: Path, archive: Path) -> None:
        self.ledger = ledger
        self.archive = archive

    async def build(self) -> None:
        """Make everything."""
        self.ledger.parent.mkdir(parents=True, exist_ok=True)
        migrate.upgrade(self.ledger)
        database = Database(self.ledger)
        archive = DirectoryArchive(self.archive)
        try:
            await archive.prepare(create=True)
            await register_receivers(database, RECEIVERS)
            await record_accounts(database, [OWN, CLIENT, PARKED], NOW - 20 * DAY)
            await self._sweep(database)
            await self._store_certificates(database, archive)
            await self._break_things(database, archive)
            await self._buy(database)
            await self._receive_webhooks(database)
            await self._deliver(database)
        finally:
            await archive.close()
            await database.close()

    async def _see(
        self, database: Database, *orders: Order, at: datetime, account: Account = OWN, **more: Any
    ) -> None:
        page = OrderPage(orders, more.pop("rejected", ()))
        source = more.pop("source", Source.SWEEP)
        await record_orders(database, account, page, source, at, SCHEDULE, **more)

    async def _sweep(self, database: Database) -> None:
        """Record orders in every status, moves from every source, anomalies of every kind."""
        first = NOW - 10 * DAY
        mark = await begin_sweep(database, OWN.id)
        await self._see(
            database,
            order("o16-hostile", "placed", day=16, metadata={"note": HOSTILE}, quantity=None),
            order("o15-unknown", "placed", day=15),
            order("o14-complete-then-paid", "complete", day=14),
            order("o13-backward", "paid", day=13),
            order("o12-missing", "placed", day=12),
            order("o11-failed", "failed", day=11),
            order("o10-cancelled", "cancelled", day=10),
            order("o9-lost", "complete", day=9),
            order("o8-changed-twice", "complete", day=8),
            order("o7-quarantined", "complete", day=7),
            order("o6-owed", "complete", day=6),
            order("o5-stored", "retiring", day=5),
            order("o4-retiring", "paid", day=4),
            order("o3-paid", "placed", day=3),
            order("o2-stuck", "placed", day=2),
            order("o1-received", "received", day=1),
            at=first,
            sweep=mark,
            rejected=(RejectedOrder("no-status", "status: not printable text", '{"id": 1}'),),
        )
        await finish_sweep(database, OWN.id, mark, first, NOW + 15 * MINUTE, joined=True)
        # The same id in two accounts.
        twin = order("o5-stored", "paid", day=5, idempotency_key=None)
        await self._see(database, twin, at=first, account=CLIENT, source=Source.DRAIN)
        await self._see(database, order("p1", "paid"), at=first, account=PARKED)
        await park_account(database, PARKED.id, "the account is suspended", NOW + HOUR, NOW - DAY)
        later = NOW - 5 * DAY
        await self._see(database, order("o3-paid", "paid", day=3), at=later, source=Source.CHECK)
        await self._see(
            database, order("o4-retiring", "retiring", day=4), at=later, source=Source.TRACK
        )
        await self._see(database, order("o5-stored", "complete", day=5), at=later)
        await self._see(database, order("o13-backward", "placed", day=13), at=later)
        await self._see(database, order("o14-complete-then-paid", "paid", day=14), at=later)
        await self._see(database, order("o15-unknown", "pooled", day=15), at=later)
        await record_not_found(database, OWN.id, "o12-missing", later, NOW + HOUR)
        bounds = {"placed": Bound(3 * DAY, Basis.CONFIGURED)}
        await mark_stuck(database, bounds, NOW - 6 * DAY)

    async def _store_certificates(self, database: Database, archive: DirectoryArchive) -> None:
        """Store final, interim, superseded and recovered ones; leave two missing."""
        await self._store(database, archive, "o4-retiring", 4, 1, CertificateKind.INTERIM)
        await self._store(database, archive, "o5-stored", 5, 1)
        await self._store(database, archive, "o8-changed-twice", 8, 1)
        await self._store(database, archive, "o8-changed-twice", 8, 2)
        await self._store(database, archive, "o9-lost", 9, 1)
        await self._store(database, archive, "o14-complete-then-paid", 14, 1, cf_ray=None)
        due = {
            one.order_id: one
            for one in await due_certificates(database, NOW, SCHEDULE.horizon(NOW), 100)
        }
        await record_certificate_failure(
            database,
            due["o6-owed"],
            NOW - HOUR,
            state=CertificateState.OWED,
            reason="Lune answers 404: there is none yet",
            next_attempt_at=NOW + HOUR,
            counts=True,
        )
        await record_certificate_failure(
            database,
            due["o7-quarantined"],
            NOW - HOUR,
            state=CertificateState.FAILED,
            reason="not a whole PDF: it does not start like one",
            next_attempt_at=NOW + 2 * HOUR,
            counts=True,
        )
        await archive.quarantine("o7-quarantined", b"<html>", "not a whole PDF")

    async def _store(
        self,
        database: Database,
        archive: DirectoryArchive,
        order_id: str,
        day: int,
        version: int,
        kind: CertificateKind = CertificateKind.FINAL,
        cf_ray: str | None = "8f-AMS",
    ) -> None:
        created_at = datetime(2024, 2, day, 9, 30, tzinfo=UTC)
        interim = kind is CertificateKind.INTERIM
        path = NAMES.path(OWN.id, order_id, created_at, version, interim=interim)
        file = await archive.put(path, pdf(f"{order_id} {version}"))
        assert file is not None
        certificate = Certificate(version, kind, file, NOW - 4 * DAY + version * HOUR)
        await record_certificates(database, [NewCertificate(OWN.id, order_id, certificate, cf_ray)])

    async def _break_things(self, database: Database, archive: DirectoryArchive) -> None:
        """Lose a file, change one, lay one that nobody recorded, leave a temporary one."""
        lost = archive.locate("own/2024-02/o9-lost.pdf")
        lost.unlink()
        await reopen_certificate(database, OWN.id, "o9-lost", 1, NOW - 2 * HOUR)
        await self._store(database, archive, "o9-lost", 9, 2)
        archive.locate("own/2024-02/o14-complete-then-paid.pdf").write_bytes(pdf("changed"))
        archive.locate("own/2024-02/unknown.pdf").write_bytes(pdf("unknown"))
        (self.archive / ".incoming" / "left.part").write_bytes(b"left behind")

    async def _buy(self, database: Database) -> None:
        """Record purchases that were settled, refused, and of which nobody knows."""
        for key in ("INV-settled", "INV-refused", "INV-in-doubt"):
            await record_purchase(database, OWN.id, key, by_mass("1", "t"), NOW - DAY)
        await settle_purchase(database, OWN.id, "INV-settled", NOW, order_id="o3-paid")
        await settle_purchase(database, OWN.id, "INV-refused", NOW, refusal="not enough credit")

    async def _receive_webhooks(self, database: Database) -> None:
        """Record events that hint, that are old news, that are unreadable, that came too late."""

        def event(number: int, kind: str, order_id: str) -> LuneEvent:
            return LuneEvent(
                reference=f"event{number}",
                document=b"{}",
                type=kind,
                api_version="v1",
                sequence=f"2024-03-01 {number:06d}",
                account_id=OWN.id,
                order_id=order_id,
            )

        known = event(1, "order.retiring", "o3-paid")
        unknown = event(2, "order.placed", "o99-never-listed")
        old = event(3, "order.received", "o5-stored")
        unreadable = LuneEvent("sha256:00", b"\xff", problem="not UTF-8")
        late = event(5, "order.paid", "o1-received")
        for events, is_stale in (((known, unknown, old, unreadable), False), ((late,), True)):
            received = NOW - MINUTE
            webhook = LuneWebhook(received - MINUTE, received, is_stale, events)
            await record_webhooks(database, [webhook])

    async def _deliver(self, database: Database) -> None:
        """Deliver most events to billing; one failed there, another receiver is parked."""
        async with database.read() as connection:
            found = await connection.exec_driver_sql("SELECT seq FROM events ORDER BY seq")
            seqs = [row[0] for row in found]
        failed = {seqs[3]: FailedAttempt(2, NOW + HOUR, "status 500")}
        await settle_deliveries(database, "billing", [*seqs[:3], *seqs[4:-2]], failed)
        await park_receiver(database, "gone", "status 410")
