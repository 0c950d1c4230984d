"""Which requests cover what is due: pages of an account's listing, single orders, or both."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

PAGE_SIZE = 100
"""Orders a page holds at most (the schema's ``limit``)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Read ``pages`` from the newest on, then ask for what they did not show one by one."""

    pages: int
    requests: int


def plan_account(ranks: Sequence[int], page_size: int = PAGE_SIZE) -> Plan:
    """Choose the cheapest mix of first pages and single requests for the due orders.

    ``ranks`` are the due orders' places in the listing, the newest order being 0. The newest
    page is always read, since new orders appear there. Of equally cheap plans the one with
    fewer pages wins: a single order is the smaller answer.
    """
    places = sorted(ranks)
    best = Plan(1, 1 + _beyond(places, page_size))
    for pages in sorted({place // page_size + 1 for place in places}):
        requests = pages + _beyond(places, pages * page_size)
        if requests < best.requests:
            best = Plan(pages, requests)
    return best


def _beyond(places: Sequence[int], depth: int) -> int:
    return len(places) - bisect_left(places, depth)
