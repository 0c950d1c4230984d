"""Events: made where a fact is recorded, and the shape in which they leave us.

An event says what happened to what, in ids, statuses, versions and digests; nothing personal and
no metadata of an order is ever in one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from harvester.domain.instants import rfc3339
from harvester.domain.lifecycle import Moved
from harvester.domain.orders import Order

MEDIA_TYPE: Final = "application/cloudevents+json"
"""Of one event in structured JSON (CloudEvents 1.0, JSON event format)."""

CERTIFICATE_PATH: Final = "HARVESTER_CERTIFICATE_PATH"

_VARIABLES: Final = {
    "HARVESTER_ORDER_ID": "order_id",
    "HARVESTER_ACCOUNT_ID": "account_id",
    "HARVESTER_IDEMPOTENCY_KEY": "idempotency_key",
    "HARVESTER_STATUS": "status",
    "HARVESTER_PREVIOUS_STATUS": "previous_status",
    "HARVESTER_CERTIFICATE_VERSION": "version",
    "HARVESTER_CERTIFICATE_KIND": "kind",
    "HARVESTER_CERTIFICATE_SHA256": "sha256",
    "HARVESTER_CERTIFICATE_SIZE": "size",
    "HARVESTER_REASON": "reason",
}
EVENT_VARIABLES: Final = frozenset(
    {
        *_VARIABLES,
        "HARVESTER_EVENT_ID",
        "HARVESTER_EVENT_TYPE",
        "HARVESTER_EVENT_SEQUENCE",
        "HARVESTER_EVENT_TIME",
        CERTIFICATE_PATH,
    }
)
"""What a hook finds in its environment; none is a setting, should it run the harvester."""


class EventType(StrEnum):
    """What can happen. ``superseded``: a later version of a final certificate was stored."""

    STATUS_CHANGED = "order.status_changed"
    ORDER_STUCK = "order.stuck"
    CERTIFICATE_STORED = "certificate.stored"
    CERTIFICATE_SUPERSEDED = "certificate.superseded"
    CERTIFICATE_FAILED = "certificate.failed"
    ACCOUNT_PARKED = "account.parked"


@dataclass(frozen=True, slots=True)
class NewEvent:
    """Something that happened, on its way into the ledger with the fact that it is about."""

    type: EventType
    account_id: str
    order_id: str | None
    at: datetime
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Event:
    """A recorded event. ``seq`` rises with every event, ``id`` is its own for ever."""

    seq: int
    id: str
    type: str
    account_id: str
    order_id: str | None
    at: datetime
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events somebody wants; None means any."""

    types: frozenset[str] | None = None
    accounts: frozenset[str] | None = None

    def wants(self, event: Event | NewEvent) -> bool:
        """Tell whether an event is one of them."""
        return (self.types is None or event.type in self.types) and (
            self.accounts is None or event.account_id in self.accounts
        )


def status_changed(account_id: str, order: Order, move: Moved) -> NewEvent:
    """Return the event of one transition; ``previous_status`` is null for an order's first."""
    return NewEvent(
        EventType.STATUS_CHANGED,
        account_id,
        order.id,
        move.at,
        {
            "idempotency_key": order.idempotency_key,
            "status": move.after,
            "previous_status": move.before,
        },
    )


def cloud_event(event: Event) -> dict[str, Any]:
    """Return an event in the shape that leaves us: CloudEvents 1.0.

    ``sequence`` is the specification's extension of that name: as text, zeros before it, so that
    comparing texts compares numbers.
    """
    shape: dict[str, Any] = {
        "specversion": "1.0",
        "id": event.id,
        "source": f"/lune/accounts/{event.account_id}",
        "type": event.type,
        "time": rfc3339(event.at),
        "sequence": f"{event.seq:020d}",
        "datacontenttype": "application/json",
    }
    ids = {"account_id": event.account_id}
    if event.order_id is not None:
        shape["subject"] = event.order_id
        ids["order_id"] = event.order_id
    return shape | {"data": ids | dict(event.data)}


def event_text(event: Event) -> str:
    """Return the event as JSON in ASCII: the same bytes every time, so a signature can be made."""
    return json.dumps(cloud_event(event), separators=(",", ":"))


def event_variables(event: Event) -> dict[str, Any]:
    """Return the environment of a hook for this event; what the event does not have is None."""
    shape = cloud_event(event)
    return {
        "HARVESTER_EVENT_ID": event.id,
        "HARVESTER_EVENT_TYPE": event.type,
        "HARVESTER_EVENT_SEQUENCE": event.seq,
        "HARVESTER_EVENT_TIME": shape["time"],
    } | {name: shape["data"].get(member) for name, member in _VARIABLES.items()}
