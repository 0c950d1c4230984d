"""A drain's progress: a live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from harvester.runtime.drain import DrainReport

_EVERY = 5.0
_REFRESH = 0.1


class DrainProgress:
    """Shows a :class:`DrainReport` as it grows, on stderr; a context manager."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._shown = self._began
        self._collecting_since: float | None = None
        self._status: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console

            self._status = Console(stderr=True).status("asking Lune for accounts")
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def __call__(self, report: DrainReport) -> None:
        """Show how far it is, unless it was shown a moment ago."""
        now = time.monotonic()
        if now - self._shown < (_EVERY if self._status is None else _REFRESH):
            return
        self._shown = now
        line = self._line(report)
        if self._status is not None:
            self._status.update(line)
        else:
            print(line, file=sys.stderr, flush=True)  # noqa: T201 - progress goes to stderr

    def _line(self, report: DrainReport) -> str:
        seconds = max(time.monotonic() - self._began, 0.001)
        swept = report.swept
        parts = [
            f"{swept.seen} orders seen in {swept.accounts} of {report.accounts} accounts",
            f"{report.requests / seconds:.1f} requests/s",
        ]
        if report.collecting:
            self._collecting_since = self._collecting_since or time.monotonic()
            done = report.collected.stored + report.collected.recovered
            parts.insert(1, f"{done} of {report.to_store} certificates stored")
            left = report.to_store - done - report.collected.failed - report.collected.not_yet
            if done and left > 0:
                rate = done / max(time.monotonic() - self._collecting_since, 0.001)
                parts.append(f"{_clock(left / rate)} left")
        return ", ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
