"""How fast requests may start: slots that rest a second after each answer, evenly spaced.

Lune counts requests a second (15 by default, Lune's rate limit page) and does not say how its
seconds are cut. A request is counted somewhere between its start and the end of its answer. A slot
that comes back one second *after* the answer therefore counts at most once in any second, however
long the way: with as many slots as requests allowed, no second at the server can hold more.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final

# Starts this close to their time are not worth a timer: the loop's own are no finer.
_SLACK: Final = 0.001


class Pacer:
    """Let requests through in the order they came, never more than ``rate`` in any second.

    Use ``async with pacer:`` around one request, answer included. ``rate`` is requests a second
    and may be below one. The counters only grow: ``requests`` let through, ``waited_seconds``
    they waited in all, ``pauses`` asked for.
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
        self._clock = clock
        self._sleep = sleep
        self._gap = 1 / rate
        self._rest = max(1.0, self._gap)
        self._free = max(1, math.floor(rate))
        self._resting: deque[float] = deque()
        self._released = asyncio.Event()
        self._turn = asyncio.Lock()
        self._next_start = -math.inf
        self._paused_until = -math.inf
        self.requests = 0
        self.waited_seconds = 0.0
        self.pauses = 0

    def pause(self, seconds: float) -> None:
        """Let nobody start for this long; a pause already running is never shortened."""
        if seconds > 0:
            self._paused_until = max(self._paused_until, self._clock() + seconds)
            self.pauses += 1

    async def __aenter__(self) -> None:
        asked_at = self._clock()
        async with self._turn:  # asyncio's lock is fair: who came first starts first
            while (wait := self._wait()) > 0:
                if math.isinf(wait):
                    self._released.clear()
                    await self._released.wait()
                else:
                    await self._sleep(wait)
            # Nothing awaits from here on, so a cancelled waiter never takes a slot with it.
            now = self._clock()
            self._free -= 1
            # The slack makes up for timers that fire late; idle time earns no more than that.
            self._next_start = max(self._next_start, now - _SLACK) + self._gap
        self.requests += 1
        self.waited_seconds += now - asked_at

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A request that failed or was cancelled may have been counted all the same.
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
