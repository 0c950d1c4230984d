"""How many requests a day following costs, and how late a change is noticed: a simulation.

It drives the program's own planner and schedule (``harvester.domain``) over a generated history:
orders of one account whose statuses last from minutes to months, with a long tail. Beside them
stand the plain ways, and the floor: a hundred open orders a request and none wasted.

    python -m tests.bench economy
"""

from __future__ import annotations

import heapq
import math
import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from harvester.domain.lifecycle import COMPLETE, PAID, PLACED, RECEIVED, RETIRING
from harvester.domain.polling import PAGE_SIZE, plan_requests
from harvester.domain.schedule import Schedule

DAY = 86_400.0
_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)

DURATIONS = {
    RECEIVED: (120.0, 1.0),
    PLACED: (1 * DAY, 1.5),
    PAID: (10 * DAY, 1.2),
    RETIRING: (15 * DAY, 1.0),
}
"""Median and spread (sigma of the logarithm) of the seconds spent in a status."""


@dataclass(slots=True)
class Life:
    """One order: when it entered each status; ``known`` is the last one seen, ``due`` the check."""

    entered: list[float]
    known: int = 0
    changed_at: float = 0.0
    due: float = math.inf

    def status(self, at: float) -> int:
        """Return how far it is at an instant, as an index into the statuses."""
        return bisect_right(self.entered, at) - 1


STATUSES = (*DURATIONS, COMPLETE)


@dataclass(slots=True)
class Result:
    """What one way cost: requests, and the delays of the changes it noticed, in seconds."""

    days: float
    requests: int = 0
    delays: list[float] = field(default_factory=list)
    longest_unseen: float = 0.0

    def per_day(self) -> float:
        """Return the requests a day."""
        return self.requests / self.days

    def quantile(self, share: float) -> float:
        """Return a quantile of the delays, in minutes."""
        ordered = sorted(self.delays)
        return ordered[int(share * (len(ordered) - 1))] / 60 if ordered else math.nan


class History:
    """Orders created at random, oldest first; about ``open_orders`` of them open at any time."""

    def __init__(self, open_orders: int, days: float, seed: int = 1) -> None:
        rng = random.Random(seed)
        mean = sum(median * math.exp(sigma**2 / 2) for median, sigma in DURATIONS.values())
        self.days = days
        self.lives: list[Life] = []
        at = -4 * 365 * DAY
        while at < days * DAY:
            at += rng.expovariate(open_orders / mean)
            entered = [at]
            for median, sigma in DURATIONS.values():
                entered.append(entered[-1] + rng.lognormvariate(math.log(median), sigma))
            self.lives.append(Life(entered))
        self.created = [life.entered[0] for life in self.lives]

    def open_at(self, at: float) -> list[int]:
        """Return the positions of the open orders, oldest first."""
        end = bisect_right(self.created, at)
        return [position for position in range(end) if self.lives[position].entered[-1] > at]

    def changes(self) -> Iterator[float]:
        """Yield the instants at which known orders change while it is measured."""
        for life in self.lives:
            yield from (at for at in life.entered[1:] if 0 < at < self.days * DAY)


class Follower:
    """The harvest as the simulation needs it: planner and schedule, no ledger and no network."""

    def __init__(self, history: History, schedule: Schedule, *, by_cursor: bool) -> None:
        self._history = history
        self._schedule = schedule
        self._by_cursor = by_cursor
        self._heap: list[tuple[float, int]] = []
        self.result = Result(history.days)

    def run(self, tick: float = 60.0) -> Result:
        """Follow for the history's days, a round of checks each ``tick`` seconds."""
        newest = bisect_right(self._history.created, 0.0) - 1
        for life in self._history.lives[: newest + 1]:
            life.known = life.status(0.0)
            # Known for long: as a harvester knows them that was there all the time.
            life.changed_at = life.entered[life.known]
        for group in _pages(self._history.open_at(0.0)):
            self._reschedule(group, 0.0, spread=True)
        interval = self._schedule.sweep_interval.total_seconds()
        next_sweep, now = 0.0, 0.0
        while now < self._history.days * DAY:
            now += tick
            read_newest = now >= next_sweep
            if read_newest:
                next_sweep = now + interval
            before = self.result.requests
            newest = self._round(now, newest, read_newest=read_newest)
            spent = self.result.requests - before
            self._schedule = self._schedule.within_budget(spent, tick)
        return self.result

    def _round(self, now: float, newest: int, *, read_newest: bool) -> int:
        lives = self._history.lives
        due = []
        while self._heap and self._heap[0][0] <= now:
            at, position = heapq.heappop(self._heap)
            if lives[position].due == at:
                due.append(position)
        plan = plan_requests(due, newest, read_newest=read_newest, by_cursor=self._by_cursor)
        self.result.requests += plan.requests
        latest = bisect_right(self._history.created, now) - 1
        top = latest if plan.pages else newest
        for page in range(plan.pages):
            self._see(range(latest - page * PAGE_SIZE, latest - (page + 1) * PAGE_SIZE, -1), now)
        for positions in plan.ranges:
            self._see(range(positions[0], positions[0] - PAGE_SIZE, -1), now)
        for position in plan.singles:
            self._see(range(position, position - 1, -1), now)
        # New orders beyond the newest page: read on until a page brings nothing new.
        missed = range(latest - plan.pages * PAGE_SIZE, newest, -1) if plan.pages else range(0)
        for start in range(0, len(missed), PAGE_SIZE):
            self.result.requests += 1
            self._see(missed[start : start + PAGE_SIZE], now)
        return top

    def _see(self, positions: Sequence[int], now: float) -> None:
        seen = []
        for position in positions:
            if position < 0:
                break
            life = self._history.lives[position]
            if life.known == len(STATUSES) - 1:
                continue
            status = life.status(now)
            for passed in range(life.known + 1, status + 1):
                self.result.delays.append(now - life.entered[passed])
            if status != life.known or life.changed_at == 0.0:
                life.changed_at = now
            life.known = status
            if status < len(STATUSES) - 1:
                seen.append(position)
            else:
                life.due = math.inf
        self._reschedule(seen, now)

    def _reschedule(self, positions: Sequence[int], now: float, *, spread: bool = False) -> None:
        lives = self._history.lives
        chances = [
            self._schedule.chance(
                STATUSES[lives[position].known],
                timedelta(seconds=now - lives[position].changed_at),
            )
            for position in positions
        ]
        wait = (self._schedule.next_check(_EPOCH, chances) - _EPOCH).total_seconds()
        due = now + (wait * random.Random(positions[0]).random() if spread and positions else wait)
        for position in positions:
            lives[position].due = due
            heapq.heappush(self._heap, (due, position))
        self.result.longest_unseen = max(self.result.longest_unseen, wait if positions else 0.0)


def _pages(positions: Sequence[int]) -> Iterator[list[int]]:
    group: list[int] = []
    for position in reversed(positions):
        if group and group[0] - position >= PAGE_SIZE:
            yield group
            group = []
        group.append(position)
    if group:
        yield group


def plain_ways(history: History, every: float) -> dict[str, Result]:
    """Return what the plain ways cost, each checking every open order every so many seconds."""
    names = ("GET each", "pages to the oldest open", "cheapest mix", "floor")
    ways = {name: Result(history.days) for name in names}
    rounds = int(history.days * DAY / every)
    step = max(1, rounds // 24)  # the open orders change slowly: hourly is exact enough
    for number in range(0, rounds, step):
        at = number * every
        positions = history.open_at(at)
        newest = bisect_right(history.created, at) - 1
        depth = newest - positions[0] if positions else 0
        costs = (
            1 + len(positions),
            depth // PAGE_SIZE + 1,
            plan_requests(positions, newest, by_cursor=False).requests,
            max(1, math.ceil(len(positions) / PAGE_SIZE)),
        )
        for name, cost in zip(names, costs, strict=True):
            ways[name].requests += cost * min(step, rounds - number)
    delays = [every - at % every for at in history.changes()]
    for result in ways.values():
        result.delays = delays
    return ways


def economy(open_orders: int, days: float, every: float = 300.0) -> dict[str, Result]:
    """Return requests and delays of each way, for so many open orders over so many days."""
    schedule = Schedule(timedelta(seconds=every), timedelta(hours=6), request_budget=_BUDGET)
    found = plain_ways(History(open_orders, days), every)
    for name, by_cursor in (("harvester", True), ("harvester, no cursor", False)):
        history = History(open_orders, days)
        found[name] = Follower(history, schedule, by_cursor=by_cursor).run()
    return found


_BUDGET = 6.0
"""Requests a second for checks: half of the default rate, as the program has it."""

_DAYS = {100: 10.0, 1_000: 4.0, 10_000: 1.0, 100_000: 0.25}


def measure(*, small: bool) -> list[dict[str, object]]:
    """Return a row a way and number of open orders."""
    rows: list[dict[str, object]] = []
    for open_orders, days in _DAYS.items():
        if small and open_orders > 100:
            break
        for way, result in economy(open_orders, min(days, 0.5) if small else days).items():
            rows.append(
                {
                    "open orders": open_orders,
                    "way": way,
                    "requests/day": round(result.per_day()),
                    "delay p50 min": round(result.quantile(0.5), 1),
                    "delay p95 min": round(result.quantile(0.95), 1),
                    "changes": len(result.delays),
                }
            )
    return rows
