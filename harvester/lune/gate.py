"""Whether the key may be used: after Lune refused it nothing is asked until a probe succeeds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from harvester.domain.errors import KeyRefused


class KeyGate:
    """Let requests pass while the key is good; turn all of them away once it was refused."""

    def __init__(self) -> None:
        self._refusal: KeyRefused | None = None
        self._waiting: set[asyncio.Timeout] = set()

    @property
    def closed(self) -> bool:
        """Tell whether the key is refused."""
        return self._refusal is not None

    def close(self, refusal: KeyRefused) -> None:
        """Turn away everybody from now on, those who wait included."""
        self._refusal = refusal
        now = asyncio.get_running_loop().time()
        for waiting in self._waiting:
            waiting.reschedule(now)
        self._waiting.clear()

    def open(self) -> None:
        """Let requests pass again."""
        self._refusal = None

    @asynccontextmanager
    async def waiting(self, method: str, path: str) -> AsyncIterator[None]:
        """Wait inside for a turn; raise ``KeyRefused`` as soon as the gate is closed."""
        self._check(method, path)
        try:
            async with asyncio.timeout(None) as patience:
                self._waiting.add(patience)
                try:
                    yield
                finally:
                    self._waiting.discard(patience)
        except TimeoutError:
            self._check(method, path)
            raise
        self._check(method, path)

    def _check(self, method: str, path: str) -> None:
        if self._refusal is not None:
            raise KeyRefused(
                "not asked: the key was refused before",
                method=method,
                path=path,
                code=self._refusal.code,
            ) from None
