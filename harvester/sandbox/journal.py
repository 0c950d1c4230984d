"""What the server saw, for those who test against it, and its limit on requests a second."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable


class SlidingSecond:
    """The instants of the last second. At most ``limit`` are let in; 0 lets in all."""

    def __init__(self, limit: int, monotonic: Callable[[], float]) -> None:
        self._limit = limit
        self._monotonic = monotonic
        self._instants: deque[float] = deque()

    def admit(self) -> bool:
        """Count a request if there is room for it in the last second; say whether there was."""
        now = self._monotonic()
        while self._instants and self._instants[0] <= now - 1.0:
            self._instants.popleft()
        if self._limit and len(self._instants) >= self._limit:
            return False
        self._instants.append(now)
        return True

    def __len__(self) -> int:
        return len(self._instants)


class Journal:
    """Requests by endpoint and answered status, and the most that arrived within one second.

    An endpoint is written like ``GET /orders/{id}``. Status 0 counts requests that got no
    answer.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._counts: Counter[tuple[str, int]] = Counter()
        self._arrivals = SlidingSecond(0, monotonic)
        self.peak = 0

    def arrive(self) -> None:
        """Note that a request has come in."""
        self._arrivals.admit()
        self.peak = max(self.peak, len(self._arrivals))

    def record(self, endpoint: str, status: int) -> None:
        """Note how a request was answered."""
        self._counts[endpoint, status] += 1

    def count(self, endpoint: str | None = None, status: int | None = None) -> int:
        """Return how many requests ended, of one endpoint or status or of all."""
        return sum(
            times
            for (name, code), times in self._counts.items()
            if endpoint in (None, name) and status in (None, code)
        )

    def clear(self) -> None:
        """Forget everything seen so far."""
        self._counts.clear()
        self.peak = 0

    def as_document(self) -> dict[str, dict[str, int]]:
        """Return the counts as JSON-ready objects: endpoint, then status."""
        document: dict[str, dict[str, int]] = {}
        for (endpoint, status), times in sorted(self._counts.items()):
            document.setdefault(endpoint, {})[str(status)] = times
        return document
