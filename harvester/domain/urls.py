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
    if name == _THIS_MACHINE:
        return _address(address).is_loopback
    return is_public(address)


def is_public(address: str) -> bool:
    """Tell whether an address is one of the whole internet, not of this machine or network."""
    found = _address(address)
    return found.is_global and not found.is_multicast


def check_receiver_url(text: str, *, allow_private: bool) -> None:
    """Return when events may be sent to this URL; ValueError with the rule otherwise.

    https to a name or a public address; anything of http too where private addresses are allowed.
    The text, which might hold a password, is not quoted.
    """
    rule = "should be a URL such as https://billing.example.com/events"
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError(rule) from None
    if parts.scheme not in {"http", "https"} or not host or "@" in parts.netloc or parts.fragment:
        raise ValueError(rule)
    if allow_private:
        return
    if parts.scheme != "https":
        raise ValueError("should begin with https://; http needs allow_private = true")
    address = literal_address(text)
    if host == _THIS_MACHINE or (address is not None and not is_public(address)):
        raise ValueError("is on this machine or a private network; allow_private = true allows it")


def literal_address(url: str) -> str | None:
    """Return the address that stands in a URL itself; None where a name stands."""
    host = urlsplit(url).hostname or ""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return None


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    found = ipaddress.ip_address(text)
    return getattr(found, "ipv4_mapped", None) or found


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == _THIS_MACHINE
