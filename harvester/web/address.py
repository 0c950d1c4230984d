"""Where the listener listens: a host and a port."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from harvester.domain.errors import ConfigurationError
from harvester.secret import Secret

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):(\d{1,5})")
_LARGEST_PORT = 65535


class Address(NamedTuple):
    """A host and a port, 0 for a free one."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address | None:
    """Read ``host:port``, None for an empty text; ValueError with the rule otherwise."""
    if not text:
        return None
    parts = _ADDRESS.fullmatch(text)
    if parts is None or int(parts[2]) > _LARGEST_PORT:
        raise ValueError('should be host:port such as 127.0.0.1:8080, or "" for no listener')
    return Address(parts[1].strip("[]"), int(parts[2]))


def check_token(address: Address | None, token: Secret | None) -> None:
    """Raise ``ConfigurationError`` for a token that cannot be read, or is missing where needed."""
    if address is None:
        return
    if token is not None:
        token.read()
    elif not address.is_loopback:
        raise ConfigurationError(
            f"http.listen {address} is reached from other machines, so a token is needed: put one "
            "into a file and name it as http.token_file, or listen on 127.0.0.1"
        )
