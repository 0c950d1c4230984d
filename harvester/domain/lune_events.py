"""Lune's webhooks: what an event says, what it makes us do, and a webhook as it is set up.

An event is a hint and no more: it says which order to ask for. What it claims about the order is
only kept to know when Lune's API has caught up with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from harvester.domain.lifecycle import has_reached, is_open

STATUS_OF_EVENT: Final = {
    "order.received": "received",
    "order.placed": "placed",
    "order.paid": "paid",
    "order.retiring": "retiring",
    "order.completed": "complete",
    "order.cancelled": "cancelled",
    "order.failed": "failed",
}
"""The status that an event of this type says the order has (Lune's schema)."""

WEBHOOK_PATH: Final = "/webhooks/lune"
"""Where the listener takes Lune's webhooks."""

TRUSTED_FOR: Final = timedelta(days=1)
"""How long webhooks count as working after one came."""

KEPT_FOR: Final = timedelta(days=90)
"""How long an event is known again when it comes once more."""

_FIRST: Final = timedelta(seconds=2)
_LONGEST: Final = timedelta(minutes=10)
_GIVEN_UP_AFTER: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class LuneEvent:
    """One event as it came, or what came in the place of one.

    ``reference`` identifies it: the event's own id, or a digest where it has none that can be
    used. ``problem`` says why it could not be read, without quoting it; then only ``reference``
    and ``document`` mean something. ``document`` is the served object without the end user's
    e-mail address, as JSON.
    """

    reference: str
    document: bytes = field(repr=False)
    type: str = ""
    api_version: str = ""
    sequence: str = ""
    account_id: str | None = None
    order_id: str | None = None
    problem: str | None = None

    @property
    def status(self) -> str | None:
        """The status that it says the order has; None when it says none that is known here."""
        return STATUS_OF_EVENT.get(self.type) if self.api_version == "v1" else None


@dataclass(frozen=True, slots=True)
class LuneWebhook:
    """A genuine request of Lune's with its events, as it was received.

    ``is_stale``: it was signed too long ago, or too far ahead, to be anything but a hint.
    """

    signed_at: datetime
    received_at: datetime
    is_stale: bool
    events: Sequence[LuneEvent]


@dataclass(frozen=True, slots=True)
class Hint:
    """That an order should be asked for: since when, and the status it should have, if any."""

    order_id: str
    hinted_at: datetime
    status: str | None


def is_answered(hint: Hint, served: str) -> bool:
    """Tell whether Lune's API says by now what the webhook said, or something later."""
    return hint.status is None or not is_open(served) or has_reached(served, hint.status)


def next_check_of_hint(hint: Hint, now: datetime) -> datetime | None:
    """Return when to ask again while the API lags behind the webhook; None to leave it there.

    Each wait is as long as all before it: 2 s, doubling, to ten minutes, for an hour.
    """
    age = now - hint.hinted_at
    if not timedelta(0) <= age < _GIVEN_UP_AFTER:
        return None
    return now + min(max(age, _FIRST), _LONGEST)


@dataclass(frozen=True, slots=True)
class Subscription:
    """A webhook as it is set up at Lune.

    ``secret`` is the whole secret right after it was made or rotated and its last four characters
    otherwise (Lune's schema). ``account_ids`` is empty when it is not narrowed to some.
    """

    id: str
    url: str
    enabled: bool
    mode: str
    created_at: datetime
    account_ids: tuple[str, ...]
    secret: str = field(repr=False)
