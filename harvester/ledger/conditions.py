"""Conditions and keys that several parts of the ledger ask with.

Lune's ids become the ledger's own keys within the statements, without a round trip of their own;
they may be given as values or as bound parameters.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    ScalarSelect,
    SQLColumnExpression,
    and_,
    bindparam,
    or_,
    select,
)

from harvester.domain.decisions import MISSING
from harvester.domain.lifecycle import COMPLETE
from harvester.domain.orders import CertificateState, OrderFilter
from harvester.ledger.schema import accounts, orders

Id = str | BindParameter[str]
"""An id of Lune's, as a value or as a bound parameter."""

IS_MISSING = orders.c.certificate_state.in_(
    bindparam("missing", MISSING, expanding=True, literal_execute=True)
)
"""Written out in the statement: SQLite has to see that the index of just these rows will do."""

AWAITS_CERTIFICATE = and_(orders.c.status == COMPLETE, IS_MISSING)
"""Such an order's due date is its certificate's; every other due date is a check's."""

_complete: BindParameter[str] = bindparam("complete", COMPLETE, literal_execute=True)
_stored: BindParameter[str] = bindparam("stored", CertificateState.STORED, literal_execute=True)
IS_UNSETTLED = or_(
    orders.c.status != _complete,
    orders.c.certificate_state.is_(None),
    orders.c.certificate_state != _stored,
)
"""All but the complete orders with their certificate; written out as in its index, too."""

ACCOUNT_ID = (
    select(accounts.c.id)
    .where(accounts.c.key == orders.c.account_key)
    .correlate(orders)
    .scalar_subquery()
)
"""The id of an order's account, where the accounts cannot be joined."""


def account_key(account_id: Id) -> ScalarSelect[int]:
    """Return the key of the account with this id, NULL when there is none."""
    this = select(accounts.c.key).where(accounts.c.id == account_id)
    return this.correlate(None).scalar_subquery()


def is_order(account_id: Id, order_id: Id) -> ColumnElement[bool]:
    """Tell whether a row of the orders table is this account's order with this id."""
    return and_(orders.c.id == order_id, orders.c.account_key == account_key(account_id))


def order_key(account_id: Id, order_id: Id) -> ScalarSelect[int]:
    """Return the key of an account's order, NULL when there is none."""
    this = select(orders.c.key).where(is_order(account_id, order_id))
    return this.correlate(None).scalar_subquery()


def conditions(scope: OrderFilter) -> list[ColumnElement[bool]]:
    """Return the filter as conditions on the orders table."""
    found: list[ColumnElement[bool]] = []
    if scope.accounts is not None:
        theirs = select(accounts.c.key).where(accounts.c.id.in_(scope.accounts))
        found.append(orders.c.account_key.in_(theirs.correlate(None)))
    if scope.idempotency_key is not None:
        found.append(orders.c.idempotency_key == scope.idempotency_key)
    if scope.status is not None:
        found.append(orders.c.status == scope.status)
    if scope.certificate == "none":
        found.append(orders.c.certificate_state.is_(None))
    elif scope.certificate is not None:
        found.append(orders.c.certificate_state == scope.certificate)
    if scope.since is not None:
        found.append(orders.c.created_at >= scope.since)
    if scope.until is not None:
        found.append(orders.c.created_at < scope.until)
    return found


def is_due(
    column: SQLColumnExpression[datetime], now: datetime, horizon: datetime
) -> ColumnElement[bool]:
    """Tell whether a date has come."""
    # A date beyond the horizon was written while the clock was wrong.
    return or_(column <= now, column > horizon)
