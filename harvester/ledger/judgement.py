"""What an observation means for an order's row: its status, what it owes, when to look next."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from harvester.domain.lifecycle import COMPLETE, Anomaly, Moved, Observation, is_open, observe
from harvester.domain.orders import CertificateState, Order
from harvester.domain.schedule import Cadence
from harvester.ledger.conditions import MISSING


def judge(
    known: Any | None, order: Order, at: datetime, cadence: Cadence
) -> tuple[Observation, dict[str, Any]]:
    """Return what became of the status, and the columns of the row that the observation sets.

    ``known`` is the order's row, None for an order not seen before. An open order's next look is
    left to :func:`date_looks`, unless the order was odd. Pure.
    """
    observation = observe(None if known is None else known.status, order.status, at)
    status = order.status if known is None else known.status
    changed_at = at if known is None else known.changed_at
    if isinstance(observation, Moved):
        status, changed_at = observation.after, at
    state = None if known is None else known.certificate_state
    owes = cadence.owes_certificate(status)
    completed = isinstance(observation, Moved) and status == COMPLETE
    values: dict[str, Any] = {
        "status": status,
        "changed_at": changed_at,
        "last_seen_at": at,
        "missing_since": None,
    }
    if isinstance(observation, Moved):
        values["stuck_at"] = None
    due = None if known is None else known.next_check_at
    if owes and (completed or state is None):
        values |= owing(CertificateState.OWED, at)
        due = at
    elif state in MISSING and not owes:
        values |= owing(None, None)
    if is_open(status):
        due = at + cadence.sweep_interval if isinstance(observation, Anomaly) else None
    elif values.get("certificate_state", state) not in MISSING:  # else: its certificate's own date
        due = cadence.next_confirmation(at) if isinstance(observation, Anomaly) else None
    values["next_check_at"] = due
    return observation, values


def date_looks(
    judged: Iterable[tuple[Any | None, Order, dict[str, Any]]], at: datetime, cadence: Cadence
) -> None:
    """Say when to look again at the open orders of one answer: at all of them together."""
    chances, waiting = [], []
    for known, order, values in judged:
        if is_open(values["status"]) and values["next_check_at"] is None:
            still_since = values["changed_at"]
            if known is None or still_since == known.first_seen_at:
                # Never seen to move: it may have been still since it was created.
                still_since = min(still_since, order.created_at)
            chances.append(cadence.chance(values["status"], at - still_since))
            waiting.append(values)
    due = cadence.next_look(at, chances)
    for values in waiting:
        values["next_check_at"] = due


def owing(state: CertificateState | None, since: datetime | None) -> dict[str, Any]:
    """Return the columns of a certificate that is owed since then, untried; of none with None."""
    return {
        "certificate_state": state,
        "owed_since": since,
        "attempts": 0,
        "tried_at": None,
        "failure_reason": None,
    }
