"""Whether and when a request is tried again: the one door to tenacity, and the only retry layer.

===================  ==========================================================================
after                what happens
===================  ==========================================================================
a retryable fault    up to 4 tries in all, 1 s, 2 s, 4 s apart plus up to 1 s of jitter
an unexpected shape  one more try, counted among the 4
429                  everybody pauses; no try is spent, but the 10th 429 of a request is raised
a stale connection   tried again at once, once, and not counted: the server hung up while idle
placing an order     after a 429 only: what became of it otherwise is asked, not tried
anything else        raised
===================  ==========================================================================

``Retry-After`` is a floor under each of these waits.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar

import structlog
from tenacity import AsyncRetrying, RetryCallState, wait_exponential, wait_random

from harvester.domain.errors import LuneError, RateLimited, UnexpectedAnswer, Unreachable

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]

TRIES: Final = 4
SHAPE_TRIES: Final = 2
RATE_LIMITS: Final = 10
LONGEST_PAUSE: Final = 60.0
LONGEST_RETRY_AFTER: Final = 300.0

_JITTER: Final = wait_random(0, 1)
_BACKOFF: Final = wait_exponential(multiplier=1, max=30) + _JITTER
_PAUSE: Final = wait_exponential(multiplier=1, max=LONGEST_PAUSE) + _JITTER

log = structlog.get_logger(__name__)


class StaleConnection(Unreachable):
    """A kept-alive connection turned out to be closed before any byte of an answer came."""


def parse_retry_after(text: str | None, now: float) -> float | None:
    """Return a ``Retry-After`` header in seconds, at most 300; None when absent or junk.

    Takes seconds or an HTTP date (RFC 9110, 10.2.3); ``now`` is in seconds since the epoch.
    """
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - now
        except (ValueError, OverflowError):
            return None
    if not math.isfinite(seconds) or seconds < 0:
        return None
    return min(seconds, LONGEST_RETRY_AFTER)


class Retries:
    """Run requests, trying again by the table above; ``pause`` makes every request wait."""

    def __init__(self, pause: Callable[[float], None]) -> None:
        self._pause = pause

    async def run(
        self,
        attempt: Callable[[], Awaitable[T]],
        sleep: Sleep = asyncio.sleep,
        *,
        repeatable: bool = True,
    ) -> T:
        """Return what ``attempt`` returns, or raise its last error. ``sleep`` takes seconds.

        What is not ``repeatable`` is tried again after a 429 only, which says it was not taken.
        """
        course = _Course(self._pause, repeatable=repeatable)
        retrying = AsyncRetrying(
            retry=course.goes_on,
            wait=course.wait,
            sleep=sleep,
            before_sleep=_log_retry,
            reraise=True,
        )
        return await retrying(attempt)


class _Course:
    """What one request has been through so far."""

    def __init__(self, pause: Callable[[float], None], *, repeatable: bool) -> None:
        self._pause = pause
        self._repeatable = repeatable
        self._faults = 0
        self._shapes = 0
        self._rate_limits = 0
        self._stale = 0
        self._at_once = False

    def goes_on(self, state: RetryCallState) -> bool:
        """Count a try's outcome and tell whether there is another try."""
        error = _error(state)
        self._at_once = False
        if error is None or not error.retryable:
            return False
        if isinstance(error, RateLimited):
            self._rate_limits += 1
            self._pause(max(min(_PAUSE(state), LONGEST_PAUSE), error.retry_after or 0.0))
            self._at_once = True  # the pause is what it waits for
            return self._rate_limits < RATE_LIMITS
        if not self._repeatable:
            return False
        if isinstance(error, StaleConnection) and not self._stale:
            self._stale += 1
            self._at_once = True
            return True
        self._faults += 1
        self._shapes += isinstance(error, UnexpectedAnswer)
        return self._faults < TRIES and self._shapes < SHAPE_TRIES

    def wait(self, state: RetryCallState) -> float:
        """Return the seconds before the next try."""
        if self._at_once:
            return 0.0
        error = _error(state)
        return max(_BACKOFF(state), (error and error.retry_after) or 0.0)


def _error(state: RetryCallState) -> LuneError | None:
    error = state.outcome.exception() if state.outcome else None
    return error if isinstance(error, LuneError) else None


def _log_retry(state: RetryCallState) -> None:
    error = _error(state)
    if error is not None:
        log.info(
            "request repeated", error=type(error).__name__, reason=str(error), cf_ray=error.cf_ray
        )
