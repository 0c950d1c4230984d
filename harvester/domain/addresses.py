"""Which addresses the API key may be sent to."""

from __future__ import annotations

import ipaddress
from typing import Final
from urllib.parse import urlsplit

_THIS_MACHINE: Final = "localhost"


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


def may_stand_for(name: str, address: str) -> bool:
    """Tell whether an address that a look-up gave for a host name may be connected to.

    ``localhost`` is this machine and nothing else. Any other name is a public address: who can
    change what a name resolves to must not reach this machine or its neighbours through us.
    """
    found = ipaddress.ip_address(address)
    found = getattr(found, "ipv4_mapped", None) or found
    if name == _THIS_MACHINE:
        return found.is_loopback
    return found.is_global and not found.is_multicast


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == _THIS_MACHINE
