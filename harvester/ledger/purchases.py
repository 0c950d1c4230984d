"""Purchases in the ledger: written down before money is spent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, select, update
from sqlalchemy.dialects.sqlite import insert

from harvester.domain.purchases import Purchase
from harvester.ledger.database import Database
from harvester.ledger.schema import purchases

_COLUMNS = (
    purchases.c.account_id,
    purchases.c.idempotency_key,
    purchases.c.kind,
    purchases.c.request,
    purchases.c.recorded_at,
    purchases.c.order_id,
    purchases.c.refusal,
)


@dataclass(frozen=True, slots=True)
class RecordedPurchase:
    """A purchase written down before Lune was asked, and how it was settled, if it was."""

    account_id: str
    idempotency_key: str
    purchase: Purchase
    recorded_at: datetime
    order_id: str | None
    refusal: str | None


async def record_purchase(
    database: Database, account_id: str, idempotency_key: str, purchase: Purchase, at: datetime
) -> RecordedPurchase | None:
    """Write down what is to be bought; None when that is new.

    A key that was used before gives what was written then, which stays, unless it was refused:
    then it is written anew.
    """
    values = {
        "kind": purchase.kind,
        "request": json.dumps(purchase.request, ensure_ascii=False),
        "recorded_at": at,
        "settled_at": None,
        "refusal": None,
    }
    statement = (
        insert(purchases)
        .values(account_id=account_id, idempotency_key=idempotency_key, **values)
        .on_conflict_do_update(
            index_elements=["account_id", "idempotency_key"],
            set_=values,
            where=purchases.c.refusal.is_not(None),
        )
        .returning(purchases.c.account_id)
    )
    async with database.transaction() as tx:
        if (await tx.execute(statement)).first() is not None:
            return None
        this = select(*_COLUMNS).where(_is_purchase(account_id, idempotency_key))
        return _recorded((await tx.execute(this)).one())


async def settle_purchase(
    database: Database,
    account_id: str,
    idempotency_key: str,
    at: datetime,
    *,
    order_id: str | None = None,
    refusal: str | None = None,
) -> None:
    """Write down the order a purchase became, or why it became none. Idempotent."""
    unsettled = purchases.c.order_id.is_(None)
    async with database.transaction() as tx:
        await tx.execute(
            update(purchases)
            .where(_is_purchase(account_id, idempotency_key), unsettled)
            .values(settled_at=at, order_id=order_id, refusal=refusal)
        )


async def unsettled_purchases(database: Database) -> list[RecordedPurchase]:
    """Return purchases of which nobody knows what became, oldest first."""
    query = (
        select(*_COLUMNS).where(purchases.c.settled_at.is_(None)).order_by(purchases.c.recorded_at)
    )
    async with database.read() as connection:
        return [_recorded(row) for row in await connection.execute(query)]


def _is_purchase(account_id: str, idempotency_key: str) -> ColumnElement[bool]:
    return and_(
        purchases.c.account_id == account_id, purchases.c.idempotency_key == idempotency_key
    )


def _recorded(row: Sequence[Any]) -> RecordedPurchase:
    account_id, idempotency_key, kind, request, recorded_at, order_id, refusal = row
    purchase = Purchase(kind, json.loads(request))
    return RecordedPurchase(account_id, idempotency_key, purchase, recorded_at, order_id, refusal)
