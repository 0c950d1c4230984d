"""When to look next: the operator's bounds hold for every rule, whatever the clock says."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.domain.cadence import (
    Cadence,
    next_try_after_fault,
    next_try_not_yet,
    state_while_missing,
)
from harvester.domain.lifecycle import STATUSES
from harvester.domain.orders import CertificateState

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECOND, MINUTE, HOUR, DAY = (
    timedelta(**{unit: 1}) for unit in ("seconds", "minutes", "hours", "days")
)
USUAL = Cadence(sweep_interval=15 * MINUTE, longest_interval=6 * HOUR)

intervals = st.timedeltas(min_value=timedelta(milliseconds=1), max_value=3660 * DAY)
cadences = st.tuples(intervals, intervals).map(lambda pair: Cadence(min(pair), max(pair)))
stillnesses = st.timedeltas(min_value=timedelta(0), max_value=10_000 * DAY)
attempts = st.integers(min_value=0, max_value=10**9)


@pytest.mark.parametrize(
    ("still_for", "wait"),
    [
        (timedelta(0), 15 * MINUTE),
        (HOUR, 15 * MINUTE),
        (150 * MINUTE, 15 * MINUTE),
        (5 * HOUR, 30 * MINUTE),
        (20 * HOUR, 2 * HOUR),
        (60 * HOUR, 6 * HOUR),
        (400 * DAY, 6 * HOUR),
    ],
)
def test_an_order_is_left_for_a_tenth_of_its_stillness_within_the_bounds(
    still_for: timedelta, wait: timedelta
) -> None:
    assert USUAL.next_look(NOW, NOW - still_for) == NOW + wait


@given(cadences, stillnesses)
def test_no_look_is_sooner_or_later_than_the_operator_allows(
    cadence: Cadence, still_for: timedelta
) -> None:
    wait = cadence.next_look(NOW, NOW - still_for) - NOW
    assert cadence.sweep_interval <= wait <= cadence.longest_interval


@given(cadences, stillnesses, stillnesses)
def test_an_order_that_is_still_for_longer_is_not_looked_at_sooner(
    cadence: Cadence, one: timedelta, other: timedelta
) -> None:
    shorter, longer = sorted((one, other))
    assert cadence.next_look(NOW, NOW - shorter) <= cadence.next_look(NOW, NOW - longer)


def test_a_change_dated_in_the_future_counts_as_a_change_just_now() -> None:
    assert USUAL.next_look(NOW, NOW + 300 * DAY) == NOW + 15 * MINUTE


@given(cadences)
def test_the_newest_page_is_due_again_after_one_interval(cadence: Cadence) -> None:
    assert cadence.next_sweep(NOW) == NOW + cadence.sweep_interval


@given(cadences)
def test_after_a_fault_the_next_try_is_within_five_minutes(cadence: Cadence) -> None:
    wait = cadence.next_sweep_after_fault(NOW) - NOW
    assert timedelta(0) < wait <= min(5 * MINUTE, cadence.sweep_interval)


@given(cadences)
def test_a_parked_account_is_tried_no_sooner_than_a_healthy_one_and_within_the_hour(
    cadence: Cadence,
) -> None:
    wait = cadence.next_try_of_parked(NOW) - NOW
    assert cadence.sweep_interval <= wait <= max(cadence.sweep_interval, HOUR)


@given(cadences, stillnesses, attempts)
def test_no_rule_sets_a_date_beyond_the_horizon(
    cadence: Cadence, still_for: timedelta, tries: int
) -> None:
    dates = {
        "look": cadence.next_look(NOW, NOW - still_for),
        "sweep": cadence.next_sweep(NOW),
        "after fault": cadence.next_sweep_after_fault(NOW),
        "parked": cadence.next_try_of_parked(NOW),
        "confirmation": cadence.next_confirmation(NOW),
        "not yet": next_try_not_yet(NOW, tries),
        "certificate fault": next_try_after_fault(NOW, tries),
    }
    horizon = cadence.horizon(NOW)
    assert {rule for rule, date in dates.items() if not NOW < date <= horizon} == set()


def test_waits_for_a_missing_certificate_double_from_ten_seconds_to_an_hour() -> None:
    waits = [(next_try_not_yet(NOW, tries) - NOW) / SECOND for tries in range(11)]
    assert waits == [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600]


def test_waits_after_a_fault_double_from_a_minute_to_six_hours() -> None:
    waits = [(next_try_after_fault(NOW, tries) - NOW) / MINUTE for tries in range(11)]
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 360, 360]


@pytest.mark.parametrize("rule", [next_try_not_yet, next_try_after_fault])
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
    eager = Cadence(USUAL.sweep_interval, USUAL.longest_interval, interim=True)
    statuses = (*STATUSES, "unheard of")
    assert {one for one in statuses if USUAL.owes_certificate(one)} == {"complete"}
    assert {one for one in statuses if eager.owes_certificate(one)} == {"complete", "retiring"}
