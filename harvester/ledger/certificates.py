"""Certificates in the ledger: which are due, which are stored, why others are not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
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

from harvester.domain.lifecycle import COMPLETE
from harvester.domain.orders import CertificateKind, CertificateState, StoredFile
from harvester.domain.records import (
    EVERYTHING,
    FiledCertificate,
    KnownCertificate,
    KnownOrder,
    MissingCertificate,
    NewCertificate,
    OrderFilter,
)
from harvester.ledger.engine import Database
from harvester.ledger.events import note_certificates, note_failure
from harvester.ledger.filters import AWAITS_CERTIFICATE, IS_MISSING, conditions, is_due
from harvester.ledger.keys import ACCOUNT_ID, is_order, order_key
from harvester.ledger.tables import (
    ARCHIVE_KEY,
    Instant,
    accounts,
    certificates,
    folders,
    orders,
)

_CHUNK = 500

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
        # An order that is still open keeps the date of its next look.
        next_check_at=case((orders.c.status == COMPLETE, None), else_=orders.c.next_check_at),
    )
)


class CertificateRecords:
    """The certificate part of :class:`harvester.domain.ledger.Ledger`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def due_certificates(
        self,
        now: datetime,
        horizon: datetime,
        limit: int,
        *,
        scope: OrderFilter = EVERYTHING,
        untried_since: datetime | None = None,
    ) -> list[KnownOrder]:
        """See the port."""
        due = or_(
            and_(orders.c.status == COMPLETE, is_due(orders.c.next_check_at, now, horizon)),
            # An interim certificate has no date of its own: each look asks for it once.
            and_(
                orders.c.status != COMPLETE,
                or_(orders.c.tried_at.is_(None), orders.c.tried_at < orders.c.last_seen_at),
            ),
        )
        if untried_since is not None:
            due = or_(due, orders.c.tried_at.is_(None), orders.c.tried_at < untried_since)
        query = (
            select(orders, accounts.c.id.label("account_id"), newest_version().label("version"))
            .join_from(orders, accounts)
            .where(
                IS_MISSING,
                accounts.c.parked_reason.is_(None),
                due,
                *conditions(scope),
            )
            .order_by(orders.c.next_check_at)
            .limit(limit)
        )
        async with self._database.read() as connection:
            return [_known(row) for row in await connection.execute(query)]

    async def certificates(self, account_id: str, order_id: str) -> list[KnownCertificate]:
        """See the port."""
        query = (
            select(certificates, ARCHIVE_KEY)
            .join_from(certificates, folders)
            .where(certificates.c.order_key == order_key(account_id, order_id))
            .order_by(certificates.c.version)
        )
        async with self._database.read() as connection:
            return [known_certificate(row) for row in await connection.execute(query)]

    async def stored_certificates(self) -> AsyncIterator[FiledCertificate]:
        """See the port."""
        place = tuple_(certificates.c.order_key, certificates.c.version)
        last = (0, 0)
        while True:
            query = (
                select(
                    certificates,
                    ARCHIVE_KEY,
                    orders.c.id.label("order_id"),
                    accounts.c.id.label("account_id"),
                    _is_replaced().label("is_replaced"),
                )
                .select_from(certificates.join(folders).join(orders).join(accounts))
                .where(place > last)
                .order_by(certificates.c.order_key, certificates.c.version)
                .limit(_CHUNK)
            )
            async with self._database.read() as connection:
                rows = (await connection.execute(query)).all()
            for row in rows:
                yield FiledCertificate(
                    row.account_id, row.order_id, known_certificate(row), bool(row.is_replaced)
                )
            if len(rows) < _CHUNK:
                return
            last = (rows[-1].order_key, rows[-1].version)

    async def has_certificates(self) -> bool:
        """Tell whether any certificate was ever stored."""
        async with self._database.read() as connection:
            first = await connection.execute(select(certificates.c.name).limit(1))
            return first.first() is not None

    async def known_files(self, keys: Collection[str]) -> set[str]:
        """See the port."""
        names = {split_path(key)[1] for key in keys}
        query = (
            select(ARCHIVE_KEY)
            .join_from(certificates, folders)
            .where(certificates.c.name.in_(names))
        )
        async with self._database.read() as connection:
            return set(await connection.scalars(query)) & set(keys)

    async def reopen_certificate(
        self, account_id: str, order_id: str, version: int, at: datetime
    ) -> None:
        """See the port."""
        lost = and_(
            certificates.c.order_key == order_key(account_id, order_id),
            certificates.c.version == version,
        )
        this = is_order(account_id, order_id)
        owed = {"certificate_state": CertificateState.OWED, "owed_since": at, "attempts": 0}

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(update(certificates).where(lost).values(lost_at=at))
            await connection.execute(update(orders).where(this).values(**owed, tried_at=None))
            await connection.execute(
                update(orders).where(this, orders.c.status == COMPLETE).values(next_check_at=at)
            )

        await self._database.write(work)

    async def retry_certificates(
        self, at: datetime, order_ids: Collection[str] | None
    ) -> list[tuple[str, str]]:
        """See the port."""
        chosen = [IS_MISSING]
        if order_ids is not None:
            chosen.append(orders.c.id.in_(list(order_ids)))

        async def work(connection: AsyncConnection) -> list[tuple[str, str]]:
            due = case(
                (orders.c.status == COMPLETE, literal(at, Instant)), else_=orders.c.next_check_at
            )
            rows = await connection.execute(
                update(orders)
                .where(*chosen)
                .values(next_check_at=due, attempts=0, tried_at=None)
                .returning(ACCOUNT_ID, orders.c.id)
            )
            return [(account_id, order_id) for account_id, order_id in rows]

        return await self._database.write(work)

    async def missing_certificates(self, scope: OrderFilter) -> list[MissingCertificate]:
        """See the port."""
        query = (
            select(orders, accounts.c.id.label("account_id"))
            .join_from(orders, accounts)
            .where(AWAITS_CERTIFICATE, *conditions(scope))
            .order_by(accounts.c.id, orders.c.id)
        )
        async with self._database.read() as connection:
            return [
                MissingCertificate(
                    account_id=row.account_id,
                    order_id=row.id,
                    state=CertificateState(row.certificate_state),
                    reason=row.failure_reason,
                    attempts=row.attempts,
                    next_try_at=row.next_check_at,
                )
                for row in await connection.execute(query)
            ]

    async def count_missing_certificates(self, scope: OrderFilter) -> int:
        """See the port."""
        query = select(func.count()).select_from(orders)
        async with self._database.read() as connection:
            found = query.where(AWAITS_CERTIFICATE, *conditions(scope))
            return await connection.scalar(found) or 0

    async def record_certificates(self, filed: Sequence[NewCertificate]) -> None:
        """See the port."""
        rows = [_row(one) for one in filed]
        paths = [{"path": path} for path in {row["b_path"] for row in rows}]
        done = [_done(one) for one in filed]

        async def work(connection: AsyncConnection) -> None:
            await note_certificates(connection, filed)
            await connection.execute(_NEW_FOLDER, paths)
            await connection.execute(_INSERT, rows)
            await connection.execute(_STORED, done)

        await self._database.write(work)

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
        """See the port."""
        values: dict[str, Any] = {
            "certificate_state": state,
            "failure_reason": reason,
            "tried_at": at,
            "attempts": order.attempts + int(spent),
        }
        if due is not None:
            values["next_check_at"] = due

        async def work(connection: AsyncConnection) -> None:
            if state is CertificateState.FAILED:
                await note_failure(connection, order, at, reason)
            await connection.execute(
                update(orders)
                .where(
                    is_order(order.account_id, order.id),
                    # The order may have completed meanwhile: then a new certificate is owed.
                    orders.c.status == order.status,
                    IS_MISSING,
                )
                .values(**values)
            )

        await self._database.write(work)


def _row(one: NewCertificate) -> dict[str, Any]:
    file = one.certificate.file
    path, name = split_path(file.key)
    return {
        "b_account": one.account_id,
        "b_order": one.order_id,
        "b_path": path,
        "version": one.certificate.version,
        "kind": one.certificate.kind,
        "name": name,
        "sha256": file.sha256,
        "size": file.size,
        "stored_at": one.certificate.stored_at,
        "cf_ray": one.cf_ray,
    }


def _done(one: NewCertificate) -> dict[str, Any]:
    return {
        "b_account": one.account_id,
        "b_order": one.order_id,
        "b_kind": one.certificate.kind,
    }


def split_path(key: str) -> tuple[str, str]:
    """Return an archive key's folder, with its slash, and the name in it."""
    folder, slash, name = key.rpartition("/")
    return folder + slash, name


def _known(row: Any) -> KnownOrder:
    return KnownOrder(
        account_id=row.account_id,
        id=row.id,
        status=row.status,
        created_at=row.created_at,
        owed_since=row.owed_since,
        attempts=row.attempts,
        version=row.version or 0,
    )


def newest_version() -> ScalarSelect[Any]:
    """Return the newest version of the certificate of an order, as a part of a query."""
    return (
        select(func.max(certificates.c.version))
        .where(certificates.c.order_key == orders.c.key)
        .correlate(orders)
        .scalar_subquery()
    )


def _is_replaced() -> ColumnElement[bool]:
    newer = certificates.alias()
    return and_(
        certificates.c.lost_at.is_not(None),
        exists().where(
            newer.c.order_key == certificates.c.order_key,
            newer.c.version > certificates.c.version,
        ),
    )


def known_certificate(row: Any) -> KnownCertificate:
    """Return a row of the certificates table as what it means."""
    return KnownCertificate(
        version=row.version,
        kind=CertificateKind(row.kind),
        file=StoredFile(row.key, row.sha256, row.size),
        stored_at=row.stored_at,
    )
