"""When an order changes its status.

Lune's order guide draws ``received -> placed -> paid -> retiring -> complete``, with the ends
``cancelled`` (from received or placed) and ``failed`` (from received). No duration is
documented; the medians here are those of comparable providers: minutes, days, days, weeks.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from dataclasses import dataclass

RECEIVED = "received"
PLACED = "placed"
PAID = "paid"
RETIRING = "retiring"
COMPLETE = "complete"
CANCELLED = "cancelled"
FAILED = "failed"

STATUSES = (RECEIVED, PLACED, PAID, RETIRING, COMPLETE, CANCELLED, FAILED)

MINUTE = 60.0
DAY = 86_400.0

_COMPLETES = (RECEIVED, PLACED, PAID, RETIRING, COMPLETE)
_EARLY_ENDS = (
    (0.015, (RECEIVED, FAILED)),
    (0.010, (RECEIVED, CANCELLED)),
    (0.030, (RECEIVED, PLACED, CANCELLED)),
)
_MEDIAN = {RECEIVED: 5 * MINUTE, PLACED: 2 * DAY, PAID: 6 * DAY, RETIRING: 21 * DAY}
_SPREAD = 0.6
_MEAN_AGE_OF_ENDED = 60 * DAY


@dataclass(frozen=True, slots=True)
class Life:
    """The statuses of one order and the simulated instants at which they begin."""

    path: tuple[str, ...]
    starts: tuple[float, ...]

    def stage(self, now: float) -> tuple[str, float]:
        """Return the status at ``now`` and the instant it began."""
        at = self.index(now)
        return self.path[at], self.starts[at]

    def previous(self, now: float) -> str | None:
        """Return the status before the one at ``now``; None for the first."""
        at = self.index(now)
        return self.path[at - 1] if at else None

    def held(self, now: float) -> Life:
        """Return a life that was this one until ``now`` and never changes again."""
        lived = self.index(now) + 1
        return Life(self.path[:lived], self.starts[:lived])

    def turned(self, status: str, now: float) -> Life:
        """Return a life that was this one until ``now``, and keeps ``status`` from then on."""
        lived = self.held(now)
        return Life((*lived.path, status), (*lived.starts, now))

    def index(self, now: float) -> int:
        """Return the place in ``path`` of the status at ``now``."""
        return max(bisect_right(self.starts, now) - 1, 0)


def draw_life(rng: random.Random, created_at: float) -> Life:
    """Draw the life of an order that is received at ``created_at``."""
    return _dated(rng, _draw_path(rng), created_at)


def draw_life_in(rng: random.Random, status: str, now: float) -> Life:
    """Draw the life of an order that is somewhere within ``status`` at ``now``."""
    life = _dated(rng, _draw_path_through(rng, status), 0.0)
    at = life.path.index(status)
    began = life.starts[at]
    ended = at + 1 == len(life.path)
    stay = rng.expovariate(1 / _MEAN_AGE_OF_ENDED) if ended else life.starts[at + 1] - began
    age = began + stay * rng.uniform(0.05, 0.95)
    return _shifted(life, now - age)


def life_from(rng: random.Random, status: str, now: float) -> Life:
    """Draw the life of an order that enters ``status`` exactly at ``now``."""
    life = _dated(rng, _draw_path_through(rng, status), 0.0)
    return _shifted(life, now - life.starts[life.path.index(status)])


def _draw_path(rng: random.Random) -> tuple[str, ...]:
    draw = rng.random()
    for share, path in _EARLY_ENDS:
        draw -= share
        if draw < 0:
            return path
    return _COMPLETES


def _draw_path_through(rng: random.Random, status: str) -> tuple[str, ...]:
    if status in _COMPLETES:
        return _COMPLETES
    ends = [(share, path) for share, path in _EARLY_ENDS if path[-1] == status]
    return rng.choices([path for _, path in ends], [share for share, _ in ends])[0]


def _dated(rng: random.Random, path: tuple[str, ...], start: float) -> Life:
    starts = [start]
    for status in path[:-1]:
        starts.append(starts[-1] + rng.lognormvariate(math.log(_MEDIAN[status]), _SPREAD))
    return Life(path, tuple(starts))


def _shifted(life: Life, by: float) -> Life:
    return Life(life.path, tuple(start + by for start in life.starts))
