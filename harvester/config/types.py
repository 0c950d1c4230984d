"""Durations as people write them."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
# Bounded, since a long row of digits would be searched again from each of them.
_DURATION_PART = re.compile(r"(\d{1,40}(?:\.\d{1,40})?)(ms|s|m|h|d)")
_LONGEST_TEXT = 40
_LONGEST_DURATION = timedelta(days=3660)


def parse_duration(value: object) -> timedelta:
    """Read ``90s``, ``15m``, ``1h30m``, ``2d``, ``500ms``; ValueError with the rule otherwise."""
    if isinstance(value, timedelta):
        return value
    text = value.strip() if isinstance(value, str) else ""
    parts = _DURATION_PART.findall(text[:_LONGEST_TEXT])
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError("should be a duration such as 90s, 15m, 6h, 1h30m or 2d")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not 0 < seconds <= _LONGEST_DURATION.total_seconds():
        raise ValueError("should be longer than nothing and at most ten years")
    return timedelta(seconds=seconds)


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]


def _parse_learned(value: object) -> timedelta | None:
    return None if value in {None, "learned"} else parse_duration(value)


LearnedDuration = Annotated[timedelta | None, BeforeValidator(_parse_learned)]
"""A duration, or None for ``learned``."""
