"""Being asked to stop: once politely, twice at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


class Stop:
    """A request to stop. The first lets what is in flight end, the second ends it."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._urged = asyncio.Event()

    def request(self) -> None:
        """Ask to stop; asked again, urge."""
        if self._asked.is_set():
            self._urged.set()
        self._asked.set()

    @property
    def asked(self) -> bool:
        """Whether no new work should begin."""
        return self._asked.is_set()

    @property
    def urged(self) -> bool:
        """Whether what is in flight should be abandoned."""
        return self._urged.is_set()

    async def wait(self) -> None:
        """Return when asked to stop."""
        await self._asked.wait()

    async def wait_urged(self) -> None:
        """Return when asked a second time."""
        await self._urged.wait()

    async def sleep(self, seconds: float) -> None:
        """Sleep, or return early when asked to stop."""
        try:
            async with asyncio.timeout(max(seconds, 0)):
                await self._asked.wait()
        except TimeoutError:
            return


async def in_parallel(
    items: Iterable[T], work: Callable[[T], Awaitable[None]], *, width: int, stop: Stop, name: str
) -> None:
    """Run ``work`` for each item, at most ``width`` at once; no item begins after a stop.

    The first fault cancels the others and is raised as itself.
    """
    queue = iter(items)

    async def worker() -> None:
        for item in queue:  # shared: each worker takes the next one
            if stop.asked:
                return
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(width):
                group.create_task(worker(), name=f"{name}-{number}")
    except BaseExceptionGroup as faults:
        raise faults.exceptions[0] from None
