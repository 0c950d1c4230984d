"""When to look next: orders by how long they have been still, certificates by how it went."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from harvester.domain.lifecycle import COMPLETE, RETIRING
from harvester.domain.orders import CertificateState

NOT_YET_PATIENCE = timedelta(hours=72)
"""How long a missing certificate of a complete order counts as late, not as failed."""

_NOT_YET_FIRST = timedelta(seconds=10)
_NOT_YET_LONGEST = timedelta(hours=1)
_FAULT_FIRST = timedelta(minutes=1)
_FAULT_LONGEST = timedelta(hours=6)
_STILLNESS_SHARE = 0.1
_OUTAGE_LONGEST = timedelta(minutes=5)
_PARKED_LONGEST = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Cadence:
    """The operator's bounds: no order is looked at more often, none is left for longer.

    ``interim`` says whether an order's certificate is also wanted while it is retiring.
    """

    sweep_interval: timedelta
    longest_interval: timedelta
    interim: bool = False

    def next_look(self, now: datetime, changed_at: datetime) -> datetime:
        """Return when to look at an open order that last changed at ``changed_at``.

        A tenth of its stillness: an order that moved an hour ago is asked in minutes, one that
        has pooled for a year within ``longest_interval``.
        """
        stillness = max(now - changed_at, timedelta(0))
        wait = max(self.sweep_interval, stillness * _STILLNESS_SHARE)
        return now + min(wait, self.longest_interval)

    def next_sweep(self, now: datetime) -> datetime:
        """Return when the newest page of an account is due again."""
        return now + self.sweep_interval

    def next_sweep_after_fault(self, now: datetime) -> datetime:
        """Return when an account or order that could not be looked at is tried again."""
        return now + min(self.sweep_interval, _OUTAGE_LONGEST)

    def next_try_of_parked(self, now: datetime) -> datetime:
        """Return when a refused account is tried again: slowly, since only a person mends it."""
        return now + max(self.sweep_interval, min(self.longest_interval, _PARKED_LONGEST))

    def next_confirmation(self, now: datetime) -> datetime:
        """Return when an order that went where it cannot is looked at again."""
        return now + self.longest_interval

    def horizon(self, now: datetime) -> datetime:
        """Return the latest due date any rule here can set.

        A due date beyond it was written under a wrong clock and counts as due.
        """
        return now + max(self.longest_interval, _FAULT_LONGEST, self.sweep_interval)

    def owes_certificate(self, status: str) -> bool:
        """Tell whether an order in this status should have a certificate in the archive."""
        return status == COMPLETE or (self.interim and status == RETIRING)


def next_try_not_yet(now: datetime, attempts: int) -> datetime:
    """Return when to ask again for a certificate that was not there: 10 s, doubling, to 1 h."""
    return now + _doubled(_NOT_YET_FIRST, attempts, _NOT_YET_LONGEST)


def next_try_after_fault(now: datetime, attempts: int) -> datetime:
    """Return when to ask again after a faulty answer: 1 min, doubling, to 6 h."""
    return now + _doubled(_FAULT_FIRST, attempts, _FAULT_LONGEST)


def state_while_missing(now: datetime, owed_since: datetime) -> CertificateState:
    """Say ``failed`` once a certificate has been missing for longer than is believable."""
    late = now - owed_since > NOT_YET_PATIENCE
    return CertificateState.FAILED if late else CertificateState.OWED


def _doubled(first: timedelta, attempts: int, longest: timedelta) -> timedelta:
    doublings = min(max(attempts, 0), 20)
    return min(first * float(2**doublings), longest)
