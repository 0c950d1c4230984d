"""When an order has stayed in a status for longer than is believable."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from harvester.domain.lifecycle import PAID, PLACED, RECEIVED, RETIRING
from harvester.domain.schedule import StatusDuration

ENOUGH: Final = 20
"""Ended durations of a status from which its bound is learned."""

_ASSUMED: Final = {
    RECEIVED: timedelta(days=1),
    PLACED: timedelta(days=30),
    PAID: timedelta(days=30),
    RETIRING: timedelta(days=90),
}
_QUANTILE: Final = 0.95
_FACTOR: Final = 3
_SHORTEST: Final = timedelta(hours=1)


class Basis(StrEnum):
    """Where a bound comes from; ``assumed`` while nothing is configured and little was seen."""

    CONFIGURED = "configured"
    LEARNED = "learned"
    ASSUMED = "assumed"


@dataclass(frozen=True, slots=True)
class Bound:
    """How long an order may stay in a status, and where that comes from."""

    after: timedelta
    basis: Basis


@dataclass(frozen=True, slots=True)
class StuckOrder:
    """An order that stays in its status since ``since``, beyond the bound.

    ``document`` is the order as Lune last served it.
    """

    account_id: str
    order_id: str
    idempotency_key: str | None
    status: str
    since: datetime
    bound: Bound
    document: Mapping[str, Any] = field(repr=False)


def bounds(
    configured: Mapping[str, timedelta | None], durations: Iterable[StatusDuration]
) -> Mapping[str, Bound]:
    """Return the bound of every open status that Lune documents.

    The configured one; else three times what 95 of 100 orders did not exceed in that status, once
    twenty of them were seen from beginning to end; else one that comparable providers suggest.
    """
    seen: dict[str, list[float]] = {status: [] for status in _ASSUMED}
    for one in durations:
        if one.ended and one.status in seen:
            seen[one.status].append(one.seconds)
    return {
        status: _bound(configured.get(status), sorted(seen[status]), assumed)
        for status, assumed in _ASSUMED.items()
    }


def _bound(configured: timedelta | None, seconds: list[float], assumed: timedelta) -> Bound:
    if configured is not None:
        return Bound(configured, Basis.CONFIGURED)
    if len(seconds) < ENOUGH:
        return Bound(assumed, Basis.ASSUMED)
    usual = seconds[math.ceil(_QUANTILE * len(seconds)) - 1]
    return Bound(max(_FACTOR * timedelta(seconds=usual), _SHORTEST), Basis.LEARNED)
