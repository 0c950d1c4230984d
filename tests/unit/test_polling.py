"""Which requests cover what is due, held against trying every possibility."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.domain.polling import PAGE_SIZE, Plan, plan_requests

sizes = st.integers(min_value=1, max_value=9)
near = st.lists(st.integers(min_value=0, max_value=60), max_size=30, unique=True)
far = st.lists(st.integers(min_value=0, max_value=10**7), max_size=50, unique=True)


def beyond(depths: list[int], pages: int, size: int) -> int:
    return sum(depth >= pages * size for depth in depths)


def plain_ways(depths: list[int], size: int) -> list[int]:
    """Return the requests of every mix of first pages and single orders, newest page included."""
    deepest = max(depths, default=0) // size + 1
    return [pages + beyond(depths, pages, size) for pages in range(1, deepest + 1)]


def shown(plan: Plan, newest: int, size: int) -> set[int]:
    """Return the positions that a plan's answers show."""
    positions = set(range(newest - plan.pages * size + 1, newest + 1)) | set(plan.singles)
    for shown_by_one in plan.ranges:
        positions |= set(range(shown_by_one[0] - size + 1, shown_by_one[0] + 1))
    return positions


def positions_of(depths: list[int], newest: int) -> list[int]:
    return [newest - depth for depth in depths]


@given(near, sizes, st.booleans(), st.booleans(), st.integers(-100, 100))
def test_every_due_order_is_shown(
    depths: list[int], size: int, read_newest: bool, by_cursor: bool, newest: int
) -> None:
    due = positions_of(depths, newest)
    plan = plan_requests(due, newest, read_newest=read_newest, by_cursor=by_cursor, page_size=size)
    assert set(due) <= shown(plan, newest, size)
    assert plan.pages >= int(read_newest)


@given(near, sizes)
def test_from_the_top_no_mix_of_pages_and_single_orders_is_cheaper(
    depths: list[int], size: int
) -> None:
    plan = plan_requests(positions_of(depths, 60), 60, by_cursor=False, page_size=size)
    assert plan.requests == min(plain_ways(depths, size))
    assert plan.ranges == ()


@given(near, sizes, st.booleans())
def test_by_cursor_no_plain_way_is_cheaper(depths: list[int], size: int, read_newest: bool) -> None:
    due = positions_of(depths, 60)
    plan = plan_requests(due, 60, read_newest=read_newest, page_size=size)
    assert plan.requests <= min(plain_ways(depths, size))
    without = plan_requests(due, 60, read_newest=read_newest, by_cursor=False, page_size=size)
    assert plan.requests <= without.requests


@given(far)
def test_no_two_page_ranges_could_be_one(depths: list[int]) -> None:
    plan = plan_requests(positions_of(depths, 10**7), 10**7)
    starts = sorted(positions[0] for positions in plan.ranges)
    starts += plan.singles
    ordered = sorted(starts)
    assert all(later - sooner >= PAGE_SIZE for sooner, later in pairwise(ordered))


@given(st.permutations([3, 0, 150, 151, 152, 420, 999]))
def test_the_order_in_which_positions_are_given_changes_nothing(positions: list[int]) -> None:
    assert plan_requests(positions, 1000) == Plan(1, ((152, 151, 150), (3, 0)), (420,))


@pytest.mark.parametrize(
    ("depths", "requests", "from_the_top"),
    [
        ([], 1, 1),
        ([0], 1, 1),
        ([99], 1, 1),
        ([100], 2, 2),
        ([100, 101], 2, 2),
        ([5000], 2, 2),
        ([5000, 5050, 5099], 2, 4),
        (list(range(1000)), 10, 10),
        (list(range(0, 100_000, 100)), 1000, 1000),
        ([*range(100, 200), 9000, 9001], 3, 4),
    ],
)
def test_plans_for_listings_one_meets(depths: list[int], requests: int, from_the_top: int) -> None:
    due = positions_of(depths, 10**6)
    assert plan_requests(due, 10**6).requests == requests
    assert plan_requests(due, 10**6, by_cursor=False).requests == from_the_top


def test_without_the_newest_page_nothing_due_asks_for_nothing() -> None:
    assert plan_requests([], 7, read_newest=False) == Plan(0, (), ())


def test_nothing_is_above_the_newest_order_so_its_page_is_the_newest() -> None:
    assert plan_requests([9, 8], 9, read_newest=False) == Plan(1, (), ())
    assert plan_requests([9], 9, read_newest=False) == Plan(0, (), (9,))
