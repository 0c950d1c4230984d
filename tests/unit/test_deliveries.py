"""When an undelivered event is sent again: soon, then rarely, never given up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from harvester.domain.deliveries import HORIZON, next_attempt, pause_until

NOW = datetime(2026, 3, 1, tzinfo=UTC)
SECOND, MINUTE, HOUR, DAY = (
    timedelta(**{unit: 1}) for unit in ("seconds", "minutes", "hours", "days")
)
EVEN = 0.5
jitters = st.floats(0, 1)


def test_attempts_are_seconds_apart_then_hours_then_a_day() -> None:
    waits = [next_attempt(NOW, attempts, EVEN) - NOW for attempts in range(1, 40)]
    assert waits == sorted(waits)
    assert waits[:4] == [5 * SECOND, 10 * SECOND, 20 * SECOND, 40 * SECOND]
    assert waits[-1] == DAY
    rising = [wait for wait in waits if wait < DAY]
    assert max(rising) == 6 * HOUR
    assert 2.5 * DAY < sum(rising, timedelta(0)) < 3.5 * DAY


@given(st.integers(1, 10_000), jitters)
def test_no_attempt_is_beyond_the_horizon_or_at_once(attempts: int, jitter: float) -> None:
    assert NOW + 3 * SECOND < next_attempt(NOW, attempts, jitter) < NOW + HORIZON


@given(st.integers(1, 10_000))
def test_jitter_spreads_an_attempt_by_a_quarter_each_way(attempts: int) -> None:
    early, even, late = (next_attempt(NOW, attempts, jitter) - NOW for jitter in (0, EVEN, 1))
    assert abs(early - 0.75 * even) < SECOND
    assert abs(late - 1.25 * even) < SECOND


def test_a_dead_receiver_is_left_alone_longer_and_longer_up_to_a_quarter_of_an_hour() -> None:
    pauses = [pause_until(NOW, count, EVEN) - NOW for count in range(1, 2000)]
    assert all(later >= sooner for sooner, later in pairwise(pauses))
    assert (pauses[0], pauses[-1]) == (5 * SECOND, 15 * MINUTE)
