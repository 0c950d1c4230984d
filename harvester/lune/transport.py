"""One request and its answer over aiohttp, with a deadline, a cap and nothing done unasked.

aiohttp would follow redirects, keep cookies, unpack compressed bodies, read proxies from the
environment, send a GET a second time by itself and reuse a connection on which unasked bytes have
arrived. None of that happens here.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import SimpleNamespace
from typing import Final

import aiohttp
from yarl import URL

from harvester.domain.errors import LuneError, Unreachable
from harvester.lune.connector import CleanConnector, GuardedResolver, Lookup
from harvester.lune.failures import TooSlow, describe
from harvester.lune.responses import Answer, AnswerTooLarge, Redact, printable_token
from harvester.lune.retry import StaleConnection

_ERROR_CAP: Final = 65_536  # bytes of an answer that is an error anyway


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long a request may take, in seconds, and how slow its answer may be.

    ``connect`` is for the connection, look-up and TLS included; ``read`` for the head of the answer
    and for each silence after it; ``total`` and ``certificate_total`` for everything. A body of
    which less than ``floor`` bytes a second come over ``floor_window`` seconds is given up.
    """

    connect: float = 10.0
    read: float = 20.0
    total: float = 60.0
    certificate_total: float = 120.0
    floor: float = 1024.0
    floor_window: float = 30.0


class Exchange:
    """The one HTTP session; an asynchronous context manager.

    ``headers`` go with every request, ``redact`` hides the key in what is served, ``connections``
    is how many may be open at once, ``tls`` replaces the system's trust and ``lookup`` its name
    service.
    """

    def __init__(
        self,
        headers: Mapping[str, str],
        *,
        redact: Redact,
        deadlines: Deadlines,
        connections: int,
        tls: ssl.SSLContext | None,
        lookup: Lookup = socket.getaddrinfo,
    ) -> None:
        self._headers = headers
        self._redact = redact
        self._deadlines = deadlines
        self._connections = connections
        self._tls = tls
        self._lookup = lookup
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> None:
        reuse = aiohttp.TraceConfig()
        reuse.on_connection_reuseconn.append(_note_reuse)
        self._session = aiohttp.ClientSession(
            headers={"Accept-Encoding": "identity", **self._headers},
            connector=CleanConnector(
                limit=self._connections,
                ssl=self._tls or True,
                resolver=GuardedResolver(self._lookup),
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            trace_configs=[reuse],
            middlewares=(_never_sent_twice,),
        )

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def send(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        *,
        body: bytes | None = None,
        total: float,
        cap: int,
    ) -> Answer:
        """Return the answer, whatever its status; the body of a 200 is whole and within ``cap``.

        ``body`` is JSON. ``total`` is in seconds, ``cap`` in bytes. Raises ``Unreachable``,
        ``UnexpectedAnswer`` for what is not HTTP and ``AnswerTooLarge``.
        """
        if self._session is None:
            raise RuntimeError("the client is used outside of its async with block")
        timeout = aiohttp.ClientTimeout(
            total=total, connect=self._deadlines.connect, sock_read=self._deadlines.read
        )
        connection = SimpleNamespace(reused=False)
        try:
            async with self._session.request(
                method,
                url,
                headers=headers,
                data=body,
                timeout=timeout,
                allow_redirects=False,
                trace_request_ctx=connection,
            ) as response:
                return await _read(response, cap, self._redact, self._deadlines)
        except _NoAnswerError as failure:
            kind: type[LuneError] = StaleConnection if connection.reused else Unreachable
            word = describe(failure.reason)[1]
        except (aiohttp.ClientError, OSError) as error:
            kind, word = describe(error)
        # Outside of the handlers: what aiohttp raises can hold headers, and the key is one.
        raise kind(word, method=method, path=url.raw_path)


async def _read(
    response: aiohttp.ClientResponse, cap: int, redact: Redact, deadlines: Deadlines
) -> Answer:
    path = response.url.raw_path
    headers = response.headers
    body = bytearray()
    good = response.status == 200
    cap = cap if good else _ERROR_CAP
    over = (response.content_length or 0) > cap
    floor = _Floor(deadlines)
    try:
        if not over:
            async for chunk in response.content.iter_any():
                body += chunk
                if over := len(body) > cap:
                    break
                floor.check(len(body))
    except (aiohttp.ClientError, OSError):
        if good:
            raise
        # The status is known, and says more than that its explanation was cut.
    if over:
        response.close()
    answer = Answer(
        method=response.method,
        path=path,
        status=response.status,
        content_type=headers.get("Content-Type", "").partition(";")[0].strip().lower(),
        content_encoding=headers.get("Content-Encoding", "").strip().lower(),
        retry_after=headers.get("Retry-After"),
        cf_ray=printable_token(headers.get("CF-Ray"), redact),
        served_at=_instant(headers.get("Date")),
        lune_version=printable_token(headers.get("Lune-Version"), redact),
        body=bytes(body),
    )
    if over and good:
        raise AnswerTooLarge(
            f"too large: over {cap} bytes",
            method=response.method,
            path=path,
            status=answer.status,
            cf_ray=answer.cf_ray,
        )
    return answer


def _instant(date: str | None) -> float | None:
    try:
        return None if date is None else parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None


class _Floor:
    """The least a body has to grow by, from one window to the next."""

    def __init__(self, deadlines: Deadlines) -> None:
        self._window = deadlines.floor_window
        self._least = deadlines.floor * deadlines.floor_window
        self._ends_at = time.monotonic() + self._window
        self._size = 0

    def check(self, size: int) -> None:
        """Raise when a window has ended with too little in it; ``size`` is the body's so far."""
        now = time.monotonic()
        if now < self._ends_at:
            return
        if size - self._size < self._least:
            raise TooSlow
        self._ends_at, self._size = now + self._window, size


class _NoAnswerError(Exception):
    """A connection was lost before the head of an answer was whole."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__()
        self.reason = reason


async def _never_sent_twice(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    # aiohttp sends a GET again when the connection drops, and that second request would not have
    # passed the pacer; it does so for these two errors only, so they leave as another one.
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _NoAnswerError(error) from None


async def _note_reuse(
    _session: aiohttp.ClientSession,
    context: SimpleNamespace,
    _params: aiohttp.TraceConnectionReuseconnParams,
) -> None:
    context.trace_request_ctx.reused = True
