"""Certificates that are stored, by the archive's key of their file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
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
from harvester.domain.records import FiledCertificate, KnownCertificate, NewCertificate
from harvester.ledger.database import Database
from harvester.ledger.events import note_certificates
from harvester.ledger.keys import is_order, order_key
from harvester.ledger.schema import ARCHIVE_KEY, accounts, certificates, folders, orders

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
    """The part about stored certificates of :class:`harvester.domain.ledger.Ledger`."""

    def __init__(self, database: Database) -> None:
        self._database = database

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
