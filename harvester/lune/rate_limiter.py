"""How fast requests may start: slots that rest a second after each answer, evenly spaced.

Lune counts requests a second (15 by default, Lune's rate limit page) and does not say how its
seconds are cut. A request is counted somewhere between its start and the end of its answer. A slot
that comes back one second *after* the answer therefore counts at most once in any second, however
long the way: with as many slots as requests allowed, no second at the server can hold more.

A 429 all the same says that somebody else uses the key too: then all pause, and go on at a lower
pace that recovers slowly.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from harvester.lune.priority import Urgency

# Starts this close to their time are not worth a timer: the loop's own are no finer.
_SLACK: Final = 0.001

_CATCH_UP: Final = 4  # starts that were late for want of a slot, and need not be spaced

_SLOWER: Final = 0.7  # what a 429 leaves of the pace
_SLOWEST: Final = 0.1  # of the rate
_RECOVERY_S: Final = 600.0  # from nothing to the whole rate


class Pacer:
    """Let requests through, never more than ``rate`` in any second.

    Use ``async with pacer.turn():`` around one request, answer included. Requests of one class go
    in the order they came; while several classes wait, each gets its share (:class:`Urgency`).
    ``rate`` is requests a second and may be below one. The counters only grow: ``requests`` let
    through, ``waited_seconds`` they waited in all, ``pauses`` asked for.
    """

    def __init__(
        self,
        rate: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        if not math.isfinite(rate) or rate <= 0:
            raise ValueError("rate: not a number of requests a second above 0")
        self.rate = rate
        self._clock = clock
        self._sleep = sleep
        self._rest = max(1.0, 1 / rate)
        self._free = max(1, math.floor(rate))
        self._resting: deque[float] = deque()
        self._released = asyncio.Event()
        self._queues = {urgency: deque[asyncio.Future[None]]() for urgency in Urgency}
        self._passed = dict.fromkeys(Urgency, 0.0)
        self._usher: asyncio.Task[None] | None = None
        self._next_start = -math.inf
        self._paused_until = -math.inf
        self._lowered_to = rate
        self._lowered_at = -math.inf
        self.requests = 0
        self.waited_seconds = 0.0
        self.pauses = 0

    @property
    def pace(self) -> float:
        """Requests a second let through now: the rate, or less for some minutes after a 429."""
        recovered = max(self._clock() - self._lowered_at, 0) / _RECOVERY_S * self.rate
        return min(self.rate, self._lowered_to + recovered)

    def as_document(self) -> dict[str, float]:
        """Return the rate, the pace now, and how many pauses there were, JSON-ready."""
        return {"rate": self.rate, "pace": round(self.pace, 3), "pauses": self.pauses}

    def pause(self, seconds: float) -> None:
        """Let nobody start for this long and go slower after; a pause is never shortened."""
        if seconds <= 0:
            return
        now = self._clock()
        if now >= self._paused_until:  # else: the same 429, met by several requests
            self._lowered_to = max(self.pace * _SLOWER, self.rate * _SLOWEST)
            self._lowered_at = now + seconds
        self._paused_until = max(self._paused_until, now + seconds)
        self.pauses += 1

    @asynccontextmanager
    async def turn(self, urgency: Urgency = Urgency.DUE) -> AsyncIterator[None]:
        """Wait for a turn, then hold a slot; it comes back a second after the block ends."""
        asked_at = self._clock()
        await self._wait_for_turn(urgency)
        self.requests += 1
        self.waited_seconds += self._clock() - asked_at
        try:
            yield
        finally:
            # A request that failed or was cancelled may have been counted all the same.
            self._give_back()

    async def _wait_for_turn(self, urgency: Urgency) -> None:
        if not any(self._queues.values()) and self._wait() <= 0:
            self._take()
            return
        if not self._queues[urgency]:
            # A class that comes back from idling has saved nothing up.
            waiting = [self._passed[one] for one, queue in self._queues.items() if queue]
            self._passed[urgency] = max(self._passed[urgency], min(waiting, default=0.0))
        ticket = asyncio.get_running_loop().create_future()
        self._queues[urgency].append(ticket)
        if self._usher is None or self._usher.done():
            self._usher = asyncio.create_task(self._let_through(), name="pacer")
        try:
            await ticket
        except asyncio.CancelledError:
            if ticket.done() and not ticket.cancelled():
                self._give_back()  # it was let through and will not go
            raise

    async def _let_through(self) -> None:
        """Let one after another through until nobody waits."""
        lacked_slot = False
        while self._next_class() is not None:
            wait = self._wait()
            lacked_slot |= not self._free
            if wait == math.inf:
                self._released.clear()
                await self._released.wait()
            elif wait > 0:
                await self._sleep(wait)
            elif (urgency := self._next_class()) is not None:
                self._passed[urgency] += 1 / urgency.value
                self._take(late=_CATCH_UP / self.pace if lacked_slot else _SLACK)
                lacked_slot = False
                self._queues[urgency].popleft().set_result(None)

    def _next_class(self) -> Urgency | None:
        """Return the waiting class that had least of its share; forget who waits no more."""
        for queue in self._queues.values():
            while queue and queue[0].done():
                queue.popleft()
        waiting = [urgency for urgency, queue in self._queues.items() if queue]
        return min(waiting, key=self._passed.__getitem__, default=None)

    def _take(self, late: float = _SLACK) -> None:
        # The slack makes up for timers that fire late; idle time earns no more than that. Slots
        # come back at odd moments: spaced anew from each, a thirtieth of the rate would be lost.
        self._next_start = max(self._next_start, self._clock() - late) + 1 / self.pace
        self._free -= 1

    def _give_back(self) -> None:
        self._resting.append(self._clock() + self._rest)
        self._released.set()

    def _wait(self) -> float:
        """Return the seconds until the next start; infinite while every slot is in flight."""
        now = self._clock()
        while self._resting and self._resting[0] <= now:
            self._resting.popleft()
            self._free += 1
        wait = self._paused_until - now
        if self._next_start - now > _SLACK:
            wait = max(wait, self._next_start - now)
        if not self._free:
            wait = max(wait, self._resting[0] - now if self._resting else math.inf)
        return wait
