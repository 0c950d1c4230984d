"""Which requests cover what is due: first pages, page ranges, single orders.

A listing is newest first, so new orders never come between old ones: an order's *position*,
counted upwards from the oldest, stays what it is. A page that starts just above an order shows it
and the 99 below it in one request. Whether a server takes an order's id as the cursor that starts
such a page is not promised (two pages of Lune's documents differ), so every plan can do without.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

PAGE_SIZE: Final = 100
"""Orders a page holds at most, the largest ``limit`` (Lune's schema)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Read ``pages`` from the newest on, then each page range, then what is left one by one.

    A range is the positions of the due orders that the page starting at the first of them shows,
    the newest first. ``singles`` are positions too.
    """

    pages: int
    ranges: tuple[tuple[int, ...], ...]
    singles: tuple[int, ...]

    @property
    def requests(self) -> int:
        """How many requests the plan takes."""
        return self.pages + len(self.ranges) + len(self.singles)


def plan_requests(
    positions: Sequence[int],
    newest: int,
    *,
    read_newest: bool = True,
    by_cursor: bool = True,
    page_size: int = PAGE_SIZE,
) -> Plan:
    """Choose the fewest requests that show an account's due orders at ``positions``.

    ``newest`` is the position of the newest order. With ``read_newest`` the newest page is read
    whatever is due, since new orders appear there. Without ``by_cursor`` a page can only be
    reached through the pages above it.
    """
    due = sorted(positions, reverse=True)
    depths = [newest - position for position in due]
    if not by_cursor:
        return _from_the_top(due, depths, read_newest, page_size)
    # Pages that start at due orders, from the newest down, are the fewest that cover them all;
    # the newest page starts where it starts.
    pages = int(read_newest)
    covered = bisect_left(depths, page_size) if read_newest else 0
    ranges, singles = [], []
    while covered < len(due):
        end = bisect_left(depths, depths[covered] + page_size)
        shown = due[covered:end]
        if len(shown) == 1:
            singles += shown
        elif depths[covered] == 0:
            pages = 1  # nothing is above the newest order: its page is the newest
        else:
            ranges.append(tuple(shown))
        covered = end
    return Plan(pages, tuple(ranges), tuple(singles))


def _from_the_top(
    due: Sequence[int], depths: Sequence[int], read_newest: bool, page_size: int
) -> Plan:
    """Choose the cheapest mix of first pages and single orders; of equal ones the fewest pages."""
    least = int(read_newest)
    best = (least + len(due) - bisect_left(depths, least * page_size), least)
    for pages in sorted({depth // page_size + 1 for depth in depths} - {0}):
        if pages > least:
            best = min(best, (pages + len(due) - bisect_left(depths, pages * page_size), pages))
    pages = best[1]
    return Plan(pages, (), tuple(due[bisect_left(depths, pages * page_size) :]))
