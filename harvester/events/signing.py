"""Secrets of the form that Standard Webhooks gives them: ``whsec_`` and base64."""

from __future__ import annotations

import base64
import binascii
import secrets
from typing import Final

from standardwebhooks import Webhook

from harvester.config.secrets import Secret
from harvester.domain.errors import ConfigurationError

_PREFIX: Final = "whsec_"
_SHORTEST: Final = 24
_LONGEST: Final = 64


def make_secret() -> str:
    """Return a new secret of 32 random bytes."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def read_signer(secret: Secret) -> Webhook:
    """Return what signs with a secret, read now; ``ConfigurationError`` when it is none.

    24 to 64 bytes (Standard Webhooks, on signature schemes).
    """
    text = secret.read()
    try:
        key = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not text.startswith(_PREFIX) or not _SHORTEST <= len(key) <= _LONGEST:
        raise ConfigurationError(
            f"{secret.name}: should be whsec_ and base64 of {_SHORTEST} to {_LONGEST} bytes; "
            "`harvester events secret` makes one"
        )
    return Webhook(text)
