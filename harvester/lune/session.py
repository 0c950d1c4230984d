"""From a request to its response: the turn, the key, the tries."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from harvester.domain.errors import AccountRefused, KeyRefused
from harvester.lune.origin import Origin
from harvester.lune.parsing import PayloadError
from harvester.lune.rate_limiter import Priority, RateLimiter
from harvester.lune.request_counts import RequestCounts
from harvester.lune.responses import JSON_TYPES, Response, raise_for
from harvester.lune.retry import Retries
from harvester.lune.transport import ClientOptions, Transport

T = TypeVar("T")

OWN_ACCOUNT: Final = "/accounts/me"


@dataclass(frozen=True, slots=True)
class Request:
    """One request: what, for whom (None: the key's own account), what may come back.

    ``path`` is below the base address, percent-encoded. ``total`` is in seconds, ``cap`` in bytes;
    ``types`` None takes any media type. What is not ``repeatable`` is sent again only when it was
    surely not taken.
    """

    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    account_id: str | None = None
    types: tuple[str, ...] | None = JSON_TYPES
    method: str = "GET"
    body: bytes | None = field(default=None, repr=False)
    repeatable: bool = True
    priority: Priority = Priority.WAITED_FOR
    total: float | None = None
    cap: int | None = None


class Session:
    """Ask Lune, in turn, with the key, as often as makes sense.

    A 401 without ``Lune-Account`` refuses the key. With it, the account may be meant: one request
    for the key's own account decides, and only then is the key or the account refused.
    """

    def __init__(self, origin: Origin, rate_limiter: RateLimiter, options: ClientOptions) -> None:
        self._origin = origin
        self._transport = Transport(options, origin.redact)
        self._rate_limiter = rate_limiter
        self._options = options
        # Taken before the turn, so that nobody holds a slot while waiting for a connection.
        self._connections = asyncio.Semaphore(options.connections)
        self._retries = Retries(rate_limiter.pause)
        self._gate = KeyGate()
        self._confirming = asyncio.Lock()
        self._confirmations = 0
        self.clock_offset: float | None = None
        self.request_counts = RequestCounts()

    async def open(self) -> None:
        """Be ready to ask."""
        await self._transport.open()

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        await self._transport.close()

    @property
    def key_refused(self) -> bool:
        """Whether the key is refused, so that only ``probe`` asks anything."""
        return self._gate.closed

    async def fetch(self, request: Request, parse: Callable[[Response], T]) -> T:
        """Return what ``parse`` makes of the response.

        Its ``PayloadError`` is a shape that the API does not serve, which is asked for once more.
        """

        async def attempt() -> T:
            return _parsed(await self._ask(request), parse)

        async def wait(seconds: float) -> None:
            async with self._gate.waiting(request):
                await self._options.sleep(seconds)

        return await self._retries.run(attempt, wait, repeatable=request.repeatable)

    async def probe(self, parse: Callable[[Response], T]) -> T:
        """Re-read the key and ask for its own account, refused or not; success lifts a refusal."""
        self._origin.reread_key()

        async def attempt() -> T:
            try:
                return _parsed(await self._send(Request(OWN_ACCOUNT), gated=False), parse)
            except KeyRefused as refusal:
                self._gate.close(refusal)
                raise

        own = await self._retries.run(attempt, self._options.sleep)
        self._gate.open()
        return own

    async def _ask(self, request: Request) -> Response:
        seen = self._confirmations
        try:
            return await self._send(request)
        except KeyRefused as refusal:
            if self._gate.closed:
                raise
            if request.account_id is None:
                self._gate.close(refusal)
                raise
            refused = refusal
        await self._confirm_key(seen)
        raise AccountRefused(
            "the account is refused, the key is not",
            method=refused.method,
            path=refused.path,
            status=refused.status,
            code=refused.code,
            cf_ray=refused.cf_ray,
        )

    async def _confirm_key(self, seen: int) -> None:
        """Return when the key itself is good; ``KeyRefused`` when it is not.

        ``seen`` is how often it was confirmed when the refused request set out.
        """
        async with self._confirming:
            if self._confirmations != seen:
                return  # somebody else asked since
            try:
                await self._send(Request(OWN_ACCOUNT))
            except AccountRefused:
                pass  # the key was read; it is its own account that is refused
            except KeyRefused as refusal:
                if not self._gate.closed:
                    self._gate.close(refusal)
                raise
            self._confirmations += 1

    async def _send(self, request: Request, *, gated: bool = True) -> Response:
        """Wait for a turn, send one request, and return its response if it is a good one."""
        url = self._origin.url(request.path, request.query)
        with self.request_counts.counting(request.method, request.path):
            async with AsyncExitStack() as turn:
                async with self._gate.waiting(request) if gated else nullcontext():
                    await turn.enter_async_context(self._connections)
                    await turn.enter_async_context(self._rate_limiter.turn(request.priority))
                headers = self._origin.authorization(url)
                if request.account_id is not None:
                    headers["Lune-Account"] = request.account_id
                if request.body is not None:
                    headers["Content-Type"] = "application/json"
                response = await self._transport.send(
                    request.method,
                    url,
                    headers,
                    body=request.body,
                    total=request.total or self._options.deadlines.total,
                    cap=request.cap or self._options.largest_json,
                )
            if response.served_at is not None:
                self.clock_offset = time.time() - response.served_at
            raise_for(response, request.types, self._origin.redact)
        if request.types is None:
            return response  # a certificate, which is kept as it was served
        return replace(response, body=self._origin.redact_bytes(response.body))


class KeyGate:
    """Let requests pass while the key is good; turn all of them away once it was refused."""

    def __init__(self) -> None:
        self._refusal: KeyRefused | None = None
        self._waiting: set[asyncio.Timeout] = set()

    @property
    def closed(self) -> bool:
        """Tell whether the key is refused."""
        return self._refusal is not None

    def close(self, refusal: KeyRefused) -> None:
        """Turn away everybody from now on, those who wait included."""
        self._refusal = refusal
        now = asyncio.get_running_loop().time()
        for waiting in self._waiting:
            waiting.reschedule(now)
        self._waiting.clear()

    def open(self) -> None:
        """Let requests pass again."""
        self._refusal = None

    @asynccontextmanager
    async def waiting(self, request: Request) -> AsyncIterator[None]:
        """Wait inside for a turn; raise ``KeyRefused`` as soon as the gate is closed."""
        self._check(request)
        try:
            async with asyncio.timeout(None) as limit:
                self._waiting.add(limit)
                try:
                    yield
                finally:
                    self._waiting.discard(limit)
        except TimeoutError:
            self._check(request)
            raise
        self._check(request)

    def _check(self, request: Request) -> None:
        if self._refusal is not None:
            raise KeyRefused(
                "not asked: the key was refused before",
                method=request.method,
                path=request.path,
                code=self._refusal.code,
            ) from None


def _parsed(response: Response, parse: Callable[[Response], T]) -> T:
    try:
        return parse(response)
    except PayloadError as error:
        raise response.unexpected(str(error)) from None
