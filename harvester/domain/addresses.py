"""Which addresses the API key may be sent to."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def check_base_url(text: str) -> None:
    """Return when this may be Lune's address: https, or http on a loopback host.

    ValueError with the rule otherwise; the text, which might hold a password, is not quoted.
    """
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("should be a URL such as https://api.lune.co/v1") from None
    if not host or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("should be a URL of scheme, host, port and path only")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(host)):
        raise ValueError("should begin with https://; plain http is for a loopback host only")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
