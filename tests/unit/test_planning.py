"""Which requests cover what is due, held against trying every possibility."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.domain.planning import PAGE_SIZE, Plan, plan_account

sizes = st.integers(min_value=1, max_value=9)
places = st.lists(st.integers(min_value=0, max_value=60), max_size=30, unique=True)
far_places = st.lists(st.integers(min_value=0, max_value=10**7), max_size=50, unique=True)


def beyond(ranks: list[int], pages: int, size: int) -> int:
    return sum(rank >= pages * size for rank in ranks)


def every_plan(ranks: list[int], size: int) -> list[Plan]:
    """All plans worth thinking of: from the newest page alone to all pages down to the oldest."""
    deepest = max(ranks, default=0) // size + 1
    return [Plan(pages, pages + beyond(ranks, pages, size)) for pages in range(1, deepest + 1)]


@given(places, sizes)
def test_no_plan_needs_fewer_requests_and_of_equal_ones_it_has_the_fewest_pages(
    ranks: list[int], size: int
) -> None:
    cheapest = min(every_plan(ranks, size), key=lambda plan: (plan.requests, plan.pages))
    assert plan_account(ranks, size) == cheapest


@given(places, sizes)
def test_a_plan_counts_the_requests_it_really_needs(ranks: list[int], size: int) -> None:
    plan = plan_account(ranks, size)
    assert plan.requests == plan.pages + beyond(ranks, plan.pages, size)


@given(far_places)
def test_a_plan_is_never_dearer_than_single_requests_or_pages_to_the_oldest(
    ranks: list[int],
) -> None:
    plan = plan_account(ranks)
    one_by_one = 1 + beyond(ranks, 1, PAGE_SIZE)  # the newest page is read anyway
    all_pages = max(ranks, default=0) // PAGE_SIZE + 1
    assert plan.requests <= min(one_by_one, all_pages)


@given(far_places)
def test_the_newest_page_is_always_read(ranks: list[int]) -> None:
    assert plan_account(ranks).pages >= 1


@given(st.permutations([3, 0, 150, 151, 152, 420, 999]))
def test_the_order_in_which_places_are_given_changes_nothing(ranks: list[int]) -> None:
    assert plan_account(ranks) == Plan(pages=2, requests=4)


@pytest.mark.parametrize(
    ("ranks", "plan"),
    [
        ([], Plan(1, 1)),
        ([0], Plan(1, 1)),
        ([99], Plan(1, 1)),
        ([100], Plan(1, 2)),
        ([100, 101], Plan(2, 2)),
        ([5000], Plan(1, 2)),
        (list(range(1000)), Plan(10, 10)),
        (list(range(0, 100_000, 100)), Plan(1, 1000)),
        ([*range(100, 200), 9000, 9001], Plan(2, 4)),
    ],
)
def test_plans_for_listings_one_meets(ranks: list[int], plan: Plan) -> None:
    assert plan_account(ranks) == plan
