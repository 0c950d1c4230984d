"""What every step of the harvest shares: clock, request to stop, schedule, limits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

from harvester.domain.schedule import Schedule
from harvester.measurements import Measurements

T = TypeVar("T")


def utc_now() -> datetime:
    """Return the instant it is, UTC."""
    return datetime.now(UTC)


class Stop:
    """A request to stop. The first lets what is in flight end, the second ends it."""

    def __init__(self) -> None:
        self._requested = asyncio.Event()
        self._urged = asyncio.Event()

    def request(self) -> None:
        """Ask to stop; asked again, urge."""
        if self._requested.is_set():
            self._urged.set()
        self._requested.set()

    @property
    def requested(self) -> bool:
        """Whether no new work should begin."""
        return self._requested.is_set()

    @property
    def urged(self) -> bool:
        """Whether what is in flight should be abandoned."""
        return self._urged.is_set()

    async def wait(self) -> None:
        """Return when asked to stop."""
        await self._requested.wait()

    async def wait_urged(self) -> None:
        """Return when asked a second time."""
        await self._urged.wait()

    async def sleep(self, seconds: float) -> None:
        """Sleep, or return early when asked to stop."""
        try:
            async with asyncio.timeout(max(seconds, 0)):
                await self._requested.wait()
        except TimeoutError:
            return


@dataclass(frozen=True, slots=True)
class Limits:
    """How long things may take, in seconds, and how many there may be at a time."""

    stop_grace: float = 15.0
    """What is in flight has so long to end after a stop; then it is abandoned, crash-safe."""

    step_timeout: float = 900.0
    """A step may neither end nor ask Lune anything for so long; a request may take two minutes."""

    key_retry: float = 300.0
    """Between two attempts with a key that was refused."""

    accounts_at_once: int = 4
    certificates_at_once: int = 32
    """Certificates on their way: some are downloaded, the others wait for the disk."""

    delivery_round: float = 60.0
    """After so long a round of deliveries begins no more events; the next one goes on."""

    request_head: float = 10.0
    """A client of the listener has so long to send the head of its request, or its next one."""

    request_body: float = 10.0
    response: float = 300.0
    """An answer has so long to be made and to be read, its last byte included."""

    unread_response: float = 20.0
    """The kernel gives up on a client that takes nothing for so long."""

    webhook_write: float = 4.0
    """The ledger may take so long to record a webhook."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a step works under. ``clock`` returns the instant it is, UTC."""

    schedule: Schedule
    stop: Stop = field(default_factory=Stop)
    clock: Callable[[], datetime] = utc_now
    limits: Limits = Limits()
    measurements: Measurements = field(default_factory=Measurements)


async def in_parallel(
    items: Iterable[T], work: Callable[[T], Awaitable[None]], *, width: int, stop: Stop, name: str
) -> None:
    """Run ``work`` for each item, at most ``width`` at once; no item begins after a stop.

    The first fault cancels the others and is raised as itself.
    """
    queue = iter(items)

    async def worker() -> None:
        for item in queue:  # shared: each worker takes the next one
            if stop.requested:
                return
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(width):
                group.create_task(worker(), name=f"{name}-{number}")
    except BaseExceptionGroup as faults:
        raise faults.exceptions[0] from None
