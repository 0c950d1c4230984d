"""How much of a rate limit is used and how many 429s that costs, in simulated time.

The program's own rate limiter and retry rules, with workers that always have something to ask,
against a server that allows so many requests in any one second; a request takes 20 to 200 ms,
there and back, in random parts. Beside it stand the usual limiters. Then somebody else uses the
key too, in bursts, as a billing system does. A refused request does not count against the limit
here: a server that counts those too punishes the others harder.

    python -m tests.bench rate_limit
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from statistics import quantiles

import structlog

from harvester.domain.errors import RateLimited
from harvester.lune.rate_limiter import Priority, RateLimiter
from harvester.lune.retry import Retries
from tests.bench.virtual_time import simulate

LIMIT = 15
HOUR = 3600.0
_FASTEST, _SLOWEST = 0.02, 0.2
_WORKERS = 32
_BURST = 60
_BURST_EVERY = 30.0

HARVEST = "harvester"
OTHER = "other"

Turn = Callable[[], AbstractAsyncContextManager[None]]


class Server:
    """Allows ``limit`` requests in any one second; counts what it accepted and what not."""

    def __init__(self, limit: int, seed: int) -> None:
        self._limit = limit
        self._dice = random.Random(seed)
        self._recent: deque[float] = deque()
        self.accepted: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    async def request(self, who: str) -> bool:
        """Send a request there and back; tell whether it was accepted."""
        seconds = self._dice.uniform(_FASTEST, _SLOWEST)
        there = seconds * self._dice.random()
        await asyncio.sleep(there)
        accepted = self._accept(asyncio.get_running_loop().time())
        (self.accepted if accepted else self.refused)[who] += 1
        await asyncio.sleep(seconds - there)
        return accepted

    def _accept(self, now: float) -> bool:
        while self._recent and self._recent[0] <= now - 1:
            self._recent.popleft()
        if len(self._recent) >= self._limit:
            return False
        self._recent.append(now)
        return True


class Even:
    """The usual spacing: one start every 1/rate seconds."""

    def __init__(self, rate: float) -> None:
        self._gap = 1 / rate
        self._next = 0.0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for the next free moment."""
        now = asyncio.get_running_loop().time()
        self._next = max(self._next + self._gap, now)
        await asyncio.sleep(self._next - now)
        yield


class TokenBucket:
    """The usual limiter: ``rate`` tokens a second, at most as many saved up."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._tokens = rate
        self._at = 0.0
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a token."""
        async with self._lock:
            self._fill()
            if self._tokens < 1:
                await asyncio.sleep((1 - self._tokens) / self._rate)
                self._fill()
            self._tokens -= 1
        yield

    def _fill(self) -> None:
        now = asyncio.get_running_loop().time()
        self._tokens = min(self._rate, self._tokens + (now - self._at) * self._rate)
        self._at = now


Limiter = Callable[[], RateLimiter | Even | TokenBucket]
"""Makes a limiter, on the loop that it is to work on."""


@dataclass(slots=True)
class Neighbour:
    """Somebody else with the same key: bursts, each request repeated until it is accepted."""

    seconds: list[float] = field(default_factory=list)

    async def live(self, server: Server) -> None:
        """Send a burst every half minute."""
        async with asyncio.TaskGroup() as group:
            while True:
                for _ in range(_BURST):
                    group.create_task(self._buy(server))
                await asyncio.sleep(_BURST_EVERY)

    async def _buy(self, server: Server) -> None:
        began = asyncio.get_running_loop().time()
        accepted = await server.request(OTHER)
        while not accepted:
            await asyncio.sleep(1)
            accepted = await server.request(OTHER)
        self.seconds.append(asyncio.get_running_loop().time() - began)


async def _pausing(server: Server, rate_limiter: RateLimiter) -> None:
    """Ask without end as the client does: each try takes its turn, a 429 makes all pause."""
    retries = Retries(rate_limiter.pause)

    async def attempt() -> None:
        async with rate_limiter.turn():
            if not await server.request(HARVEST):
                raise RateLimited("refused", method="GET", path="/orders", status=429)

    while True:
        with suppress(RateLimited):  # so often that the client gives a request up
            await retries.run(attempt)


async def _plainly(server: Server, turn: Turn) -> None:
    while True:
        async with turn():
            await server.request(HARVEST)


async def _let_work(seconds: float, *work: Awaitable[None]) -> None:
    """Let everybody work at once for so many virtual seconds."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(*work)


async def alone(limiter: Limiter, seconds: float) -> Server:
    """Ask without end with nobody else there; the 429s are counted, and nobody pauses."""
    server = Server(LIMIT, seed=1)
    turn = limiter().turn
    await _let_work(seconds, *(_plainly(server, turn) for _ in range(_WORKERS)))
    return server


async def shared(limiter: Limiter | None, seconds: float) -> tuple[Server, Neighbour]:
    """Share the key with a neighbour: a rate limiter as the client uses it, others as they are."""
    server, neighbour = Server(LIMIT, seed=2), Neighbour()
    found = None if limiter is None else limiter()
    workers = (
        _pausing(server, found) if isinstance(found, RateLimiter) else _plainly(server, found.turn)
        for _ in range(_WORKERS)
        if found is not None
    )
    with structlog.testing.capture_logs():  # a line a 429
        await _let_work(seconds, neighbour.live(server), *workers)
    return server, neighbour


async def classes(seconds: float) -> tuple[Counter[Priority], list[float]]:
    """Return how many of each class went while all waited, and then what those of the first waited.

    The second half leaves the two lower classes waiting and asks for something of the first now
    and then; its waits are in seconds.
    """
    loop, server, dice = asyncio.get_running_loop(), Server(LIMIT, seed=3), random.Random(3)
    counts: Counter[Priority] = Counter()
    waits: list[float] = []
    rate_limiter = _limiter(LIMIT)()

    async def ask(priority: Priority) -> None:
        while True:
            async with rate_limiter.turn(priority):
                counts[priority] += 1
                await server.request(HARVEST)

    async def ask_now_and_then() -> None:
        while True:
            await asyncio.sleep(dice.expovariate(1))
            began = loop.time()
            async with rate_limiter.turn(Priority.WAITED_FOR):
                waits.append(loop.time() - began)
                await server.request(HARVEST)

    await _let_work(seconds / 2, *(ask(one) for one in Priority for _ in range(_WORKERS)))
    shares = counts.copy()
    others = (Priority.DUE, Priority.BACKGROUND)
    lower = (ask(one) for one in others for _ in range(_WORKERS))
    await _let_work(seconds / 2, ask_now_and_then(), *lower)
    return shares, waits


def measure(*, small: bool) -> list[dict[str, object]]:
    """Return a row a way alone, a row a way beside a neighbour, and a row a class."""
    seconds = HOUR / 60 if small else HOUR
    return [*_rows_alone(seconds), *_rows_shared(seconds), *_rows_of_classes(seconds)]


def _rows_alone(seconds: float) -> Iterator[dict[str, object]]:
    ways: dict[str, Limiter] = {
        HARVEST: _limiter(LIMIT),
        f"token bucket, {LIMIT}/s": lambda: TokenBucket(LIMIT),
        **{f"even, {share} %": _even(LIMIT * share / 100) for share in (100, 95, 90)},
    }
    for way, limiter in ways.items():
        server = simulate(alone(limiter, seconds))
        yield {"setting": "alone", "way": way, **_used(server, seconds)}


def _rows_shared(seconds: float) -> Iterator[dict[str, object]]:
    ways: dict[str, Limiter | None] = {
        "nobody": None,
        **{f"even, {share} %": _even(LIMIT * share / 100) for share in (100, 80, 50)},
        **{f"{HARVEST}, {rate}/s": _limiter(rate) for rate in (15, 12, 7.5)},
    }
    for way, limiter in ways.items():
        server, other = simulate(shared(limiter, seconds))
        tries = server.accepted[OTHER] + server.refused[OTHER]
        yield {
            "setting": "beside bursts",
            "way": way,
            **_used(server, seconds),
            "other's tries refused %": round(100 * server.refused[OTHER] / tries, 1),
            "other p95 s": round(quantiles(other.seconds, n=20)[-1], 1),
        }


def _rows_of_classes(seconds: float) -> Iterator[dict[str, object]]:
    shares, waits = simulate(classes(seconds))
    for priority, count in shares.items():
        row: dict[str, object] = {
            "setting": "classes",
            "way": priority.name,
            "requests/s": round(count / seconds * 2, 2),
            "share %": round(100 * count / shares.total(), 1),
        }
        if priority is Priority.WAITED_FOR:
            row["waits p95 s"] = round(quantiles(waits, n=20)[-1], 2)
        yield row


def _used(server: Server, seconds: float) -> dict[str, object]:
    accepted, refused = server.accepted[HARVEST], server.refused[HARVEST]
    return {
        "requests/s": round(accepted / seconds, 2),
        "% of limit": round(100 * accepted / seconds / LIMIT, 1),
        "429s an hour": round(refused / seconds * HOUR),
    }


def _limiter(rate: float) -> Callable[[], RateLimiter]:
    return lambda: RateLimiter(rate, clock=asyncio.get_running_loop().time)


def _even(rate: float) -> Callable[[], Even]:
    return lambda: Even(rate)
