"""The daemon's local socket beside the ledger: where it is, and how a command asks over it.

With the standard library's client: to import aiohttp would be most of what a short command costs.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from harvester.domain import errors
from harvester.domain.errors import HarvesterError, LedgerUnavailable, LuneError

_LARGEST_ANSWER = 64 * 2**20


def socket_path(ledger: Path) -> Path:
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


class NoDaemonError(Exception):
    """No daemon listens."""


class SocketConnection(HTTPConnection):
    """HTTP over the local socket of the daemon that holds a ledger; ``timeout`` is in seconds.

    Connecting raises :class:`NoDaemonError`.
    """

    def __init__(self, ledger: Path, timeout: float) -> None:
        super().__init__("daemon", timeout=timeout)
        self._path = socket_path(ledger)

    def connect(self) -> None:
        """Connect to the socket, if anybody listens there."""
        if not self._path.is_socket():
            raise NoDaemonError
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        with reachable(self._path) as name:
            try:
                self.sock.connect(name)
            except (ConnectionRefusedError, FileNotFoundError):
                raise NoDaemonError from None  # left behind by a daemon that was killed


def ask_daemon(ledger: Path, method: str, path: str, body: object, *, timeout: float) -> Any:
    """Ask the daemon that holds a ledger; return its answer's JSON.

    Raises :class:`NoDaemonError` when none listens, what the daemon raised as it was there, and
    ``LedgerUnavailable`` when its answer does not come or makes no sense.
    """
    text = None if body is None else json.dumps(body).encode()
    headers = {} if text is None else {"Content-Type": "application/json"}
    try:
        with closing(SocketConnection(ledger, timeout)) as connection:
            connection.request(method, path, text, headers)
            answer = connection.getresponse()
            result = json.loads(answer.read(_LARGEST_ANSWER))
    except TimeoutError:
        raise LedgerUnavailable(f"the daemon has not answered within {timeout:g} s") from None
    except (OSError, HTTPException, ValueError) as error:
        raise LedgerUnavailable(
            f"the daemon did not answer ({type(error).__name__}); try again"
        ) from error
    if answer.status >= 400:
        raise _as_error(result)
    return result


def error_members(error: HarvesterError) -> dict[str, Any]:
    """Return what an answer has to hold so that :func:`ask_daemon` raises the same error."""
    # The nearest class of the tree: a narrower one is known to its own module only.
    kinds = type(error).__mro__
    name = next(kind.__name__ for kind in kinds if kind.__module__ == errors.__name__)
    if not isinstance(error, LuneError):
        return {"error": name}
    request = {
        "message": error.message,
        "method": error.method,
        "path": error.path,
        "status": error.status,
        "code": error.code,
        "cf_ray": error.cf_ray,
    }
    return {"error": name, "request": request}


def _as_error(result: Any) -> HarvesterError:
    members = result if isinstance(result, dict) else {}
    kind = getattr(errors, str(members.get("error")), None)
    detail = members.get("detail") or members.get("title") or "the daemon gave no reason"
    if not (isinstance(kind, type) and issubclass(kind, HarvesterError)):
        return LedgerUnavailable(f"the daemon could not do it: {detail}")
    if issubclass(kind, errors.LuneError):
        return kind(**members["request"])
    return kind(detail)
