from __future__ import annotations

import asyncio
import heapq
import itertools
import random

import pytest

from harvester.lune.rate_limiter import Priority, RateLimiter


class FakeTime:
    """A clock that moves only when told, and the sleeps that wait for it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sleeps = 0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.sleeps += 1
        woken = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + seconds, next(self._order), woken))
        await woken

    async def run(self, seconds: float) -> None:
        """Let this much time pass, waking each sleeper at its moment."""
        end = self.now + seconds
        await self._settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            when, _, woken = heapq.heappop(self._sleepers)
            self.now = when
            if not woken.done():
                woken.set_result(None)
                await self._settle()
        self.now = end
        await self._settle()

    async def _settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)


class Traffic:
    """Requests through a rate limiter: when each started, and when it was counted at the server."""

    def __init__(self, rate: float) -> None:
        self.time = FakeTime()
        self.rate_limiter = RateLimiter(rate, clock=self.time.clock, sleep=self.time.sleep)
        self.starts: list[tuple[str, float]] = []
        self.counted: list[float] = []

    async def request(
        self,
        name: str = "",
        out: float = 0.0,
        back: float = 0.0,
        priority: Priority = Priority.DUE,
    ) -> None:
        async with self.rate_limiter.turn(priority):
            self.starts.append((name, self.time.now - 1000.0))
            if out:
                await self.time.sleep(out)
            self.counted.append(self.time.now)
            if back:
                await self.time.sleep(back)

    def spawn(
        self,
        name: str = "",
        out: float = 0.0,
        back: float = 0.0,
        priority: Priority = Priority.DUE,
    ) -> asyncio.Task[None]:
        return asyncio.create_task(self.request(name, out, back, priority))

    @property
    def times(self) -> list[float]:
        return [at for _, at in self.starts]


def most_in_a_second(instants: list[float]) -> int:
    ordered = sorted(instants)
    return max(sum(1 for t in ordered[n:] if t - at < 1) for n, at in enumerate(ordered))


async def test_starts_are_evenly_spaced_and_in_the_order_they_came() -> None:
    traffic = Traffic(10)
    tasks = [traffic.spawn(str(n)) for n in range(10)]
    await traffic.time.run(2)
    await asyncio.gather(*tasks)
    assert [name for name, _ in traffic.starts] == [str(n) for n in range(10)]
    assert traffic.times == pytest.approx([n / 10 for n in range(10)], abs=0.0011)


@pytest.mark.parametrize("rate", [1, 3, 12, 15.7])
@pytest.mark.parametrize("seed", range(5))
async def test_no_second_at_the_server_holds_more_than_the_rate(rate: float, seed: int) -> None:
    dice = random.Random(seed)
    traffic = Traffic(rate)
    tasks = [
        traffic.spawn(out=dice.choice([0, 0.01, 0.9]), back=dice.choice([0, 0.01, 2.0]))
        for _ in range(60)
    ]
    await traffic.time.run(400)
    await asyncio.gather(*tasks)
    assert len(traffic.counted) == 60
    assert most_in_a_second(traffic.counted) <= rate


async def test_slots_that_come_back_at_odd_moments_cost_no_rate() -> None:
    dice = random.Random(1)
    ways = [dice.uniform(0.02, 0.2) for _ in range(600)]
    traffic = Traffic(10)
    tasks = [traffic.spawn(out=way / 2, back=way / 2) for way in ways]
    await traffic.time.run(90)
    await asyncio.gather(*tasks)
    assert traffic.times[-1] < 1.01 * (600 + sum(ways)) / 10
    assert most_in_a_second(traffic.counted) <= 10


async def test_a_slot_rests_a_second_after_the_answer() -> None:
    traffic = Traffic(2)
    tasks = [traffic.spawn(back=3) for _ in range(3)]
    await traffic.time.run(10)
    await asyncio.gather(*tasks)
    assert traffic.times[2] == pytest.approx(4, abs=0.01)


async def test_a_failed_request_gives_its_slot_back_just_as_late() -> None:
    traffic = Traffic(1)
    with pytest.raises(RuntimeError):
        async with traffic.rate_limiter.turn():
            raise RuntimeError
    task = traffic.spawn()
    await traffic.time.run(5)
    await task
    assert traffic.times[0] == pytest.approx(1)


async def test_below_one_a_second_a_slot_rests_for_the_whole_gap() -> None:
    traffic = Traffic(0.5)
    tasks = [traffic.spawn() for _ in range(3)]
    await traffic.time.run(10)
    await asyncio.gather(*tasks)
    assert traffic.times == pytest.approx([0, 2, 4], abs=0.01)


async def test_idle_time_earns_no_burst() -> None:
    traffic = Traffic(10)
    await traffic.request()
    await traffic.time.run(3600)
    tasks = [traffic.spawn() for _ in range(5)]
    await traffic.time.run(2)
    await asyncio.gather(*tasks)
    gaps = [b - a for a, b in itertools.pairwise(traffic.times[1:])]
    assert min(gaps) >= 0.1 - 0.0011


async def test_waiters_that_were_suspended_start_evenly_too() -> None:
    traffic = Traffic(10)
    tasks = [traffic.spawn() for _ in range(5)]
    await asyncio.sleep(0)
    traffic.time.now += 3600  # the process slept
    await traffic.time.run(2)
    await asyncio.gather(*tasks)
    gaps = [b - a for a, b in itertools.pairwise(traffic.times[1:])]
    assert min(gaps) >= 0.1 - 0.0011


async def test_a_pause_holds_everybody_and_is_never_shortened() -> None:
    traffic = Traffic(10)
    traffic.rate_limiter.pause(5)
    tasks = [traffic.spawn() for _ in range(2)]
    await traffic.time.run(4)
    traffic.rate_limiter.pause(10)
    traffic.rate_limiter.pause(1)
    await traffic.time.run(9.9)
    assert traffic.times == []
    await traffic.time.run(1)
    await asyncio.gather(*tasks)
    assert traffic.times == pytest.approx([14, 14 + 1 / 7.2], abs=0.01)
    assert traffic.rate_limiter.pauses == 3


async def test_a_pause_of_no_time_is_none() -> None:
    traffic = Traffic(10)
    traffic.rate_limiter.pause(0)
    traffic.rate_limiter.pause(-5)
    await traffic.request()
    assert traffic.times == [0]
    assert traffic.rate_limiter.pauses == 0


@pytest.mark.parametrize("cancelled", [1, 2])
async def test_a_cancelled_waiter_leaves_at_once_and_loses_no_slot(cancelled: int) -> None:
    traffic = Traffic(1)
    await traffic.request("first")
    tasks = {n: traffic.spawn(str(n)) for n in (1, 2, 3)}
    await traffic.time.run(0.5)
    tasks[cancelled].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks.pop(cancelled)
    await traffic.time.run(5)
    await asyncio.gather(*tasks.values())
    assert traffic.times == pytest.approx([0, 1, 2])
    assert [name for name, _ in traffic.starts] == ["first", *map(str, tasks)]


async def test_who_waits_for_a_slot_in_flight_starts_a_second_after_its_answer() -> None:
    traffic = Traffic(1)
    tasks = [traffic.spawn(back=7), traffic.spawn()]
    await traffic.time.run(7.5)
    assert len(traffic.starts) == 1
    await traffic.time.run(1)
    await asyncio.gather(*tasks)
    assert traffic.times[1] == pytest.approx(8)


async def test_gaps_below_a_millisecond_are_not_slept_one_by_one() -> None:
    traffic = Traffic(5000)
    tasks = [traffic.spawn() for _ in range(1000)]
    await traffic.time.run(1)
    await asyncio.gather(*tasks)
    assert traffic.times[-1] == pytest.approx(0.2, abs=0.01)
    assert traffic.time.sleeps <= 1000


async def test_requests_and_waiting_are_counted() -> None:
    traffic = Traffic(2)
    tasks = [traffic.spawn() for _ in range(3)]
    await traffic.time.run(5)
    await asyncio.gather(*tasks)
    assert traffic.rate_limiter.requests == 3
    assert traffic.rate_limiter.waited_seconds == pytest.approx(0.5 + 1.0, abs=0.01)


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        RateLimiter(rate)


async def test_each_class_gets_its_share_and_none_starves() -> None:
    traffic = Traffic(10)
    tasks = [
        traffic.spawn(priority.name, priority=priority)
        for priority in (Priority.BACKGROUND, Priority.DUE, Priority.WAITED_FOR)
        for _ in range(200)
    ]
    await traffic.time.run(13)
    shares = {one: sum(name == one.name for name, _ in traffic.starts) for one in Priority}
    assert shares == {
        Priority.WAITED_FOR: pytest.approx(80, abs=2),
        Priority.DUE: pytest.approx(40, abs=2),
        Priority.BACKGROUND: pytest.approx(10, abs=2),
    }
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_class_that_idled_has_saved_nothing_up() -> None:
    traffic = Traffic(10)
    busy = [traffic.spawn("due") for _ in range(60)]
    await traffic.time.run(4)
    late = [traffic.spawn("waited for", priority=Priority.WAITED_FOR) for _ in range(30)]
    await traffic.time.run(1.55)
    names = [name for name, at in traffic.starts if at > 4]
    assert 3 <= names.count("due") <= 6
    await traffic.time.run(20)
    await asyncio.gather(*busy, *late)


async def test_who_comes_urgently_waits_behind_few() -> None:
    traffic = Traffic(10)
    background = [traffic.spawn("page", priority=Priority.BACKGROUND) for _ in range(100)]
    await traffic.time.run(3)
    urgent = traffic.spawn("urgent", priority=Priority.WAITED_FOR)
    await traffic.time.run(0.25)
    assert urgent.done()
    await traffic.time.run(20)
    await asyncio.gather(*background)


async def test_after_a_pause_the_rate_is_lower_and_recovers() -> None:
    traffic = Traffic(10)
    traffic.rate_limiter.pause(2)
    traffic.rate_limiter.pause(2)  # the same 429, met by another request in flight
    assert traffic.rate_limiter.current_rate == pytest.approx(7)
    tasks = [traffic.spawn() for _ in range(20)]
    await traffic.time.run(5)
    await asyncio.gather(*tasks)
    gaps = [b - a for a, b in itertools.pairwise(traffic.times)]
    assert gaps[0] == pytest.approx(1 / 7, abs=0.002)
    await traffic.time.run(60)
    assert traffic.rate_limiter.current_rate == pytest.approx(8, abs=0.1)
    await traffic.time.run(600)
    assert traffic.rate_limiter.current_rate == 10


async def test_refused_again_and_again_the_rate_has_a_floor() -> None:
    traffic = Traffic(10)
    for _ in range(50):
        traffic.rate_limiter.pause(1)
        await traffic.time.run(1.1)
    assert 1 <= traffic.rate_limiter.current_rate < 1.1


async def test_a_request_cancelled_as_it_is_let_through_gives_its_slot_back() -> None:
    traffic = Traffic(1)
    await traffic.request()
    waiting = traffic.spawn("cancelled")
    await asyncio.sleep(0)
    traffic.time.now += 1.5
    usher = [task for task in asyncio.all_tasks() if task.get_name() == "rate-limiter"]
    assert len(usher) == 1
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    after = traffic.spawn("after")
    await traffic.time.run(5)
    await after
    assert [name for name, _ in traffic.starts] == ["", "after"]
