"""The body of a webhook to events: what can be read is, what cannot is kept beside it.

Nothing here refuses a genuine webhook: one that is not acknowledged holds back all behind it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from harvester.domain.lune_events import LuneEvent
from harvester.domain.orders import is_identifier
from harvester.lune.payload import PayloadError, is_line, load, settle

_LONGEST_TEXT: Final = 200
_LARGEST_UNREADABLE: Final = 16 * 1024


def read_events(body: bytes) -> Sequence[LuneEvent]:
    """Return the events of a webhook's body; one unreadable event for a body that is none."""
    try:
        request = load(body)
    except PayloadError as error:
        return [_unreadable(body, str(error))]
    events = request.get("events") if isinstance(request, dict) else None
    if not isinstance(events, list):
        return [_unreadable(body, "no list of events")]
    return [_event(one) for one in events]


def _event(served: object) -> LuneEvent:
    try:
        return _read(settle(served))
    except PayloadError as error:
        return _unreadable(_as_json(_bare(served)), str(error))


def _read(served: object) -> LuneEvent:
    if not isinstance(served, dict):
        raise PayloadError("not an object")
    event_type = _line(served, "event_type")
    account_id = served.get("account_id")
    if account_id is not None and not _is_id(account_id):
        raise PayloadError("account_id: not an id")
    data = served.get("data")
    if not isinstance(data, dict):
        raise PayloadError("data: not an object")
    return LuneEvent(
        reference=_line(served, "event_id"),
        document=_as_json(_bare(served)),
        type=event_type,
        api_version=_line(served, "api_version"),
        sequence=_line(served, "sequence"),
        account_id=account_id,
        order_id=_order_of(event_type, data),
    )


def _line(served: Mapping[str, Any], name: str) -> str:
    text = served.get(name)
    if not isinstance(text, str) or not is_line(text, _LONGEST_TEXT):
        raise PayloadError(f"{name}: not printable text of 1 to {_LONGEST_TEXT} characters")
    return text


def _order_of(event_type: str, data: Mapping[str, Any]) -> str | None:
    """Return the id of the order that an event is about; None for kinds that are not known.

    An event of an order that does not name it in a way that can be used is unreadable.
    """
    kind = event_type.partition(".")[0]
    thing = data.get(kind)
    if kind not in {"order", "allocation"}:
        return None
    order_id = (
        thing.get("id" if kind == "order" else "order_id") if isinstance(thing, dict) else None
    )
    if not _is_id(order_id):
        raise PayloadError("data: names no order")
    return str(order_id)


def _is_id(value: object) -> bool:
    return isinstance(value, str) and is_identifier(value)


def _bare(served: object) -> object:
    """Return an event without the e-mail address of its order, as far as it has that shape."""
    data = served.get("data") if isinstance(served, dict) else None
    if not isinstance(served, dict) or not isinstance(data, dict):
        return served
    bare = {
        name: {key: item for key, item in value.items() if key != "email"}
        if isinstance(value, dict)
        else value
        for name, value in data.items()
    }
    return {**served, "data": bare}


def _unreadable(served: bytes, problem: str) -> LuneEvent:
    return LuneEvent(
        reference=f"sha256:{hashlib.sha256(served).hexdigest()}",
        document=served[:_LARGEST_UNREADABLE],
        problem=problem,
    )


def _as_json(value: object) -> bytes:
    try:
        return json.dumps(value, default=str, separators=(",", ":")).encode()
    except RecursionError:
        return b'"nested too deep"'
