"""Tell receivers what happened: at least once, in order for each order, never giving up silently.

Each receiver is its own business: it has a round of its own, its own failures and its own rests,
so that a dead one delays no other. What was taken is recorded after a batch; a crash in between
sends it again, under the same id.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog

from harvester.context import Stop, in_parallel
from harvester.domain.deliveries import (
    Failure,
    NotTaken,
    Outbox,
    Pending,
    Receiver,
    Settlement,
    Waiting,
    next_try,
    rest_until,
)
from harvester.domain.events import Event

log = structlog.get_logger()

_BATCH = 50
_GIVE_UP = 3
"""Failures without a success after which a receiver is taken to be dead, not an event bad."""
_ROUND = 60.0
"""Seconds after which a round begins no more events; the next one goes on."""
_LONGEST_REST = timedelta(hours=1)


@dataclass(slots=True)
class AnnounceReport:
    """How many events were taken and how many attempts failed."""

    taken: int = 0
    failed: int = 0

    def add(self, other: AnnounceReport) -> None:
        """Count another round in."""
        self.taken += other.taken
        self.failed += other.failed


@dataclass(slots=True)
class _Route:
    """A receiver and how it is doing; ``rests`` counts those in a row, without a success."""

    receiver: Receiver
    rests: int = 0
    rests_until: datetime | None = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def is_resting(self, now: datetime) -> bool:
        until = self.rests_until
        return until is not None and now < until < now + _LONGEST_REST


@dataclass(slots=True)
class _Batch:
    """One batch on its way to a receiver; ``patience`` is how many failures in a row it bears."""

    settlement: Settlement
    patience: int
    until: float
    touched: set[int] = field(default_factory=set)
    failures: int = 0
    taken: int = 0
    gone: str | None = None


class Announcer:
    """Brings the outbox's events to the receivers. ``luck`` gives 0 to 1, to spread attempts."""

    def __init__(
        self,
        outbox: Outbox,
        receivers: Iterable[Receiver],
        *,
        clock: Callable[[], datetime],
        stop: Stop,
        luck: Callable[[], float] = random.random,
    ) -> None:
        self.outbox = outbox
        self._routes = {one.name: _Route(one) for one in receivers}
        self._clock = clock
        self._stop = stop
        self._luck = luck

    @property
    def receivers(self) -> dict[str, Receiver]:
        """The receivers by name."""
        return {name: route.receiver for name, route in self._routes.items()}

    async def begin(self) -> None:
        """Make the configured receivers known, before anything happens they should be told."""
        for name in await self.outbox.register_receivers(list(self._routes)):
            log.warning("receiver dropped", receiver=name, reason="not in the configuration")

    async def run_once(self) -> AnnounceReport:
        """Tell every receiver all that is due, each in its own task, as far as it goes."""
        report = AnnounceReport()

        async def tell(name: str) -> None:
            while not self._stop.asked:
                done = await self.announce(name)
                report.add(done)
                if not done.taken:
                    return

        width = max(len(self._routes), 1)
        await in_parallel(self._routes, tell, width=width, stop=self._stop, name="announce")
        return report

    async def announce(self, name: str) -> AnnounceReport:
        """Tell one receiver what is due, for a minute at most."""
        route = self._routes[name]
        report = AnnounceReport()
        until = time.monotonic() + _ROUND
        async with route.turn:
            while not self._stop.asked and time.monotonic() < until:
                now = self._clock()
                if route.is_resting(now):
                    break
                limit = 1 if route.rests else _BATCH
                receiver = route.receiver
                pending = await self.outbox.pending(name, receiver.filter, now, limit)
                if pending is None or not (pending.waiting or pending.reached > pending.cursor):
                    break
                batch = await self._send(route, pending, until)
                report.taken += batch.taken
                report.failed += len(batch.settlement.failed)
                if batch.gone is not None:
                    await self._park(name, batch.gone)
                    break
                if batch.touched:
                    await self._judge(route, batch)
        return report

    async def resend(
        self, seqs: Sequence[int], name: str | None, at: datetime
    ) -> list[tuple[int, str]]:
        """Queue events again for one receiver, or for all; return which for whom.

        See :meth:`harvester.domain.deliveries.Outbox.resend`.
        """
        chosen = {
            one.name: one.filter for one in self.receivers.values() if name in {None, one.name}
        }
        for one in chosen:
            self._routes[one].rests_until = None
        return await self.outbox.resend(seqs, chosen, at)

    async def tidy(self) -> None:
        """Delete events that are older than they are kept, and say so when somebody missed them."""
        pruned = await self.outbox.prune(self._clock())
        if pruned.undelivered:
            log.warning("events dropped", undelivered=pruned.undelivered, reason="too old")

    async def _send(self, route: _Route, pending: Pending, until: float) -> _Batch:
        """Send a batch, each order's events one after the other; record how it went."""
        patience = 1 if route.rests else _GIVE_UP
        batch = _Batch(Settlement(pending.cursor), patience, until)
        lanes: dict[tuple[str, str | None], list[Waiting]] = {}
        for one in pending.waiting:
            if not one.blocked:
                lanes.setdefault((one.event.account_id, one.event.order_id), []).append(one)

        async def send_lane(lane: Sequence[Waiting]) -> None:
            for one in lane:
                if not self._goes_on(batch) or not await self._send_one(route, one, batch):
                    return

        try:
            await in_parallel(
                lanes.values(),
                send_lane,
                width=route.receiver.width,
                stop=self._stop,
                name=f"announce-{route.receiver.name}",
            )
        finally:  # also when cancelled: what was taken is not sent again
            _account_for(pending, batch)
            await self.outbox.settle(route.receiver.name, batch.settlement, self._clock())
        return batch

    def _goes_on(self, batch: _Batch) -> bool:
        return (
            not self._stop.asked
            and batch.gone is None
            and batch.failures < batch.patience
            and time.monotonic() < batch.until
        )

    async def _send_one(self, route: _Route, one: Waiting, batch: _Batch) -> bool:
        """Send one event; tell whether it was taken."""
        event = one.event
        fault = await _attempt(route.receiver, event)
        batch.touched.add(event.seq)
        if fault is None:
            batch.settlement.taken.append(event.seq)
            batch.taken += 1
            batch.failures = 0
            return True
        batch.failures += not fault.of_event
        attempts = one.attempts + 1
        due = next_try(self._clock(), attempts, self._luck())
        batch.settlement.failed[event.seq] = Failure(attempts, due, fault.reason)
        if fault.gone:
            batch.gone = fault.reason
        log.warning(
            "event not taken",
            receiver=route.receiver.name,
            seq=event.seq,
            type=event.type,
            order=event.order_id,
            attempts=attempts,
            reason=fault.reason,
        )
        return False

    async def _park(self, name: str, reason: str) -> None:
        await self.outbox.park_receiver(name, reason)
        todo = f"mend it, then `harvester events resend --receiver {name}`"
        log.warning("receiver parked", receiver=name, reason=reason, todo=todo)

    async def _judge(self, route: _Route, batch: _Batch) -> None:
        """Leave a receiver alone that took nothing; begin anew with one that takes again."""
        if batch.taken:
            was_dead, route.rests, route.rests_until = route.rests > 1, 0, None
            if was_dead:
                await self.outbox.hurry(route.receiver.name, self._clock())
                log.info("receiver takes events again", receiver=route.receiver.name)
        elif batch.failures >= batch.patience:
            route.rests += 1
            route.rests_until = rest_until(self._clock(), route.rests, self._luck())


async def _attempt(receiver: Receiver, event: Event) -> NotTaken | None:
    try:
        return await receiver.sender.send(event)
    except Exception as error:
        # A fault of ours with one event must not keep the others from being told.
        log.exception("sending broke", receiver=receiver.name, seq=event.seq)
        return NotTaken(f"a fault of the harvester: {type(error).__name__}")


def _account_for(pending: Pending, batch: _Batch) -> None:
    """Move the cursor on as far as was looked at; queue what lies before it and was not sent."""
    beyond = [one.event.seq for one in pending.waiting if not one.queued]
    blocked = {one.event.seq for one in pending.waiting if one.blocked}
    sent = [seq for seq in beyond if seq in batch.touched]
    if batch.touched.issuperset(set(beyond) - blocked):
        batch.settlement.cursor = pending.reached
    elif sent:
        batch.settlement.cursor = max(sent)
    batch.settlement.queued += [
        seq for seq in beyond if seq not in batch.touched and seq <= batch.settlement.cursor
    ]
