"""When to check next: the operator's bounds hold for every rule, whatever the clock says."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.domain.lifecycle import PAID, STATUSES
from harvester.domain.orders import CertificateState
from harvester.domain.schedule import (
    REQUEST_COST,
    WEIGHTS,
    Schedule,
    StatusDuration,
    next_attempt_after_fault,
    next_attempt_when_absent,
    state_while_missing,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECOND, MINUTE, HOUR, DAY = (
    timedelta(**{unit: 1}) for unit in ("seconds", "minutes", "hours", "days")
)
USUAL = Schedule(sweep_interval=15 * MINUTE, longest_interval=6 * HOUR)

intervals = st.timedeltas(min_value=timedelta(milliseconds=1), max_value=3660 * DAY)
schedules = st.tuples(intervals, intervals).map(lambda pair: Schedule(min(pair), max(pair)))
stillnesses = st.timedeltas(min_value=timedelta(0), max_value=10_000 * DAY)
attempts = st.integers(min_value=0, max_value=10**9)


def next_check(schedule: Schedule, *still_for: timedelta, status: str = PAID) -> datetime:
    """Return when to check again orders that one request shows."""
    return schedule.next_check(NOW, [schedule.chance(status, one) for one in still_for])


@pytest.mark.parametrize(
    ("still_for", "minutes"),
    [(timedelta(0), 15), (HOUR, 15), (10 * DAY, 31), (100 * DAY, 98), (1000 * DAY, 310)],
)
def test_a_lone_order_is_left_for_longer_the_longer_it_was_still(
    still_for: timedelta, minutes: int
) -> None:
    assert round((next_check(USUAL, still_for) - NOW) / MINUTE) == minutes


def test_a_page_of_orders_is_checked_the_more_often_the_more_delay_it_hides() -> None:
    alone = next_check(USUAL, 400 * DAY) - NOW
    four = next_check(USUAL, *[400 * DAY] * 4) - NOW
    assert alone / four == pytest.approx(2)


def test_the_delay_hidden_until_a_check_is_what_a_request_costs() -> None:
    chances = [USUAL.chance(PAID, age * DAY) for age in (30, 60, 90)]
    wait = (USUAL.next_check(NOW, chances) - NOW).total_seconds()
    assert sum(chances) * wait**2 / 2 == pytest.approx(USUAL.request_cost, rel=1e-3)


def test_an_answer_without_open_orders_asks_for_nothing_sooner_than_the_longest_interval() -> None:
    assert USUAL.next_check(NOW, []) == NOW + 6 * HOUR


@given(schedules, st.lists(stillnesses, max_size=100))
def test_no_check_is_sooner_or_later_than_the_operator_allows(
    schedule: Schedule, still_for: list[timedelta]
) -> None:
    wait = next_check(schedule, *still_for) - NOW
    assert schedule.sweep_interval <= wait <= schedule.longest_interval


@given(schedules, stillnesses, stillnesses)
def test_an_order_that_is_still_for_longer_is_not_checked_sooner(
    schedule: Schedule, one: timedelta, other: timedelta
) -> None:
    shorter, longer = sorted((one, other))
    assert next_check(schedule, shorter) <= next_check(schedule, longer)


def test_a_change_dated_in_the_future_counts_as_a_change_just_now() -> None:
    assert next_check(USUAL, -300 * DAY) == NOW + 15 * MINUTE


@given(schedules)
def test_the_newest_page_is_due_again_after_one_interval(schedule: Schedule) -> None:
    assert schedule.next_sweep(NOW) == NOW + schedule.sweep_interval


@pytest.mark.parametrize(
    ("sweep", "longest", "rarer"),
    [(15 * MINUTE, 6 * HOUR, HOUR), (2 * HOUR, 6 * HOUR, 6 * HOUR), (6 * HOUR, 6 * HOUR, 6 * HOUR)],
)
def test_where_webhooks_work_sweeps_are_four_times_rarer_within_the_longest_interval(
    sweep: timedelta, longest: timedelta, rarer: timedelta
) -> None:
    schedule = Schedule(sweep, longest)
    assert schedule.next_sweep(NOW) == NOW + sweep
    assert schedule.next_sweep(NOW, webhooks_work=True) == NOW + rarer
    assert schedule.next_sweep(NOW, webhooks_work=True) <= schedule.horizon(NOW)


@given(schedules)
def test_after_a_fault_the_next_try_is_within_five_minutes(schedule: Schedule) -> None:
    wait = schedule.next_sweep_after_fault(NOW) - NOW
    assert timedelta(0) < wait <= min(5 * MINUTE, schedule.sweep_interval)


@given(schedules)
def test_a_parked_account_is_tried_no_sooner_than_a_healthy_one_and_within_the_hour(
    schedule: Schedule,
) -> None:
    wait = schedule.next_sweep_of_parked(NOW) - NOW
    assert schedule.sweep_interval <= wait <= max(schedule.sweep_interval, HOUR)


@given(schedules, stillnesses, attempts)
def test_no_rule_sets_a_date_beyond_the_horizon(
    schedule: Schedule, still_for: timedelta, tries: int
) -> None:
    dates = {
        "check": next_check(schedule, still_for),
        "sweep": schedule.next_sweep(NOW),
        "after fault": schedule.next_sweep_after_fault(NOW),
        "parked": schedule.next_sweep_of_parked(NOW),
        "confirmation": schedule.next_confirmation(NOW),
        "not yet": next_attempt_when_absent(NOW, tries),
        "certificate fault": next_attempt_after_fault(NOW, tries),
    }
    horizon = schedule.horizon(NOW)
    assert {rule for rule, date in dates.items() if not NOW < date <= horizon} == set()


def test_waits_for_a_missing_certificate_double_from_ten_seconds_to_an_hour() -> None:
    waits = [(next_attempt_when_absent(NOW, tries) - NOW) / SECOND for tries in range(11)]
    assert waits == [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600]


def test_waits_after_a_fault_double_from_a_minute_to_six_hours() -> None:
    waits = [(next_attempt_after_fault(NOW, tries) - NOW) / MINUTE for tries in range(11)]
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 360, 360]


@pytest.mark.parametrize("rule", [next_attempt_when_absent, next_attempt_after_fault])
def test_waits_neither_shrink_nor_overflow_however_often_was_tried(
    rule: Callable[[datetime, int], datetime],
) -> None:
    dates = [rule(NOW, tries) for tries in (-1, 0, 1, 5, 9, 10, 20, 21, 64, 1025, 10**6, 10**30)]
    assert all(sooner <= later for sooner, later in pairwise(dates))


@pytest.mark.parametrize(
    ("missing_for", "state"),
    [
        (-DAY, CertificateState.OWED),  # the clock was set back
        (timedelta(0), CertificateState.OWED),
        (72 * HOUR, CertificateState.OWED),
        (72 * HOUR + SECOND, CertificateState.FAILED),
        (365 * DAY, CertificateState.FAILED),
    ],
)
def test_a_certificate_is_late_for_72_hours_before_it_counts_as_failed(
    missing_for: timedelta, state: CertificateState
) -> None:
    assert state_while_missing(NOW, NOW - missing_for) is state


def test_a_certificate_is_owed_at_complete_and_only_on_request_while_retiring() -> None:
    eager = Schedule(USUAL.sweep_interval, USUAL.longest_interval, interim=True)
    statuses = (*STATUSES, "unheard of")
    assert {one for one in statuses if USUAL.owes_certificate(one)} == {"complete"}
    assert {one for one in statuses if eager.owes_certificate(one)} == {"complete", "retiring"}


def durations_of(weight: float, count: int, seed: int = 1) -> list[StatusDuration]:
    """Return durations whose chance to end is weight / stillness, cut off after a year."""
    dice = random.Random(seed)
    found = []
    for _ in range(count):
        seconds = 60 * (1 - dice.random()) ** (-1 / weight)
        year = 365 * 86_400.0
        found.append(StatusDuration(PAID, min(seconds, year), ended=seconds < year))
    return found


def learned(durations: Iterable[StatusDuration], former: Schedule = USUAL) -> Mapping[str, float]:
    return USUAL.learned_from(durations, former).weights


@pytest.mark.parametrize("weight", [0.2, 0.5, 1.5])
def test_weights_are_learned_from_how_long_statuses_lasted(weight: float) -> None:
    assert learned(durations_of(weight, 4000))[PAID] == pytest.approx(weight, rel=0.08)


def test_few_durations_change_little_and_none_change_nothing() -> None:
    assert learned([]) == pytest.approx(WEIGHTS)
    assert learned([], replace(USUAL, weights={PAID: 3.0})) == pytest.approx({PAID: 3.0})
    assert learned(durations_of(5.0, 2))[PAID] == pytest.approx(WEIGHTS[PAID], rel=0.2)


def test_a_status_nobody_knows_teaches_nothing() -> None:
    assert learned([StatusDuration("odd", 5.0, ended=True)] * 1000) == pytest.approx(WEIGHTS)


@given(st.floats(1, 1e6), st.integers(0, 10**6), st.floats(0, 1e6), st.floats(0.01, 1e4))
def test_requests_cost_more_only_while_the_budget_is_exceeded(
    cost: float, requests: int, seconds: float, budget: float
) -> None:
    schedule = replace(USUAL, request_cost=cost, request_budget=budget)
    now = schedule.within_budget(requests, seconds).request_cost
    exceeded = requests / max(seconds, 1.0) > budget
    assert now > cost if exceeded else REQUEST_COST <= now <= cost


def test_twice_the_budget_makes_a_request_cost_four_times_as_much() -> None:
    schedule = replace(USUAL, request_cost=10.0, request_budget=10.0)
    assert schedule.within_budget(1200, 60.0).request_cost == pytest.approx(40.0)
