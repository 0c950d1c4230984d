"""Deliver events: at least once, in order for each order, never giving up silently.

Each receiver is its own business: it has a round of its own, its own failures and its own pauses,
so that a dead one delays no other. What was accepted is recorded after a batch; a crash in between
sends it again, under the same id.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from harvester.context import Context, in_parallel
from harvester.domain.deliveries import DeliveryFailure, next_attempt, pause_until
from harvester.domain.events import Event, EventFilter
from harvester.ledger.database import Database
from harvester.ledger.outbox import (
    Delivery,
    FailedAttempt,
    due_deliveries,
    hurry_deliveries,
    park_receiver,
    prune_events,
    register_receivers,
    resend_events,
    settle_deliveries,
)

log = structlog.get_logger()

_BATCH = 50
_MAX_FAILURES = 3
"""Failures without a success after which a receiver is taken to be dead, not an event bad."""
_LONGEST_PAUSE = timedelta(hours=1)


class Sender(Protocol):
    """The way to one receiver: :class:`.http.HttpSender` or :class:`.command.CommandHook`."""

    async def send(self, event: Event) -> DeliveryFailure | None:
        """Send an event, once; None when it was accepted, else why it was not.

        Ends within a deadline of its own. Not idempotent by itself: the event's id is what the
        receiver knows a repetition by.
        """
        ...

    async def close(self) -> None:
        """Give back what sending needs. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class Receiver:
    """Who gets events: a name for ever, which ones, over which way, how many at a time."""

    name: str
    filter: EventFilter
    sender: Sender
    width: int = 4


@dataclass(slots=True)
class DispatchReport:
    """How many events were accepted and how many attempts failed."""

    delivered: int = 0
    failed: int = 0

    def add(self, later: DispatchReport) -> None:
        """Count a later round in."""
        self.delivered += later.delivered
        self.failed += later.failed


@dataclass(slots=True)
class _Route:
    """A receiver and how it is doing; ``pauses`` counts those in a row, without a success."""

    receiver: Receiver
    pauses: int = 0
    paused_until: datetime | None = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def is_paused(self, now: datetime) -> bool:
        until = self.paused_until
        return until is not None and now < until < now + _LONGEST_PAUSE


@dataclass(slots=True)
class _Batch:
    """One batch on its way to a receiver; it ends early after ``max_failures`` in a row."""

    max_failures: int
    until: float
    delivered: list[int] = field(default_factory=list)
    failed: dict[int, FailedAttempt] = field(default_factory=dict)
    failures: int = 0
    gone: str | None = None


class Dispatcher:
    """Brings the outbox's events to the receivers. ``jitter`` gives 0 to 1, to spread attempts."""

    def __init__(
        self,
        database: Database,
        receivers: Iterable[Receiver],
        context: Context,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._database = database
        self._routes = {one.name: _Route(one) for one in receivers}
        self._context = context
        self._jitter = jitter

    @property
    def receivers(self) -> Mapping[str, Receiver]:
        """The receivers by name."""
        return {name: route.receiver for name, route in self._routes.items()}

    async def register(self) -> None:
        """Make the receivers known to the ledger, before anything happens that they want."""
        wanting = {name: one.filter for name, one in self.receivers.items()}
        for name in await register_receivers(self._database, wanting):
            log.warning("receiver removed", receiver=name, reason="not in the configuration")

    async def close(self) -> None:
        """Close the ways to all receivers. Idempotent."""
        for receiver in self.receivers.values():
            await receiver.sender.close()

    async def run_once(self) -> DispatchReport:
        """Deliver all that is due, to each receiver in its own task, as far as it goes."""
        report = DispatchReport()

        async def deliver(name: str) -> None:
            while not self._context.stop.requested:
                done = await self.deliver(name)
                report.add(done)
                if not done.delivered:
                    return

        width = max(len(self._routes), 1)
        stop = self._context.stop
        await in_parallel(self._routes, deliver, width=width, stop=stop, name="deliver")
        return report

    async def deliver(self, name: str) -> DispatchReport:
        """Deliver what is due to one receiver, for a minute at most."""
        route = self._routes[name]
        report = DispatchReport()
        until = time.monotonic() + self._context.limits.delivery_round
        async with route.turn:
            while not self._context.stop.requested and time.monotonic() < until:
                now = self._context.clock()
                if route.is_paused(now):
                    break
                limit = 1 if route.pauses else _BATCH
                due = await due_deliveries(self._database, name, now, limit)
                if not due:
                    break
                batch = await self._send(route, due, until)
                report.delivered += len(batch.delivered)
                report.failed += len(batch.failed)
                if batch.gone is not None:
                    await self._park(name, batch.gone)
                    break
                await self._judge(route, batch)
        return report

    async def resend(self, seqs: Sequence[int], name: str | None) -> list[tuple[int, str]]:
        """Deliver events again to one receiver, or to all; return which to whom.

        See :func:`harvester.ledger.outbox.resend_events`.
        """
        chosen = [one for one in self._routes if name in {None, one}]
        for one in chosen:
            self._routes[one].paused_until = None
        return await resend_events(self._database, seqs, chosen)

    async def prune(self) -> None:
        """Delete events that are older than they are kept, and say so when somebody missed them."""
        pruned = await prune_events(self._database, self._context.clock())
        if pruned.undelivered:
            log.warning("events dropped", undelivered=pruned.undelivered, reason="too old")

    async def _send(self, route: _Route, due: Iterable[Delivery], until: float) -> _Batch:
        """Send a batch, each order's events one after the other; record how it went."""
        batch = _Batch(1 if route.pauses else _MAX_FAILURES, until)
        lanes: dict[tuple[str, str | None], list[Delivery]] = {}
        for one in due:
            lanes.setdefault((one.event.account_id, one.event.order_id), []).append(one)

        async def send_lane(lane: Sequence[Delivery]) -> None:
            for one in lane:
                if not self._goes_on(batch) or not await self._send_one(route, one, batch):
                    return

        try:
            await in_parallel(
                lanes.values(),
                send_lane,
                width=route.receiver.width,
                stop=self._context.stop,
                name=f"deliver-{route.receiver.name}",
            )
        finally:  # also when cancelled: what was accepted is not sent again
            await settle_deliveries(
                self._database, route.receiver.name, batch.delivered, batch.failed
            )
        return batch

    def _goes_on(self, batch: _Batch) -> bool:
        return (
            not self._context.stop.requested
            and batch.gone is None
            and batch.failures < batch.max_failures
            and time.monotonic() < batch.until
        )

    async def _send_one(self, route: _Route, one: Delivery, batch: _Batch) -> bool:
        """Send one event; tell whether it was accepted."""
        event = one.event
        failure = await _attempt(route.receiver, event)
        if failure is None:
            batch.delivered.append(event.seq)
            batch.failures = 0
            return True
        batch.failures += not failure.of_event
        attempts = one.attempts + 1
        due = next_attempt(self._context.clock(), attempts, self._jitter())
        batch.failed[event.seq] = FailedAttempt(attempts, due, failure.reason)
        if failure.gone:
            batch.gone = failure.reason
        log.warning(
            "delivery failed",
            receiver=route.receiver.name,
            seq=event.seq,
            type=event.type,
            order=event.order_id,
            attempts=attempts,
            reason=failure.reason,
            next_attempt_at=due.isoformat(timespec="seconds"),
        )
        return False

    async def _park(self, name: str, reason: str) -> None:
        await park_receiver(self._database, name, reason)
        todo = f"mend it, then `harvester events resend --receiver {name}`"
        log.warning("receiver parked", receiver=name, reason=reason, todo=todo)

    async def _judge(self, route: _Route, batch: _Batch) -> None:
        """Leave a receiver alone that accepted nothing; begin anew with one that accepts again."""
        if batch.delivered:
            was_dead, route.pauses, route.paused_until = route.pauses > 1, 0, None
            if was_dead:
                await hurry_deliveries(self._database, route.receiver.name)
                log.info("deliveries resumed", receiver=route.receiver.name)
        elif batch.failures >= batch.max_failures:
            route.pauses += 1
            route.paused_until = pause_until(self._context.clock(), route.pauses, self._jitter())


async def _attempt(receiver: Receiver, event: Event) -> DeliveryFailure | None:
    try:
        return await receiver.sender.send(event)
    except Exception as error:
        # A fault of ours with one event must not keep the others from being delivered.
        log.exception("delivery failed unexpectedly", receiver=receiver.name, seq=event.seq)
        return DeliveryFailure(f"a fault of the harvester: {type(error).__name__}")
