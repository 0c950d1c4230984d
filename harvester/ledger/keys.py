"""From Lune's ids to the ledger's own keys, within statements: no round trip of their own.

Ids may be given as values or as bound parameters.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, ScalarSelect, and_, select

from harvester.ledger.schema import accounts, orders

ACCOUNT_ID = (
    select(accounts.c.id)
    .where(accounts.c.key == orders.c.account_key)
    .correlate(orders)
    .scalar_subquery()
)
"""The id of an order's account, where the accounts cannot be joined."""


def account_key(account_id: Any) -> ScalarSelect[int]:
    """Return the key of the account with this id, NULL when there is none."""
    this = select(accounts.c.key).where(accounts.c.id == account_id)
    return this.correlate(None).scalar_subquery()


def is_order(account_id: Any, order_id: Any) -> ColumnElement[bool]:
    """Tell whether a row of the orders table is this account's order with this id."""
    return and_(orders.c.id == order_id, orders.c.account_key == account_key(account_id))


def order_key(account_id: Any, order_id: Any) -> ScalarSelect[int]:
    """Return the key of an account's order, NULL when there is none."""
    this = select(orders.c.key).where(is_order(account_id, order_id))
    return this.correlate(None).scalar_subquery()
