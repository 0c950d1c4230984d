"""One request and its response over aiohttp, with a deadline, a cap and nothing done unasked.

aiohttp would follow redirects, keep cookies, unpack compressed bodies, read proxies from the
environment, send a GET a second time by itself and reuse a connection on which unasked bytes have
arrived. None of that happens here.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from types import SimpleNamespace
from typing import Any, Final, TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.tracing import Trace
from yarl import URL

from harvester.domain.errors import LuneError, UnexpectedAnswer, Unreachable
from harvester.domain.urls import may_stand_for
from harvester.lune.responses import Redact, Response, ResponseTooLarge, printable_token
from harvester.lune.retry import Sleep, StaleConnection

T = TypeVar("T")

Lookup = Callable[..., list[Any]]
"""What ``socket.getaddrinfo`` takes and returns."""

_ERROR_CAP: Final = 65_536  # bytes of an answer that is an error anyway
_ABOUT_DATES: Final = frozenset({9, 10})  # OpenSSL: not yet valid, has expired


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


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """What a client may be made with; the defaults are those of the service.

    ``largest_json`` and ``largest_certificate`` are the largest bodies that are read, in bytes;
    ``connections`` is how many may be open at once; ``tls`` replaces the system's trust and
    ``lookup`` its name service; ``sleep`` waits between tries.
    """

    deadlines: Deadlines = Deadlines()
    largest_json: int = 8 * 2**20
    largest_certificate: int = 32 * 2**20
    connections: int = 16
    lune_version: str = "2024-08-08"
    user_agent: str = "lune-harvester"
    tls: ssl.SSLContext | None = None
    lookup: Lookup = socket.getaddrinfo
    sleep: Sleep = asyncio.sleep


class Transport:
    """The one HTTP session, between ``open`` and ``close``. ``redact`` hides the key."""

    def __init__(self, options: ClientOptions, redact: Redact) -> None:
        self._options = options
        self._redact = redact
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Make the session."""
        reuse = aiohttp.TraceConfig()
        reuse.on_connection_reuseconn.append(_note_reuse)
        self._session = aiohttp.ClientSession(
            headers={
                "Accept-Encoding": "identity",
                "Lune-Version": self._options.lune_version,
                "User-Agent": self._options.user_agent,
            },
            connector=CleanConnector(
                limit=self._options.connections,
                ssl=self._options.tls or True,
                resolver=GuardedResolver(self._options.lookup),
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            trace_configs=[reuse],
            middlewares=(_never_sent_twice,),
        )

    async def close(self) -> None:
        """Close every connection. Idempotent."""
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
    ) -> Response:
        """Return the response, whatever its status; the body of a 200 is whole and within ``cap``.

        ``body`` is JSON. ``total`` is in seconds, ``cap`` in bytes. Raises ``Unreachable``,
        ``UnexpectedAnswer`` for what is not HTTP and ``ResponseTooLarge``.
        """
        if self._session is None:
            raise RuntimeError("the client is used outside of its async with block")
        deadlines = self._options.deadlines
        timeout = aiohttp.ClientTimeout(
            total=total, connect=deadlines.connect, sock_read=deadlines.read
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
                return await _read(response, cap, self._redact, deadlines)
        except _NoAnswerError as failure:
            kind: type[LuneError] = StaleConnection if connection.reused else Unreachable
            word = describe(failure.reason)[1]
        except (aiohttp.ClientError, OSError) as error:
            kind, word = describe(error)
        # Outside of the handlers: what aiohttp raises can hold headers, and the key is one.
        raise kind(word, method=method, path=url.raw_path)


async def _read(
    response: aiohttp.ClientResponse, cap: int, redact: Redact, deadlines: Deadlines
) -> Response:
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
    answer = Response(
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
        raise ResponseTooLarge(
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
    # passed the rate limiter; it does so for these two errors only, so they leave as another one.
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
