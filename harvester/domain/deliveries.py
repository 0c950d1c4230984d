"""Telling events to others: what is still to be sent, how it went, when to try again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Protocol

from harvester.domain.events import Event, EventFilter

_FIRST: Final = timedelta(seconds=5)
_LONGEST: Final = timedelta(hours=6)
_RISING: Final = 23
"""Attempts at rising intervals: 5 s, doubling, then every six hours are three days together."""
_AFTERWARDS: Final = timedelta(days=1)
_REST_LONGEST: Final = timedelta(minutes=15)
_JITTER: Final = 0.25

HORIZON: Final = 2 * _AFTERWARDS
"""No try is further away than this; a later date was written under a wrong clock."""


def next_try(now: datetime, attempts: int, luck: float) -> datetime:
    """Return when to send an event again after so many failed attempts, 1 or more.

    From 5 s doubling to 6 h over three days, then once a day for as long as the event is kept.
    ``luck`` from 0 to 1 spreads it by a quarter each way, so that what failed together does not
    come back together.
    """
    wait = _AFTERWARDS if attempts > _RISING else min(_FIRST * 2.0 ** (attempts - 1), _LONGEST)
    return now + wait * (1 - _JITTER + 2 * _JITTER * luck)


def rest_until(now: datetime, rests: int, luck: float) -> datetime:
    """Return until when a receiver that takes nothing at all is left alone; 15 min at most."""
    wait = min(_FIRST * 2.0 ** min(rests - 1, 20), _REST_LONGEST)
    return now + wait * (1 - _JITTER + 2 * _JITTER * luck)


@dataclass(frozen=True, slots=True)
class NotTaken:
    """Why an event was not taken.

    ``gone`` says that the receiver wants none ever again, ``of_event`` that it is well and this
    one event displeases it.
    """

    reason: str
    gone: bool = False
    of_event: bool = False


class Sender(Protocol):
    """The way to one receiver."""

    async def send(self, event: Event) -> NotTaken | None:
        """Give an event to the receiver, once; None when it was taken, else why it was not.

        Ends within a deadline of its own. Not idempotent by itself: the event's id is what the
        receiver knows a repetition by.
        """
        ...


@dataclass(frozen=True, slots=True)
class Receiver:
    """Somebody who wants to be told: a name for ever, what is wanted, how many at a time."""

    name: str
    filter: EventFilter
    sender: Sender
    width: int = 4


@dataclass(frozen=True, slots=True)
class Waiting:
    """An event that a receiver does not have yet.

    ``attempts`` is 0 for one that was never sent to it. A ``blocked`` one has to wait for an
    earlier event of its order; an event that is not ``queued`` lies beyond the receiver's cursor.
    """

    event: Event
    attempts: int = 0
    queued: bool = False
    blocked: bool = False


@dataclass(frozen=True, slots=True)
class Pending:
    """What can be sent to a receiver now; all it wants up to ``reached`` is in here or queued."""

    waiting: Sequence[Waiting]
    cursor: int
    reached: int


@dataclass(frozen=True, slots=True)
class Failure:
    """How an attempt to send an event ended, and when the next one is due."""

    attempts: int
    next_try_at: datetime
    reason: str


@dataclass(slots=True)
class Settlement:
    """What became of pending events.

    Those up to ``cursor`` that are not named were taken or not wanted. ``queued`` ones are due
    as soon as nothing blocks them.
    """

    cursor: int
    taken: list[int] = field(default_factory=list)
    failed: dict[int, Failure] = field(default_factory=dict)
    queued: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many old events were deleted, and how many of them somebody had never taken."""

    events: int
    undelivered: int


class Outbox(Protocol):
    """The ledger's outbox. Writing calls are one transaction each, durable when they return."""

    async def register_receivers(self, names: Collection[str]) -> list[str]:
        """Make these the receivers; return those that were dropped with what they had not taken.

        A new one is told what happens from now on. Idempotent.
        """
        ...

    async def pending(
        self, receiver: str, wanted: EventFilter, now: datetime, limit: int
    ) -> Pending | None:
        """Return what can be sent now, never tried events first; None for a parked receiver.

        Of each order nothing is in it that has to wait for an earlier event, except ``blocked``
        ones beyond the cursor, which are to be queued.
        """
        ...

    async def settle(self, receiver: str, settlement: Settlement, at: datetime) -> None:
        """Record what became of pending events. Idempotent."""
        ...

    async def hurry(self, receiver: str, at: datetime) -> None:
        """Make everything due that the receiver did not take so far. Idempotent."""
        ...

    async def park_receiver(self, receiver: str, reason: str) -> None:
        """Send the receiver nothing until a person says so. Idempotent."""
        ...

    async def resend(
        self, seqs: Sequence[int], wanting: Mapping[str, EventFilter], at: datetime
    ) -> list[tuple[int, str]]:
        """Queue these events again for those of the receivers that want them; return both.

        With no numbers, make what these receivers did not take due now; parked ones are parked no
        more, either way.
        """
        ...

    async def prune(self, at: datetime) -> Pruned:
        """Delete events that are older than they are kept. Idempotent."""
        ...
