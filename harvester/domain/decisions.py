"""What an observation means: where the order stands, what it owes, when to check it next.

Everything is decided here, from what the ledger has and what Lune served, and written down by
:mod:`harvester.ledger.orders`. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from harvester.domain.lifecycle import (
    COMPLETE,
    Anomaly,
    AnomalyKind,
    Moved,
    Observation,
    Unchanged,
    is_known,
    is_open,
    observe,
)
from harvester.domain.lune_events import Hint, is_answered, next_check_of_hint
from harvester.domain.orders import CertificateState, Order
from harvester.domain.schedule import Schedule

MISSING: Final = (CertificateState.OWED, CertificateState.FAILED)
"""The states of a certificate that should be in the archive and is not."""


@dataclass(frozen=True, slots=True)
class KnownOrder:
    """What the ledger has of an order, as far as an observation can change it.

    ``position`` is where it stands in its account's listing, counted upwards from the oldest; None
    while no page has shown it. ``not_found_since`` is since when Lune answers 404 for it.
    """

    status: str
    changed_at: datetime
    first_seen_at: datetime
    next_check_at: datetime | None
    certificate_state: CertificateState | None
    position: int | None = None
    not_found_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class CertificateDue:
    """That a certificate is owed from now on (``owed_since``), or none any more (both None)."""

    state: CertificateState | None
    owed_since: datetime | None


@dataclass(frozen=True, slots=True)
class OrderUpdate:
    """What one served order means for its row.

    ``certificate`` is None when what is owed stays as it is. ``anomaly`` is what has to be counted:
    a status the order cannot have, or one that Lune does not document. ``hint_due_at`` is when to
    ask again on the strength of a webhook; None when there was no hint or it is answered.
    """

    order: Order
    observation: Observation
    status: str
    changed_at: datetime
    next_check_at: datetime | None
    certificate: CertificateDue | None
    anomaly: Anomaly | None
    position: int | None
    hint_due_at: datetime | None
    differs: bool
    """Whether the row changes in more than when it was seen and when it is checked next."""

    @property
    def move(self) -> Moved | None:
        """The transition that was observed, if one was."""
        return self.observation if isinstance(self.observation, Moved) else None


def decide(
    known: KnownOrder | None,
    order: Order,
    at: datetime,
    schedule: Schedule,
    *,
    hint: Hint | None = None,
    position: int | None = None,
    shared_check_at: datetime | None = None,
) -> OrderUpdate:
    """Decide what a served order means; ``known`` is None for one not seen before.

    ``hint`` is the webhook that asked for it, if one did; ``position`` where the answer shows it in
    the listing, as far as that is known; ``shared_check_at`` the date of :func:`shared_check`
    for the open orders of one answer, by default this order's alone.
    """
    observation = observe(None if known is None else known.status, order.status, at)
    moved = isinstance(observation, Moved)
    status = order.status if known is None or moved else known.status
    changed_at = at if known is None or moved else known.changed_at
    certificate = _owed(known, status, at, schedule, moved=moved)
    placed = None if known is None else known.position
    next_check_at = _next_check(known, observation, status, at, schedule, certificate=certificate)
    if next_check_at is None and is_open(status):
        next_check_at = shared_check_at or shared_check([(known, order)], at, schedule)
    hint_due_at = None
    if hint is not None and not is_answered(hint, order.status):
        hint_due_at = next_check_of_hint(hint, at)
        if hint_due_at is not None and is_open(status):
            next_check_at = min(hint_due_at, next_check_at or hint_due_at)
    return OrderUpdate(
        order=order,
        observation=observation,
        status=status,
        changed_at=changed_at,
        next_check_at=next_check_at,
        certificate=certificate,
        anomaly=_anomaly(observation, at),
        position=position if placed is None else placed,
        hint_due_at=hint_due_at,
        differs=not isinstance(observation, Unchanged)
        or certificate is not None
        or (known is not None and known.not_found_since is not None)
        or (placed is None and position is not None),
    )


def shared_check(
    answer: Iterable[tuple[KnownOrder | None, Order]], at: datetime, schedule: Schedule
) -> datetime:
    """Return when to check the open orders of one answer again: all of them together.

    Orders that are where they cannot be have a date of their own and no part in it.
    """
    chances = []
    for known, order in answer:
        observation = observe(None if known is None else known.status, order.status, at)
        if isinstance(observation, Anomaly) or not is_open(order.status):
            continue
        still_since = at if known is None or isinstance(observation, Moved) else known.changed_at
        if known is None or still_since == known.first_seen_at:
            # Never seen to move: it may have been still since it was created.
            still_since = min(still_since, order.created_at)
        chances.append(schedule.chance(order.status, at - still_since))
    return schedule.next_check(at, chances)


def _owed(
    known: KnownOrder | None, status: str, at: datetime, schedule: Schedule, *, moved: bool
) -> CertificateDue | None:
    state = None if known is None else known.certificate_state
    owes = schedule.owes_certificate(status)
    if owes and (state is None or (moved and status == COMPLETE)):
        return CertificateDue(CertificateState.OWED, at)
    if state in MISSING and not owes:
        return CertificateDue(None, None)
    return None


def _next_check(
    known: KnownOrder | None,
    observation: Observation,
    status: str,
    at: datetime,
    schedule: Schedule,
    *,
    certificate: CertificateDue | None,
) -> datetime | None:
    """Return the order's own next date; None for an open one that shares its answer's."""
    is_anomaly = isinstance(observation, Anomaly)
    if is_open(status):
        return at + schedule.sweep_interval if is_anomaly else None
    if certificate is not None and certificate.state is not None:
        return at  # the certificate is asked for at once
    state = None if known is None or certificate is not None else known.certificate_state
    if known is not None and state in MISSING:
        return known.next_check_at  # its certificate's own date
    return schedule.next_confirmation(at) if is_anomaly else None


def _anomaly(observation: Observation, at: datetime) -> Anomaly | None:
    if isinstance(observation, Anomaly):
        return observation
    if isinstance(observation, Moved) and not is_known(observation.after):
        return Anomaly(observation.before or "", observation.after, AnomalyKind.UNKNOWN, at)
    return None
