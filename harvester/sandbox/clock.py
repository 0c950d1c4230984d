"""Simulated time: it starts at a given instant and runs faster than real time."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime


class Clock:
    """Simulated seconds since the Unix epoch, computed from a monotonic clock on demand.

    ``speed`` is simulated seconds per real second (0 stands still); ``monotonic`` is real
    seconds, injectable so that tests move time by hand.
    """

    def __init__(
        self,
        speed: float,
        starts_at: datetime | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.speed = speed
        self.monotonic = monotonic
        self._began = monotonic()
        self._starts_at = (starts_at or datetime.now(UTC)).timestamp()

    def now(self) -> float:
        """Return the simulated instant, in seconds since the Unix epoch."""
        return self._starts_at + (self.monotonic() - self._began) * self.speed

    def advance(self, seconds: float) -> None:
        """Jump forward by simulated seconds; every order that was due to move has moved."""
        self._starts_at += seconds

    def run_at(self, speed: float) -> None:
        """Go on from the simulated instant it is at another speed."""
        self._starts_at, self._began, self.speed = self.now(), self.monotonic(), speed
