"""From a call to its answer: the turn, the key, the border, the tries."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from yarl import URL

from harvester.domain.errors import AccountRefused, KeyRefused
from harvester.lune.gate import KeyGate
from harvester.lune.origin import Origin
from harvester.lune.outcomes import Outcomes
from harvester.lune.payload import PayloadError
from harvester.lune.priority import Urgency
from harvester.lune.rate_limiter import Pacer
from harvester.lune.responses import JSON_TYPES, Answer, raise_for
from harvester.lune.retry import Retries, Sleep
from harvester.lune.transport import Exchange

T = TypeVar("T")

OWN_ACCOUNT: Final = "/accounts/me"


@dataclass(frozen=True, slots=True)
class Call:
    """One request: what, where, for whom (None: the key's own account), what may come back.

    ``total`` is in seconds, ``cap`` in bytes; ``types`` None takes any media type. What is not
    ``repeatable`` is sent again only when it was surely not taken.
    """

    url: URL
    account_id: str | None
    total: float
    cap: int
    types: tuple[str, ...] | None = JSON_TYPES
    method: str = "GET"
    body: bytes | None = field(default=None, repr=False)
    repeatable: bool = True
    urgency: Urgency = Urgency.DUE


class Channel:
    """Ask Lune, in turn, with the key, as often as makes sense.

    A 401 without ``Lune-Account`` refuses the key. With it, the account may be meant: one request
    for the key's own account decides, and only then is the key or the account refused.
    """

    def __init__(
        self,
        origin: Origin,
        exchange: Exchange,
        pacer: Pacer,
        *,
        own_account: Call,
        connections: int,
        sleep: Sleep,
    ) -> None:
        self._origin = origin
        self._exchange = exchange
        self._pacer = pacer
        self._own_account = own_account
        # Taken before the pacer, so that nobody holds a slot while waiting for a connection.
        self._connections = asyncio.Semaphore(connections)
        self._sleep = sleep
        self._retries = Retries(pacer.pause)
        self._gate = KeyGate()
        self._confirming = asyncio.Lock()
        self._confirmations = 0
        self.clock_offset: float | None = None
        self.outcomes = Outcomes()

    @property
    def refused(self) -> bool:
        """Tell whether the key is refused."""
        return self._gate.closed

    async def fetch(self, call: Call, read: Callable[[Answer], T]) -> T:
        """Return what ``read`` makes of the answer; ``PayloadError`` means ``UnexpectedAnswer``."""

        async def attempt() -> T:
            return _parse(await self._ask(call), read)

        async def rest(seconds: float) -> None:
            async with self._gate.waiting(call.method, call.url.raw_path):
                await self._sleep(seconds)

        return await self._retries.run(attempt, rest, repeatable=call.repeatable)

    async def probe(self, read: Callable[[Answer], T]) -> T:
        """Re-read the key and ask for its own account, refused or not; success lifts a refusal."""
        self._origin.reread_key()

        async def attempt() -> T:
            try:
                return _parse(await self._send(self._own_account, gated=False), read)
            except KeyRefused as refusal:
                self._refuse(refusal)
                raise

        own = await self._retries.run(attempt, self._sleep)
        self._gate.open()
        return own

    async def _ask(self, call: Call) -> Answer:
        seen = self._confirmations
        try:
            return await self._send(call)
        except KeyRefused as refusal:
            if self._gate.closed:
                raise
            if call.account_id is None:
                self._refuse(refusal)
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
                await self._send(self._own_account)
            except AccountRefused:
                pass  # the key was read; it is its own account that is refused
            except KeyRefused as refusal:
                if not self._gate.closed:
                    self._refuse(refusal)
                raise
            self._confirmations += 1

    async def _send(self, call: Call, *, gated: bool = True) -> Answer:
        """Wait for a turn, send one request, and return its answer if it is a good one."""
        with self.outcomes.counting(call.method, call.url.raw_path):
            return await self._send_in_turn(call, gated=gated)

    async def _send_in_turn(self, call: Call, *, gated: bool) -> Answer:
        async with AsyncExitStack() as turn:
            async with (
                self._gate.waiting(call.method, call.url.raw_path) if gated else nullcontext()
            ):
                await turn.enter_async_context(self._connections)
                await turn.enter_async_context(self._pacer.turn(call.urgency))
            headers = self._origin.authorization(call.url)
            if call.account_id is not None:
                headers["Lune-Account"] = call.account_id
            if call.body is not None:
                headers["Content-Type"] = "application/json"
            answer = await self._exchange.send(
                call.method, call.url, headers, body=call.body, total=call.total, cap=call.cap
            )
        if answer.served_at is not None:
            self.clock_offset = time.time() - answer.served_at
        raise_for(answer, call.types, self._origin.redact)
        if call.types is None:
            return answer  # a certificate, which is kept as it was served
        return replace(answer, body=self._origin.redact_bytes(answer.body))

    def _refuse(self, refusal: KeyRefused) -> None:
        self._gate.close(refusal)


def _parse(answer: Answer, read: Callable[[Answer], T]) -> T:
    try:
        return read(answer)
    except PayloadError as error:
        raise answer.unexpected(str(error)) from None
