"""An event loop whose time passes only while everybody waits: an hour takes seconds."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Leap(selectors.DefaultSelector):
    """Instead of waiting for time to pass, let it have passed."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everybody waits, and for nothing that time could bring")
        self.now += max(timeout, 0.0)
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop for simulations: timers fire in their order and at their time, at once.

    Nothing outside of the loop is heard: no sockets, no threads, no signals.
    """

    def __init__(self) -> None:
        self._leap = _Leap()
        super().__init__(self._leap)

    def time(self) -> float:
        """Return the seconds that passed since the loop was made."""
        return self._leap.now


def simulate(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in virtual time; what it left running is cancelled."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(work)
