"""Instants: aware datetimes, UTC, to the microsecond; how they are written and read."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)

_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


def rfc3339(at: datetime) -> str:
    """Write an aware instant as RFC 3339 in UTC, such as ``2026-01-31T12:00:00.5Z``."""
    utc = at if at.tzinfo is UTC else at.astimezone(UTC)
    # Without its zone first: to write the offset and cut it off again takes twice as long.
    return utc.replace(tzinfo=None).isoformat() + "Z"


def parse_instant(text: str, *, end: bool = False) -> datetime:
    """Read a date or a date and time as an operator writes it; one without a zone is UTC.

    With ``end`` a plain date means through the end of that day: the next midnight is returned.
    ValueError with the rule otherwise.
    """
    try:
        at = datetime.fromisoformat(text)
        at = at.replace(tzinfo=at.tzinfo or UTC).astimezone(UTC)
        return at + timedelta(days=1) if end and _DATE.fullmatch(text) else at
    except (ValueError, OverflowError):
        raise ValueError("write 2026-01-31 or 2026-01-31T12:00:00Z") from None
