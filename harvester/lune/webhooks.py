"""Whether a webhook is Lune's: the ``Lune-HMAC`` header against the body as it came.

``Lune-HMAC: timestamp=T,organisation=ORG,v1=SIG[,v1=SIG...]``, where SIG is the HMAC-SHA256 of
``T.body`` under the webhook's secret (Lune's webhooks guide). The guide does not say whether in hex
or base64, so both are read. Pure; everything is compared as 32 bytes, in constant time.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

TOLERANCE: Final = 300
"""Seconds that a signature's timestamp may differ from our clock before it counts as stale."""

_MOST_SIGNATURES: Final = 8
_LONGEST_HEADER: Final = 4096
_TIMESTAMP: Final = re.compile(r"[0-9]{1,12}", re.ASCII)
_HEX: Final = re.compile(r"[0-9A-Fa-f]{64}", re.ASCII)
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]{43}=?", re.ASCII)


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
