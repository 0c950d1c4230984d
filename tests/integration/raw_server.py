"""A loopback server below HTTP: it says the bytes a test wants said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

Answer = Callable[[int, asyncio.StreamWriter], Awaitable[None]]


class RawServer:
    """A loopback server that answers the n-th request (from 1) as its script says."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._tasks: set[asyncio.Task[Any]] = set()
        self.heads: list[bytes] = []
        self.connections = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while not writer.is_closing():
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                await self._answer(len(self.heads), writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def stop(self) -> None:
        for task in (tasks := list(self._tasks)):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def raw_server(answer: Answer, **options: Any) -> AsyncIterator[RawServer]:
    raw = RawServer(answer)
    server = await asyncio.start_server(raw.serve, "127.0.0.1", 0, **options)
    raw.port = server.sockets[0].getsockname()[1]
    try:
        yield raw
    finally:
        server.close()
        await raw.stop()


def saying(*parts: bytes, close: bool = False) -> Answer:
    async def answer(_: int, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
        if close:
            writer.close()

    return answer


class Naps(list[float]):
    """Sleep no time, and remember how long was asked for."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)
