"""Durations in the configuration: which texts are some, and how long they are."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from harvester.config.types import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("15m", 900),
        ("6h", 21_600),
        ("1h30m", 5_400),
        ("2d", 172_800),
        ("500ms", 0.5),
        ("1m500ms", 60.5),
        ("1.5h", 5_400),
        (" 90s ", 90),
        ("0h1s", 1),
        ("3660d", 3660 * 86_400),
    ],
)
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "value",
    [
        *("", " ", "15", "m", "15 m", "-15m", "+15m", "15M", "1h 30m", "1h30", "1,5h", "1e3s"),
        *(".5h", "1.h", "PT15M", "15min", "1w", "h1", "\u0661", "9" * 41 + "s"),
        *(15, 1.5, True, None, [], {}),
    ],
)
def test_what_is_no_duration_is_refused_with_the_rule(value: Any) -> None:
    with pytest.raises(ValueError, match="should be a duration such as 90s, 15m, 6h, 1h30m or 2d"):
        parse_duration(value)


@pytest.mark.parametrize("text", ["0s", "0h0m", "0.0ms", "3660d1s", "9" * 39 + "d"])
def test_a_duration_of_nothing_or_of_ages_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="longer than nothing and at most ten years"):
        parse_duration(text)


def test_a_duration_stays_what_it_is_when_written_back() -> None:
    assert parse_duration(timedelta(minutes=15)) == timedelta(minutes=15)
