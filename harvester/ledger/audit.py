"""Hold the ledger against its own rules: what every order's rows promise, whatever happened.

The schema refuses most of this already; the audit also sees what a damaged disk, a restored file
or another program's hands did to it.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Text, and_, cast, exists, func, literal, not_, or_, select

from harvester.domain.lifecycle import COMPLETE, TERMINAL
from harvester.domain.orders import CertificateState
from harvester.ledger.database import Database
from harvester.ledger.schema import accounts, certificates, moves, orders, transitions

_MOST_NAMED = 100


async def contradictions(database: Database) -> list[str]:
    """Return one line per broken rule and order, the first hundred of each rule; empty is good.

    Reads every order and transition; nothing is changed.
    """
    lines = []
    async with database.read() as connection:
        for rule, offends in _rules().items():
            offenders = (
                select(accounts.c.id, orders.c.id).join_from(orders, accounts).where(offends)
            )
            found = await connection.execute(offenders.limit(_MOST_NAMED))
            lines += [
                f"order {order_id} of account {account}: {rule}" for account, order_id in found
            ]
    return lines


def _rules() -> dict[str, ColumnElement[bool]]:
    later, left = transitions.alias("later"), moves.alias("left")
    order, numbered = transitions.c.order_key, transitions.c.seq
    chains = select(order).join_from(transitions, moves)
    suffix = literal(".v") + cast(certificates.c.version, Text) + ".pdf"
    last = (
        select(moves.c.to_status)
        .join_from(transitions, moves)
        .where(order == orders.c.key)
        .order_by(numbered.desc())
        .limit(1)
        .scalar_subquery()
    )
    is_stored = exists().where(certificates.c.order_key == orders.c.key)
    state = orders.c.certificate_state
    return {
        "its transitions are not numbered 1, 2, 3, ...": orders.c.key.in_(
            select(order)
            .group_by(order)
            .having(or_(func.min(numbered) != 1, func.max(numbered) != func.count()))
        ),
        "a transition does not begin where the one before it ended": orders.c.key.in_(
            chains.join(later, and_(later.c.order_key == order, later.c.seq == numbered + 1))
            .join(left, left.c.key == later.c.move_key)
            .where(left.c.from_status.is_distinct_from(moves.c.to_status))
        ),
        "its first transition does not begin at nothing": orders.c.key.in_(
            chains.where(numbered == 1, moves.c.from_status.is_not(None))
        ),
        "a transition goes nowhere": orders.c.key.in_(
            chains.where(moves.c.from_status == moves.c.to_status)
        ),
        "its status is not where its transitions ended": orders.c.status.is_distinct_from(last),
        "it can still change, yet nothing says when to check it": and_(
            orders.c.status.not_in(TERMINAL), orders.c.next_check_at.is_(None)
        ),
        "it is complete, yet no certificate is owed or stored": and_(
            orders.c.status == COMPLETE, state.is_(None)
        ),
        "its certificate is owed, yet nothing says when to fetch it": and_(
            state.in_([CertificateState.OWED, CertificateState.FAILED]),
            orders.c.status == COMPLETE,
            orders.c.next_check_at.is_(None),
        ),
        "its certificate counts as stored, yet no file is recorded": and_(
            state == CertificateState.STORED, ~is_stored
        ),
        # A number may be missing: its name was taken by a file that is not a certificate.
        "a version of its certificate does not have that version's name": orders.c.key.in_(
            select(certificates.c.order_key).where(
                certificates.c.version > 1, not_(certificates.c.name.endswith(suffix))
            )
        ),
    }
