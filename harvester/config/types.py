"""Types of settings: durations as people write them, and where to listen."""

from __future__ import annotations

import ipaddress
import re
from datetime import timedelta
from typing import Annotated, NamedTuple

from pydantic import BeforeValidator

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
# Bounded, since a long row of digits would be searched again from each of them.
_DURATION_PART = re.compile(r"(\d{1,40}(?:\.\d{1,40})?)(ms|s|m|h|d)")
_LONGEST_TEXT = 40
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):(\d{1,5})")
_LARGEST_PORT = 65535
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


class Address(NamedTuple):
    """A host and a port, 0 for a free one."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address | None:
    """Read ``host:port``, None for an empty text; ValueError with the rule otherwise."""
    if not text:
        return None
    parts = _ADDRESS.fullmatch(text)
    if parts is None or int(parts[2]) > _LARGEST_PORT:
        raise ValueError('should be host:port such as 127.0.0.1:8080, or "" for no listener')
    return Address(parts[1].strip("[]"), int(parts[2]))
