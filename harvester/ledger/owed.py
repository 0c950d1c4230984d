"""Certificates that are owed: which are due, what failed and why, what is to be tried anew."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import and_, case, func, literal, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from harvester.domain.lifecycle import COMPLETE
from harvester.domain.orders import CertificateState
from harvester.domain.records import EVERYTHING, KnownOrder, MissingCertificate, OrderFilter
from harvester.ledger.certificates import newest_version
from harvester.ledger.conditions import AWAITS_CERTIFICATE, IS_MISSING, conditions, is_due
from harvester.ledger.database import Database
from harvester.ledger.events import note_failure
from harvester.ledger.keys import ACCOUNT_ID, is_order, order_key
from harvester.ledger.schema import Instant, accounts, certificates, orders


class OwedRecords:
    """The part about owed certificates of :class:`harvester.domain.ledger.Ledger`."""

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
