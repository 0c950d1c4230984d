"""Conditions on orders that several parts of the ledger ask with."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, and_, bindparam, or_, select

from harvester.domain.lifecycle import COMPLETE
from harvester.domain.orders import CertificateState
from harvester.domain.records import OrderFilter
from harvester.ledger.schema import accounts, orders

MISSING = (CertificateState.OWED, CertificateState.FAILED)
"""The states of a certificate that should be in the archive and is not."""

IS_MISSING = orders.c.certificate_state.in_(
    bindparam("missing", MISSING, expanding=True, literal_execute=True)
)
"""Written out in the statement: SQLite has to see that the index of just these rows will do."""

AWAITS_CERTIFICATE = and_(orders.c.status == COMPLETE, IS_MISSING)
"""Such an order's due date is its certificate's; every other due date is a look's."""


_complete: BindParameter[str] = bindparam("complete", COMPLETE, literal_execute=True)
_stored: BindParameter[str] = bindparam("stored", CertificateState.STORED, literal_execute=True)
IS_UNSETTLED = or_(
    orders.c.status != _complete,
    orders.c.certificate_state.is_(None),
    orders.c.certificate_state != _stored,
)
"""All but the complete orders with their certificate; written out as in its index, too."""


def conditions(scope: OrderFilter) -> list[ColumnElement[bool]]:
    """Return the filter as conditions on the orders table."""
    found: list[ColumnElement[bool]] = []
    if scope.accounts is not None:
        theirs = select(accounts.c.key).where(accounts.c.id.in_(scope.accounts))
        found.append(orders.c.account_key.in_(theirs.correlate(None)))
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


def is_due(column: Any, now: datetime, horizon: datetime) -> ColumnElement[bool]:
    """Tell whether a date has come."""
    # A date beyond the horizon was written while the clock was wrong.
    return or_(column <= now, column > horizon)
