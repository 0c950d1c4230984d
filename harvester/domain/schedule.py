"""When to check next: orders by how long they have been still, certificates by how it went."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import MappingProxyType

from harvester.domain.lifecycle import COMPLETE, PAID, PLACED, RECEIVED, RETIRING
from harvester.domain.orders import CertificateState

OVERDUE_AFTER = timedelta(hours=72)
"""How long a missing certificate of a complete order counts as late, not as failed."""

_NOT_YET_FIRST = timedelta(seconds=10)
_NOT_YET_LONGEST = timedelta(hours=1)
_FAULT_FIRST = timedelta(minutes=1)
_FAULT_LONGEST = timedelta(hours=6)
_YOUNGEST = timedelta(minutes=1)
_OUTAGE_LONGEST = timedelta(minutes=5)
_PARKED_LONGEST = timedelta(hours=1)
_RARER = 4


WEIGHTS: Mapping[str, float] = MappingProxyType(
    {RECEIVED: 1.0, PLACED: 0.5, PAID: 0.5, RETIRING: 0.5}
)
"""How readily an order leaves a status, unless the configuration or the ledger says better."""

REQUEST_COST = 1.0
"""What one request costs: so many seconds of one order's change going unnoticed."""

_OTHER_WEIGHT = 0.5
_FORMER_DEPARTURES = 20
_HIGHEST_COST = 1e9


@dataclass(frozen=True, slots=True)
class Schedule:
    """The operator's bounds: no order is checked more often, none is left for longer.

    ``interim`` says whether an order's certificate is also wanted while it is retiring. Between
    the bounds the expected delay decides, see :meth:`next_check`; ``weights`` by status and
    ``request_cost`` are its measures. ``request_budget`` is how many requests a second may go into
    checks of open orders.
    """

    sweep_interval: timedelta
    longest_interval: timedelta
    interim: bool = False
    weights: Mapping[str, float] = field(default_factory=lambda: WEIGHTS)
    request_cost: float = REQUEST_COST
    request_budget: float = math.inf

    def chance(self, status: str, stillness: timedelta) -> float:
        """Return an order's chance of changing, a second, after being still for so long.

        The longer it was still the longer it will be: chance falls with one over stillness.
        """
        still = max(stillness, _YOUNGEST).total_seconds()
        return self.weights.get(status, _OTHER_WEIGHT) / still

    def next_check(self, now: datetime, chances: Iterable[float]) -> datetime:
        """Return when to check open orders again that one request shows.

        With H their chances of changing added up, D seconds without a check hide H x D^2 / 2
        order-seconds of delay; the check is due when that reaches ``request_cost``. So a page with
        many open orders is asked for more often than a single old one.
        """
        total = sum(chances)
        wait = self.longest_interval
        if total > 0:
            seconds = min(math.sqrt(2 * self.request_cost / total), 1e9)
            wait = min(wait, timedelta(seconds=seconds))
        return now + max(self.sweep_interval, wait)

    def next_sweep(self, now: datetime, *, webhooks_work: bool = False) -> datetime:
        """Return when the newest page of an account is due again.

        ``webhooks_work``: they are known to say what is new, so that sweeps can be rarer.
        """
        return now + (self.slowest_sweep if webhooks_work else self.sweep_interval)

    @property
    def slowest_sweep(self) -> timedelta:
        """How often the newest page is still read where webhooks say what is new."""
        return max(self.sweep_interval, min(_RARER * self.sweep_interval, self.longest_interval))

    def next_sweep_after_fault(self, now: datetime) -> datetime:
        """Return when an account or order that could not be asked for is tried again."""
        return now + min(self.sweep_interval, _OUTAGE_LONGEST)

    def next_sweep_of_parked(self, now: datetime) -> datetime:
        """Return when a refused account is tried again: slowly, since only a person mends it."""
        return now + max(self.sweep_interval, min(self.longest_interval, _PARKED_LONGEST))

    def next_confirmation(self, now: datetime) -> datetime:
        """Return when an order that went where it cannot is checked again."""
        return now + self.longest_interval

    def horizon(self, now: datetime) -> datetime:
        """Return the latest due date any rule here can set.

        A due date beyond it was written under a wrong clock and counts as due.
        """
        return now + max(self.longest_interval, _FAULT_LONGEST, self.sweep_interval)

    def owes_certificate(self, status: str) -> bool:
        """Tell whether an order in this status should have a certificate in the archive."""
        return status == COMPLETE or (self.interim and status == RETIRING)

    def learned_from(self, durations: Iterable[StatusDuration], former: Schedule) -> Schedule:
        """Return this schedule with the weights that the durations suggest; see ``former``.

        The likeliest weight, when the chance to leave is weight / stillness, is departures over
        the sum of the logarithms of the durations; the ``former`` weights count as so many
        departures more, and stand where the durations say little.
        """
        departures = dict.fromkeys(former.weights, float(_FORMER_DEPARTURES))
        logarithms = {
            status: _FORMER_DEPARTURES / weight for status, weight in former.weights.items()
        }
        for one in durations:
            if one.status in departures:
                departures[one.status] += one.ended
                longer = one.seconds / _YOUNGEST.total_seconds()
                logarithms[one.status] += math.log(max(longer, 1.0))
        learned = {status: departures[status] / logarithms[status] for status in departures}
        return replace(self, weights=learned)

    def within_budget(self, requests: int, seconds: float) -> Schedule:
        """Return this schedule at the cost that keeps checks within the budget.

        Page ranges are asked for at a rate that falls with the root of the cost; when the last
        ``seconds`` took more ``requests`` than the budget, the cost rises by the square of the
        excess, and it comes back by a tenth a round.
        """
        excess = requests / max(seconds, 1.0) / self.request_budget
        if excess > 1:
            cost = min(self.request_cost * min(excess, 4.0) ** 2, _HIGHEST_COST)
        else:
            cost = max(REQUEST_COST, self.request_cost * 0.9)
        return replace(self, request_cost=cost)


@dataclass(frozen=True, slots=True)
class StatusDuration:
    """How long an order was in a status, in seconds, and whether that has ended."""

    status: str
    seconds: float
    ended: bool


def next_attempt_when_absent(now: datetime, attempts: int) -> datetime:
    """Return when to ask again for a certificate that was not there: 10 s, doubling, to 1 h."""
    return now + _doubled(_NOT_YET_FIRST, attempts, _NOT_YET_LONGEST)


def next_attempt_after_fault(now: datetime, attempts: int) -> datetime:
    """Return when to ask again after a faulty answer: 1 min, doubling, to 6 h."""
    return now + _doubled(_FAULT_FIRST, attempts, _FAULT_LONGEST)


def state_while_missing(now: datetime, owed_since: datetime) -> CertificateState:
    """Say ``failed`` once a certificate has been missing for longer than is believable."""
    late = now - owed_since > OVERDUE_AFTER
    return CertificateState.FAILED if late else CertificateState.OWED


def _doubled(first: timedelta, attempts: int, longest: timedelta) -> timedelta:
    doublings = min(max(attempts, 0), 20)
    return min(first * float(2**doublings), longest)
