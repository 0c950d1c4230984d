"""Which status may follow which, and what an observed status means for an order.

Lune's order guide draws ``received -> placed -> paid -> retiring -> complete`` with the ends
``cancelled`` and ``failed``. A poller samples, so it sees jumps: any forward move is a move.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

RECEIVED: Final = "received"
PLACED: Final = "placed"
PAID: Final = "paid"
RETIRING: Final = "retiring"
COMPLETE: Final = "complete"
CANCELLED: Final = "cancelled"
FAILED: Final = "failed"

_FORWARD: Final = (RECEIVED, PLACED, PAID, RETIRING, COMPLETE)
STATUSES: Final = (*_FORWARD, CANCELLED, FAILED)
TERMINAL: Final = frozenset({COMPLETE, CANCELLED, FAILED})


class AnomalyKind(StrEnum):
    """What was odd about an answer; ``unknown`` is a move, the others keep the recorded status."""

    BACKWARD = "backward"
    AFTER_THE_END = "after_the_end"
    UNKNOWN = "unknown_status"
    NOT_FOUND = "not_found"


@dataclass(frozen=True, slots=True)
class Moved:
    """The order went to another status; ``before`` is None when it is seen for the first time."""

    before: str | None
    after: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The order is where it was."""

    status: str


@dataclass(frozen=True, slots=True)
class Anomaly:
    """Lune served a status this order cannot go to; the recorded one is kept."""

    recorded: str
    served: str
    kind: AnomalyKind
    at: datetime


Observation = Moved | Unchanged | Anomaly


def is_open(status: str) -> bool:
    """Tell whether an order in this status can still change; an unknown status can."""
    return status not in TERMINAL


def is_known(status: str) -> bool:
    """Tell whether the status is one that Lune documents."""
    return status in STATUSES


def has_reached(status: str, goal: str) -> bool:
    """Tell whether a status is the goal or lies beyond it on the way to ``complete``."""
    if status in _FORWARD and goal in _FORWARD:
        return _FORWARD.index(status) >= _FORWARD.index(goal)
    return status == goal


def observe(recorded: str | None, served: str, at: datetime) -> Observation:
    """Judge a served status against the recorded one (None: an order not seen before).

    Unknown statuses have no place in the order of things: moves from and to them are moves,
    unless the order had already ended.
    """
    if recorded == served:
        return Unchanged(served)
    if recorded is None:
        return Moved(None, served, at)
    if not is_open(recorded):
        return Anomaly(recorded, served, AnomalyKind.AFTER_THE_END, at)
    if recorded in _FORWARD and served in _FORWARD[: _FORWARD.index(recorded)]:
        return Anomaly(recorded, served, AnomalyKind.BACKWARD, at)
    return Moved(recorded, served, at)
