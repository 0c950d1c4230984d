"""Which connections there are: to addresses the key may go to, and clean ones only."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.tracing import Trace

from harvester.domain.urls import may_stand_for

T = TypeVar("T")

Lookup = Callable[..., list[Any]]
"""What ``socket.getaddrinfo`` takes and returns."""


class AddressRefused(OSError):
    """A name resolved to nothing but addresses the key must not go to."""


class GuardedResolver(AbstractResolver):
    """Look names up beside the loop; leave out every address the key must not go to.

    A literal address in ``base_url`` does not come here: that is the operator's own choice.
    """

    def __init__(self, lookup: Lookup = socket.getaddrinfo) -> None:
        self._lookup = lookup

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the host's addresses; ``OSError`` when there are none, or none that may be."""
        work = partial(
            self._lookup,
            host,
            port,
            family=family,
            type=socket.SOCK_STREAM,
            flags=socket.AI_ADDRCONFIG,
        )
        found = await _in_own_thread(work)
        results = [
            ResolveResult(
                hostname=host,
                host=address[0],
                port=address[1],
                family=family,
                proto=proto,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for family, _, proto, _, address in found
            if may_stand_for(host, address[0])
        ]
        if not results:
            raise AddressRefused
        return results

    async def close(self) -> None:
        """Do nothing: a look-up under way is left to itself."""


async def _in_own_thread(work: Callable[[], T]) -> T:
    """Run a blocking look-up in a thread that nobody waits for at the end.

    The loop's own threads are joined before the program ends, and a name service that does not
    answer holds its thread for half a minute.
    """
    result: Future[T] = Future()
    result.set_running_or_notify_cancel()  # from here on only the thread may settle it

    def run() -> None:
        try:
            result.set_result(work())
        except OSError as error:
            result.set_exception(error)
        except UnicodeError:
            result.set_exception(socket.gaierror(socket.EAI_NONAME, "not a host name"))

    threading.Thread(target=run, name="lookup", daemon=True).start()
    return await asyncio.wrap_future(result)


class CleanConnector(aiohttp.TCPConnector):
    """Hand out no idle connection on which something has arrived since.

    Such bytes would be taken for the answer to the next request: one order would be filed with
    another's certificate.
    """

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's signature
    ) -> aiohttp.connector.Connection:
        """Return a connection, new or idle and silent."""
        while True:
            connection = await super().connect(req, traces, timeout)
            if connection.protocol is None or not connection.protocol.should_close:
                return connection
            connection.close()
