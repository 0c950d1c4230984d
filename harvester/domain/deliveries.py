"""Deliveries of events: how an attempt can fail, and when the next one is due."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

_FIRST: Final = timedelta(seconds=5)
_LONGEST: Final = timedelta(hours=6)
_RISING: Final = 23
"""Attempts at rising intervals: 5 s, doubling, then every six hours are three days together."""
_AFTERWARDS: Final = timedelta(days=1)
_LONGEST_PAUSE: Final = timedelta(minutes=15)
_SPREAD: Final = 0.25

HORIZON: Final = 2 * _AFTERWARDS
"""No attempt is further away than this; a later date was written under a wrong clock."""


@dataclass(frozen=True, slots=True)
class DeliveryFailure:
    """Why a receiver did not accept an event.

    ``gone`` says that the receiver wants none ever again, ``of_event`` that it is well and rejects
    this one event.
    """

    reason: str
    gone: bool = False
    of_event: bool = False


def next_attempt(now: datetime, attempts: int, jitter: float) -> datetime:
    """Return when to send an event again after so many failed attempts, 1 or more.

    From 5 s doubling to 6 h over three days, then once a day for as long as the event is kept.
    ``jitter`` from 0 to 1 spreads it by a quarter each way, so that what failed together does not
    come back together.
    """
    wait = _AFTERWARDS if attempts > _RISING else min(_FIRST * 2.0 ** (attempts - 1), _LONGEST)
    return now + _spread(wait, jitter)


def pause_until(now: datetime, pauses: int, jitter: float) -> datetime:
    """Return until when a receiver that accepts nothing at all is left alone; 15 min at most."""
    wait = min(_FIRST * 2.0 ** min(pauses - 1, 20), _LONGEST_PAUSE)
    return now + _spread(wait, jitter)


def _spread(wait: timedelta, jitter: float) -> timedelta:
    return wait * (1 - _SPREAD + 2 * _SPREAD * jitter)
