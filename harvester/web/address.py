"""Where the daemon is reached: the listener's host and port, and the socket beside the ledger."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from harvester.config.secrets import Secret
from harvester.domain.errors import ConfigurationError

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


def control_path(ledger: Path) -> Path:
    """Return the socket's path, beside the ledger."""
    return ledger.with_name(ledger.name + ".socket")


@contextmanager
def reachable(path: Path) -> Iterator[str]:
    """Give a name for a socket that is short enough for the kernel's 107 bytes."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
