"""Lune's webhooks as they arrive: whether they are Lune's, and the events in them.

``Lune-HMAC: timestamp=T,organisation=ORG,v1=SIG[,v1=SIG...]``, where SIG is the HMAC-SHA256 of
``T.body`` under the webhook's secret (Lune's webhooks guide). The guide does not say whether in hex
or base64, so both are read; everything is compared as 32 bytes, in constant time. Of a genuine
body nothing is refused, since one that is not acknowledged holds back all behind it: what can be
read is, what cannot is kept beside it. Pure.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from harvester.domain.lune_events import LuneEvent
from harvester.domain.orders import is_identifier
from harvester.lune.parsing import PayloadError, is_line, load, settle

TOLERANCE: Final = 300
"""Seconds that a signature's timestamp may differ from our clock before it counts as stale."""

_MOST_SIGNATURES: Final = 8
_LONGEST_HEADER: Final = 4096
_TIMESTAMP: Final = re.compile(r"[0-9]{1,12}", re.ASCII)
_HEX: Final = re.compile(r"[0-9A-Fa-f]{64}", re.ASCII)
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]{43}=?", re.ASCII)

_LONGEST_TEXT: Final = 200
_LARGEST_UNREADABLE: Final = 16 * 1024


class NotGenuineError(ValueError):
    """A webhook that nobody who knows a secret of ours has signed; the text is a rule's name."""


@dataclass(frozen=True, slots=True)
class Signed:
    """What a genuine header says: when it was signed (Unix seconds), and by which organisation.

    ``organisation`` is None in the older form of the header, which names an account instead.
    """

    timestamp: int
    organisation: str | None

    def is_stale(self, now: float) -> bool:
        """Tell whether it was signed more than five minutes from now, before or after."""
        return abs(now - self.timestamp) > TOLERANCE


def verify(headers: Sequence[str], body: bytes, secrets: Iterable[str]) -> Signed:
    """Return what the header says when a secret signed this body; ``NotGenuineError`` if none did.

    ``headers`` are all the values that came of ``Lune-HMAC``: there has to be one. The timestamp
    is part of what is signed. Every secret is tried against every signature, whatever matches.
    """
    timestamp, organisation, signatures = _parse(headers)
    message = timestamp.encode() + b"." + body
    matches = False
    for secret in secrets:
        expected = hmac.new(secret.encode(), message, hashlib.sha256).digest()
        for signature in signatures:
            matches |= hmac.compare_digest(signature, expected)
    if not matches:
        raise NotGenuineError("no signature matches")
    return Signed(int(timestamp), organisation)


def _parse(headers: Sequence[str]) -> tuple[str, str | None, list[bytes]]:
    if len(headers) != 1:
        raise NotGenuineError("not one header")
    if len(headers[0]) > _LONGEST_HEADER or not headers[0].isascii():
        raise NotGenuineError("not a header of Lune's")
    fields: dict[str, list[str]] = {}
    for part in headers[0].split(","):
        # The first sign only: base64 may end in one.
        name, _, value = part.strip().partition("=")
        fields.setdefault(name, []).append(value)
    timestamps = fields.get("timestamp", [])
    if len(timestamps) != 1 or not _TIMESTAMP.fullmatch(timestamps[0]):
        raise NotGenuineError("not one timestamp")
    organisations = fields.get("organisation", [])
    if len(organisations) > 1:
        raise NotGenuineError("not one organisation")
    digests = map(_digest, fields.get("v1", [])[:_MOST_SIGNATURES])
    signatures = [digest for digest in digests if digest is not None]
    if not signatures:
        raise NotGenuineError("no signature")
    return timestamps[0], next(iter(organisations), None), signatures


def _digest(text: str) -> bytes | None:
    """Return the 32 bytes that hex or base64 stands for, None when it is neither."""
    if _HEX.fullmatch(text):
        return bytes.fromhex(text)
    if not _BASE64.fullmatch(text):
        return None
    padded = text.rstrip("=") + "="
    try:
        return base64.b64decode(padded.replace("-", "+").replace("_", "/"), validate=True)
    except binascii.Error:
        return None


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
