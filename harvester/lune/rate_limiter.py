"""How fast requests may start: slots that rest a second after each answer, evenly spaced.

Lune counts requests a second (15 by default, Lune's rate limit page) and does not say how its
seconds are cut. A request is counted somewhere between its start and the end of its answer. A slot
that comes back one second *after* the answer therefore counts at most once in any second, however
long the way: with as many slots as requests allowed, no second at the server can hold more.

A 429 all the same says that somebody else uses the key too: then all pause, and go on at a lower
rate that recovers slowly.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from enum import Enum
from typing import Final

# Starts this close to their time are not worth a timer: the loop's own are no finer.
_SLACK: Final = 0.001

_CATCH_UP: Final = 4  # starts that were late for want of a slot, and need not be spaced

_SLOWER: Final = 0.7  # what a 429 leaves of the current rate
_SLOWEST: Final = 0.1  # of the rate
_RECOVERY_S: Final = 600.0  # from nothing to the whole rate


class Priority(Enum):
    """The classes a request can be of; the value is a class's share while all of them wait.

    Shares, not ranks: whatever waits, every class goes on.
    """

    WAITED_FOR = 8
    """Somebody waits for the answer: tracking, ordering, asking whether the key is good."""

    DUE = 4
    """Certificates, and orders whose check is due."""

    BACKGROUND = 1
    """Reading listings for what is new."""


class RateLimiter:
    """Let requests through, never more than ``rate`` in any second.

    Use ``async with rate_limiter.turn():`` around one request, answer included. Requests of one
    class go in the order they came; while several classes wait, each gets its share
    (:class:`Priority`). ``rate`` is requests a second and may be below one. The counters only grow:
    ``requests`` let through, ``waited_seconds`` they waited in all, ``pauses`` asked for.
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
        self._queues = {priority: deque[asyncio.Future[None]]() for priority in Priority}
        self._passed = dict.fromkeys(Priority, 0.0)
        self._admitting: asyncio.Task[None] | None = None
        self._next_start = -math.inf
        self._paused_until = -math.inf
        self._lowered_to = rate
        self._lowered_at = -math.inf
        self.requests = 0
        self.waited_seconds = 0.0
        self.pauses = 0

    @property
    def current_rate(self) -> float:
        """Requests a second let through now: the rate, or less for some minutes after a 429."""
        recovered = max(self._clock() - self._lowered_at, 0) / _RECOVERY_S * self.rate
        return min(self.rate, self._lowered_to + recovered)

    def pause(self, seconds: float) -> None:
        """Let nobody start for this long and go slower after; a pause is never shortened."""
        if seconds <= 0:
            return
        now = self._clock()
        if now >= self._paused_until:  # else: the same 429, met by several requests
            self._lowered_to = max(self.current_rate * _SLOWER, self.rate * _SLOWEST)
            self._lowered_at = now + seconds
        self._paused_until = max(self._paused_until, now + seconds)
        self.pauses += 1

    @asynccontextmanager
    async def turn(self, priority: Priority = Priority.DUE) -> AsyncIterator[None]:
        """Wait for a turn, then hold a slot; it comes back a second after the block ends."""
        asked_at = self._clock()
        await self._wait_for_turn(priority)
        self.requests += 1
        self.waited_seconds += self._clock() - asked_at
        try:
            yield
        finally:
            # A request that failed or was cancelled may have been counted all the same.
            self._give_back()

    async def _wait_for_turn(self, priority: Priority) -> None:
        if not any(self._queues.values()) and self._wait() <= 0:
            self._take()
            return
        if not self._queues[priority]:
            # A class that comes back from idling has saved nothing up.
            waiting = [self._passed[one] for one, queue in self._queues.items() if queue]
            self._passed[priority] = max(self._passed[priority], min(waiting, default=0.0))
        ticket = asyncio.get_running_loop().create_future()
        self._queues[priority].append(ticket)
        if self._admitting is None or self._admitting.done():
            self._admitting = asyncio.create_task(self._admit(), name="rate-limiter")
        try:
            await ticket
        except asyncio.CancelledError:
            if ticket.done() and not ticket.cancelled():
                self._give_back()  # it was let through and will not go
            raise

    async def _admit(self) -> None:
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
            elif (priority := self._next_class()) is not None:
                self._passed[priority] += 1 / priority.value
                self._take(late=_CATCH_UP / self.current_rate if lacked_slot else _SLACK)
                lacked_slot = False
                self._queues[priority].popleft().set_result(None)

    def _next_class(self) -> Priority | None:
        """Return the waiting class that had least of its share; forget who waits no more."""
        for queue in self._queues.values():
            while queue and queue[0].done():
                queue.popleft()
        waiting = [priority for priority, queue in self._queues.items() if queue]
        return min(waiting, key=self._passed.__getitem__, default=None)

    def _take(self, late: float = _SLACK) -> None:
        # The slack makes up for timers that fire late; idle time earns no more than that. Slots
        # come back at odd moments: spaced anew from each, a thirtieth of the rate would be lost.
        self._next_start = max(self._next_start, self._clock() - late) + 1 / self.current_rate
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
