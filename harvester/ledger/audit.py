"""Hold the ledger against its own rules: what every order's rows promise, whatever happened.

The schema refuses most of this already; the audit also sees what a damaged disk, a restored file
or another program's hands did to it.
"""

from __future__ import annotations

from sqlalchemy import Select, Text, and_, cast, exists, func, literal, not_, or_, select

from harvester.domain.lifecycle import COMPLETE, TERMINAL
from harvester.domain.orders import CertificateState
from harvester.ledger.engine import Database
from harvester.ledger.tables import certificates, orders, transitions

_MOST_NAMED = 100

_Offenders = Select[str, str]


async def contradictions(database: Database) -> list[str]:
    """Return one line per broken rule and order, the first hundred of each rule; empty is good.

    Reads every order and transition; nothing is changed.
    """
    lines = []
    async with database.read() as connection:
        for rule, offenders in _rules().items():
            found = await connection.execute(offenders.limit(_MOST_NAMED))
            lines += [
                f"order {order_id} of account {account}: {rule}" for account, order_id in found
            ]
    return lines


def _rules() -> dict[str, _Offenders]:
    later = transitions.alias("later")
    key = (transitions.c.account_id, transitions.c.order_id)
    of_file = (certificates.c.account_id, certificates.c.order_id)
    suffix = literal(".v") + cast(certificates.c.version, Text) + ".pdf"
    last = (
        select(transitions.c.to_status)
        .where(transitions.c.account_id == orders.c.account_id)
        .where(transitions.c.order_id == orders.c.id)
        .order_by(transitions.c.seq.desc())
        .limit(1)
        .scalar_subquery()
    )
    stored = (
        exists()
        .where(certificates.c.account_id == orders.c.account_id)
        .where(certificates.c.order_id == orders.c.id)
    )
    state = orders.c.certificate_state
    of_orders = select(orders.c.account_id, orders.c.id)
    return {
        "its transitions are not numbered 1, 2, 3, ...": select(*key)
        .group_by(*key)
        .having(or_(func.min(transitions.c.seq) != 1, func.max(transitions.c.seq) != func.count())),
        "a transition does not begin where the one before it ended": select(*key).join(
            later,
            and_(
                later.c.account_id == transitions.c.account_id,
                later.c.order_id == transitions.c.order_id,
                later.c.seq == transitions.c.seq + 1,
                later.c.from_status.is_distinct_from(transitions.c.to_status),
            ),
        ),
        "its first transition does not begin at nothing": select(*key).where(
            transitions.c.seq == 1, transitions.c.from_status.is_not(None)
        ),
        "a transition goes nowhere": select(*key).where(
            transitions.c.from_status == transitions.c.to_status
        ),
        "its status is not where its transitions ended": of_orders.where(
            orders.c.status.is_distinct_from(last)
        ),
        "it can still change, yet nothing says when to look": of_orders.where(
            orders.c.status.not_in(TERMINAL), orders.c.next_check_at.is_(None)
        ),
        "it is complete, yet no certificate is owed or stored": of_orders.where(
            orders.c.status == COMPLETE, state.is_(None)
        ),
        "its certificate is owed, yet nothing says when to fetch it": of_orders.where(
            state.in_([CertificateState.OWED, CertificateState.FAILED]),
            orders.c.status == COMPLETE,
            orders.c.next_check_at.is_(None),
        ),
        "its certificate counts as stored, yet no file is recorded": of_orders.where(
            state == CertificateState.STORED, ~stored
        ),
        # A number may be missing: its name was taken by a file that is not a certificate.
        "a version of its certificate does not have that version's name": select(*of_file).where(
            certificates.c.version > 1, not_(certificates.c.key.endswith(suffix))
        ),
    }
