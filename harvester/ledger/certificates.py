"""Certificates in the ledger: the versions that are stored, and those that are owed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    ScalarSelect,
    and_,
    bindparam,
    case,
    exists,
    func,
    literal,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from harvester.domain.certificates import (
    Certificate,
    NewCertificate,
    RecordedVersion,
    certificate_events,
)
from harvester.domain.events import EventType, NewEvent
from harvester.domain.lifecycle import COMPLETE
from harvester.domain.orders import (
    EVERYTHING,
    CertificateKind,
    CertificateState,
    OrderFilter,
    StoredFile,
)
from harvester.ledger.conditions import (
    ACCOUNT_ID,
    AWAITS_CERTIFICATE,
    IS_MISSING,
    conditions,
    is_due,
    is_order,
    order_key,
)
from harvester.ledger.database import Database
from harvester.ledger.events import write_events
from harvester.ledger.schema import PATH, Instant, accounts, certificates, folders, orders

_CHUNK = 500

CERTIFICATE_COLUMNS = (
    certificates.c.version,
    certificates.c.kind,
    PATH,
    certificates.c.sha256,
    certificates.c.size,
    certificates.c.stored_at,
)
"""What :func:`to_certificate` reads, in its order."""

_NEW_FOLDER = insert(folders).on_conflict_do_nothing()
_NEW = insert(certificates).values(
    order_key=order_key(bindparam("b_account"), bindparam("b_order")),
    folder_key=select(folders.c.key).where(folders.c.path == bindparam("b_path")).scalar_subquery(),
)
_INSERT = _NEW.on_conflict_do_update(
    # What was interim may turn out to be final; bytes, name and date never change.
    index_elements=["order_key", "version"],
    set_={"kind": _NEW.excluded.kind, "lost_at": None},
    where=certificates.c.sha256 == _NEW.excluded.sha256,
)
_STORED = (
    update(orders)
    .where(
        is_order(bindparam("b_account"), bindparam("b_order")),
        # An order that completed meanwhile owes its final certificate beside an interim one.
        or_(orders.c.status != COMPLETE, literal(CertificateKind.FINAL) == bindparam("b_kind")),
    )
    .values(
        certificate_state=CertificateState.STORED,
        tried_at=None,
        failure_reason=None,
        # An order that is still open keeps the date of its next check.
        next_check_at=case((orders.c.status == COMPLETE, None), else_=orders.c.next_check_at),
    )
)


@dataclass(frozen=True, slots=True)
class RecordedCertificate:
    """A recorded certificate version with the order it belongs to.

    ``is_replaced``: its file was lost, Lune serves other bytes by now, and those are stored.
    """

    account_id: str
    order_id: str
    certificate: Certificate
    is_replaced: bool


@dataclass(frozen=True, slots=True)
class DueCertificate:
    """A certificate that is to be asked for, with what is needed of its order.

    ``newest_version`` is the newest recorded version, 0 when there is none.
    """

    account_id: str
    order_id: str
    status: str
    created_at: datetime
    owed_since: datetime | None
    attempts: int
    newest_version: int

    @property
    def kind(self) -> CertificateKind:
        """What a certificate served for the order now is: final once the order is complete."""
        return CertificateKind.FINAL if self.status == COMPLETE else CertificateKind.INTERIM


@dataclass(frozen=True, slots=True)
class MissingCertificate:
    """A certificate that should be in the archive and is not, and why."""

    account_id: str
    order_id: str
    state: CertificateState
    reason: str | None
    attempts: int
    next_attempt_at: datetime | None


async def read_certificates(
    database: Database, account_id: str, order_id: str
) -> list[Certificate]:
    """Return the recorded certificate versions of an order, oldest first."""
    query = (
        select(*CERTIFICATE_COLUMNS)
        .join_from(certificates, folders)
        .where(certificates.c.order_key == order_key(account_id, order_id))
        .order_by(certificates.c.version)
    )
    async with database.read() as connection:
        return [to_certificate(row) for row in await connection.execute(query)]


async def recorded_certificates(database: Database) -> AsyncGenerator[RecordedCertificate, None]:
    """Yield every recorded certificate version, in constant memory."""
    row = tuple_(certificates.c.order_key, certificates.c.version)
    last = (0, 0)
    while True:
        query = (
            select(
                certificates.c.order_key,
                accounts.c.id,
                orders.c.id,
                _is_replaced(),
                *CERTIFICATE_COLUMNS,
            )
            .select_from(certificates.join(folders).join(orders).join(accounts))
            .where(row > last)
            .order_by(certificates.c.order_key, certificates.c.version)
            .limit(_CHUNK)
        )
        async with database.read() as connection:
            rows = (await connection.execute(query)).all()
        for _, account_id, order_id, is_replaced, *columns in rows:
            certificate = to_certificate(columns)
            yield RecordedCertificate(account_id, order_id, certificate, bool(is_replaced))
        if len(rows) < _CHUNK:
            return
        last = (rows[-1].order_key, rows[-1].version)


async def has_certificates(database: Database) -> bool:
    """Tell whether any certificate was ever stored."""
    async with database.read() as connection:
        first = await connection.execute(select(certificates.c.name).limit(1))
        return first.first() is not None


async def recorded_paths(database: Database, paths: Collection[str]) -> set[str]:
    """Return those of the archive's paths that a certificate is recorded under."""
    names = {_folder_and_name(path)[1] for path in paths}
    query = select(PATH).join_from(certificates, folders).where(certificates.c.name.in_(names))
    async with database.read() as connection:
        return set(await connection.scalars(query)) & set(paths)


async def record_certificates(database: Database, new: Sequence[NewCertificate]) -> None:
    """Record stored files as these versions, with their events.

    Idempotent for the same versions and bytes.
    """
    rows = [_row(one) for one in new]
    paths = [{"path": path} for path in {row["b_path"] for row in rows}]
    stored = [
        {"b_account": one.account_id, "b_order": one.order_id, "b_kind": one.certificate.kind}
        for one in new
    ]
    async with database.transaction() as tx:
        await write_events(tx, await _events_of(tx, new))
        await tx.execute(_NEW_FOLDER, paths)
        await tx.execute(_INSERT, rows)
        await tx.execute(_STORED, stored)


async def due_certificates(
    database: Database,
    now: datetime,
    horizon: datetime,
    limit: int,
    *,
    scope: OrderFilter = EVERYTHING,
    untried_since: datetime | None = None,
) -> list[DueCertificate]:
    """Return the certificates that are to be asked for now, the longest due first.

    With ``untried_since`` a missing certificate that was not asked for since then is due whatever
    its date. Those of parked accounts are left out.
    """
    due = or_(
        and_(orders.c.status == COMPLETE, is_due(orders.c.next_check_at, now, horizon)),
        # An interim certificate has no date of its own: each check asks for it once.
        and_(
            orders.c.status != COMPLETE,
            or_(orders.c.tried_at.is_(None), orders.c.tried_at < orders.c.last_seen_at),
        ),
    )
    if untried_since is not None:
        due = or_(due, orders.c.tried_at.is_(None), orders.c.tried_at < untried_since)
    query = (
        select(
            accounts.c.id,
            orders.c.id,
            orders.c.status,
            orders.c.created_at,
            orders.c.owed_since,
            orders.c.attempts,
            func.coalesce(newest_version(), 0),
        )
        .join_from(orders, accounts)
        .where(IS_MISSING, accounts.c.parked_reason.is_(None), due, *conditions(scope))
        .order_by(orders.c.next_check_at)
        .limit(limit)
    )
    async with database.read() as connection:
        return [DueCertificate(*row) for row in await connection.execute(query)]


async def missing_certificates(database: Database, scope: OrderFilter) -> list[MissingCertificate]:
    """Return those complete orders in scope whose certificate is not in the archive."""
    query = (
        select(
            accounts.c.id,
            orders.c.id,
            orders.c.certificate_state,
            orders.c.failure_reason,
            orders.c.attempts,
            orders.c.next_check_at,
        )
        .join_from(orders, accounts)
        .where(AWAITS_CERTIFICATE, *conditions(scope))
        .order_by(accounts.c.id, orders.c.id)
    )
    async with database.read() as connection:
        return [
            MissingCertificate(account_id, order_id, CertificateState(state), *rest)
            for account_id, order_id, state, *rest in await connection.execute(query)
        ]


async def count_missing_certificates(database: Database, scope: OrderFilter) -> int:
    """Count what :func:`missing_certificates` would return."""
    query = select(func.count()).select_from(orders).where(AWAITS_CERTIFICATE, *conditions(scope))
    async with database.read() as connection:
        return await connection.scalar(query) or 0


async def retry_certificates(
    database: Database, at: datetime, order_ids: Collection[str] | None
) -> list[tuple[str, str]]:
    """Make missing certificates due now, of these orders or all; return (account, order)."""
    chosen = [IS_MISSING]
    if order_ids is not None:
        chosen.append(orders.c.id.in_(list(order_ids)))
    due = case((orders.c.status == COMPLETE, literal(at, Instant)), else_=orders.c.next_check_at)
    statement = (
        update(orders)
        .where(*chosen)
        .values(next_check_at=due, attempts=0, tried_at=None)
        .returning(ACCOUNT_ID, orders.c.id)
    )
    async with database.transaction() as tx:
        return [(account_id, order_id) for account_id, order_id in await tx.execute(statement)]


async def reopen_certificate(
    database: Database, account_id: str, order_id: str, version: int, at: datetime
) -> None:
    """Owe an order's certificate anew, due now: this version's file is missing or changed.

    Idempotent.
    """
    lost = and_(
        certificates.c.order_key == order_key(account_id, order_id),
        certificates.c.version == version,
    )
    this = is_order(account_id, order_id)
    owed = {"certificate_state": CertificateState.OWED, "owed_since": at, "attempts": 0}
    async with database.transaction() as tx:
        await tx.execute(update(certificates).where(lost).values(lost_at=at))
        await tx.execute(update(orders).where(this).values(**owed, tried_at=None))
        await tx.execute(
            update(orders).where(this, orders.c.status == COMPLETE).values(next_check_at=at)
        )


async def record_certificate_failure(
    database: Database,
    due: DueCertificate,
    at: datetime,
    *,
    state: CertificateState,
    reason: str,
    next_attempt_at: datetime | None,
    counts: bool,
) -> None:
    """Record why a certificate could not be had and when to try again.

    ``next_attempt_at`` None leaves the order's date alone: its next check asks again. ``counts``
    tells whether this was an attempt. An order that moved meanwhile is left as it is, and so is a
    certificate that is no longer owed.
    """
    this = is_order(due.account_id, due.order_id)
    unchanged = orders.c.status == due.status
    values: dict[str, Any] = {
        "certificate_state": state,
        "failure_reason": reason,
        "tried_at": at,
        "attempts": due.attempts + int(counts),
    }
    if next_attempt_at is not None:
        values["next_check_at"] = next_attempt_at
    async with database.transaction() as tx:
        if state is CertificateState.FAILED:
            owed = orders.c.certificate_state == CertificateState.OWED
            query = select(orders.c.idempotency_key).where(this, unchanged, owed)
            newly_failed = (await tx.execute(query)).first()
            if newly_failed is not None:
                data = {
                    "idempotency_key": newly_failed.idempotency_key,
                    "status": due.status,
                    "reason": reason,
                }
                event = NewEvent(
                    EventType.CERTIFICATE_FAILED, due.account_id, due.order_id, at, data
                )
                await write_events(tx, [event])
        await tx.execute(update(orders).where(this, unchanged, IS_MISSING).values(**values))


def newest_version() -> ScalarSelect[int]:
    """Return the newest version of the certificate of an order, as a part of a query."""
    return (
        select(func.max(certificates.c.version))
        .where(certificates.c.order_key == orders.c.key)
        .correlate(orders)
        .scalar_subquery()
    )


def to_certificate(columns: Sequence[Any]) -> Certificate:
    """Return a row of :data:`CERTIFICATE_COLUMNS` as what it means."""
    version, kind, path, sha256, size, stored_at = columns
    return Certificate(version, CertificateKind(kind), StoredFile(path, sha256, size), stored_at)


def _folder_and_name(path: str) -> tuple[str, str]:
    """Return a file's folder, with its slash, and the name in it."""
    folder, slash, name = path.rpartition("/")
    return folder + slash, name


def _row(new: NewCertificate) -> dict[str, Any]:
    file = new.certificate.file
    path, name = _folder_and_name(file.path)
    return {
        "b_account": new.account_id,
        "b_order": new.order_id,
        "b_path": path,
        "version": new.certificate.version,
        "kind": new.certificate.kind,
        "name": name,
        "sha256": file.sha256,
        "size": file.size,
        "stored_at": new.certificate.stored_at,
        "cf_ray": new.cf_ray,
    }


def _is_replaced() -> ColumnElement[bool]:
    newer = certificates.alias()
    return and_(
        certificates.c.lost_at.is_not(None),
        exists().where(
            newer.c.order_key == certificates.c.order_key,
            newer.c.version > certificates.c.version,
        ),
    )


async def _events_of(tx: AsyncConnection, new: Sequence[NewCertificate]) -> list[NewEvent]:
    found = await tx.execute(
        select(
            accounts.c.id,
            orders.c.id,
            orders.c.idempotency_key,
            certificates.c.lost_at,
            *CERTIFICATE_COLUMNS,
        )
        .select_from(orders.join(accounts).outerjoin(certificates).outerjoin(folders))
        # Some of them may be other accounts' orders of the same id.
        .where(orders.c.id.in_({one.order_id for one in new}))
    )
    keys: dict[tuple[str, str], str | None] = {}
    recorded: dict[tuple[str, str], list[RecordedVersion]] = {}
    for account_id, order_id, idempotency_key, lost_at, *columns in found:
        this = account_id, order_id
        keys[this] = idempotency_key
        versions = recorded.setdefault(this, [])
        if columns[0] is not None:
            versions.append(RecordedVersion(to_certificate(columns), lost_at is not None))
    return [
        event
        for one in new
        for event in certificate_events(
            one,
            keys.get((one.account_id, one.order_id)),
            recorded.get((one.account_id, one.order_id), ()),
        )
    ]
