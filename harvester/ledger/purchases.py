"""Intentions in the ledger: purchases written down before money is spent."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from sqlalchemy import and_, select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from harvester.domain.purchases import Purchase
from harvester.domain.records import Intention
from harvester.ledger.database import Database
from harvester.ledger.schema import intentions


class IntentionRecords:
    """The intention part of :class:`harvester.domain.ledger.Ledger`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record_intention(
        self, account_id: str, idempotency_key: str, purchase: Purchase, at: datetime
    ) -> Intention | None:
        """See the port."""
        values = {
            "kind": purchase.kind,
            "request": json.dumps(purchase.request, ensure_ascii=False),
            "intended_at": at,
            "settled_at": None,
            "refusal": None,
        }

        async def work(connection: AsyncConnection) -> Intention | None:
            written = await connection.execute(
                insert(intentions)
                .values(account_id=account_id, idempotency_key=idempotency_key, **values)
                .on_conflict_do_update(
                    index_elements=["account_id", "idempotency_key"],
                    set_=values,
                    where=intentions.c.refusal.is_not(None),
                )
                .returning(intentions.c.account_id)
            )
            if written.first() is not None:
                return None
            this = _this(account_id, idempotency_key)
            return _intention((await connection.execute(select(intentions).where(this))).one())

        return await self._database.write(work)

    async def settle_intention(
        self,
        account_id: str,
        idempotency_key: str,
        at: datetime,
        *,
        order_id: str | None = None,
        refusal: str | None = None,
    ) -> None:
        """See the port."""

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(
                update(intentions)
                .where(_this(account_id, idempotency_key), intentions.c.order_id.is_(None))
                .values(settled_at=at, order_id=order_id, refusal=refusal)
            )

        await self._database.write(work)

    async def unsettled_intentions(self) -> list[Intention]:
        """See the port."""
        query = (
            select(intentions)
            .where(intentions.c.settled_at.is_(None))
            .order_by(intentions.c.intended_at)
        )
        async with self._database.read() as connection:
            return [_intention(row) for row in await connection.execute(query)]


def _this(account_id: str, idempotency_key: str) -> Any:
    return and_(
        intentions.c.account_id == account_id, intentions.c.idempotency_key == idempotency_key
    )


def _intention(row: Any) -> Intention:
    return Intention(
        account_id=row.account_id,
        idempotency_key=row.idempotency_key,
        purchase=Purchase(row.kind, json.loads(row.request)),
        intended_at=row.intended_at,
        order_id=row.order_id,
        refusal=row.refusal,
    )
