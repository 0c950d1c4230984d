"""What a connection that failed is called, in words that hold nothing the server wrote."""

from __future__ import annotations

import errno
import socket
import ssl
from typing import Final

import aiohttp

from harvester.domain.errors import LuneError, UnexpectedAnswer, Unreachable
from harvester.lune.connector import AddressRefused

_ABOUT_DATES: Final = frozenset({9, 10})  # OpenSSL: not yet valid, has expired


class TooSlow(TimeoutError):
    """A body comes in, but not at a speed worth waiting for."""


def describe(error: BaseException) -> tuple[type[LuneError], str]:
    """Return the class and a short word for a failure of the connection."""
    words: tuple[tuple[type[BaseException], str], ...] = (
        (aiohttp.ClientConnectorDNSError, "dns"),
        (aiohttp.ClientConnectorCertificateError, "tls: certificate refused"),
        (aiohttp.ClientSSLError, "tls"),
        (ssl.SSLError, "tls"),
        (aiohttp.ConnectionTimeoutError, "timeout: no connection in time"),
        (aiohttp.SocketTimeoutError, "timeout: no bytes in time"),
        (TooSlow, "timeout: too few bytes in time"),
        (TimeoutError, "timeout: not whole in time"),
        (aiohttp.ClientConnectorError, "connect"),
        (aiohttp.ClientPayloadError, "truncated: the body was cut short"),
        (aiohttp.ServerDisconnectedError, "disconnected before an answer"),
        (OSError, "disconnected"),
    )
    for kind, word in words:
        if isinstance(error, kind):
            detail = _detail(error)
            return Unreachable, f"{word}: {detail}" if detail else word
    return UnexpectedAnswer, "protocol: not an HTTP answer"


def _detail(error: BaseException) -> str | None:
    """Say what the system or OpenSSL calls a failure; nothing that the server wrote."""
    cause = error
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        cause = error.certificate_error
    elif isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
    if isinstance(cause, AddressRefused):
        return "the name stands for an address that is not public"
    if isinstance(cause, ssl.SSLCertVerificationError):
        hint = "; is the clock right?" if cause.verify_code in _ABOUT_DATES else ""
        return cause.verify_message + hint
    if isinstance(cause, ssl.SSLError):
        return cause.reason
    if isinstance(cause, socket.gaierror):
        return cause.strerror
    number = getattr(cause, "errno", None)
    if number is None and isinstance(cause, ConnectionResetError):
        return "the handshake was cut"  # asyncio's own: the system's would have a number
    return errno.errorcode.get(number) if isinstance(number, int) else None
