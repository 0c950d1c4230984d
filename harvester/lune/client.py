"""Lune's API as typed asynchronous calls."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, Self, TypeVar

import structlog

from harvester.domain.errors import AccountRefused, NotFound, RequestRefused, UnexpectedAnswer
from harvester.domain.orders import Account, CertificateBody, Order, OrderPage, is_identifier
from harvester.domain.purchases import Purchase, Quote, check_key
from harvester.lune.origin import Origin, segment
from harvester.lune.parsing import (
    read_account,
    read_account_page,
    read_order,
    read_order_page,
    read_quote,
)
from harvester.lune.payload import PayloadError
from harvester.lune.priority import Urgency
from harvester.lune.rate_limiter import Pacer
from harvester.lune.responses import Answer, AnswerTooLarge
from harvester.lune.retry import Sleep
from harvester.lune.session import OWN_ACCOUNT, Call, Channel
from harvester.lune.transport import Deadlines, Exchange

PAGE_SIZE: Final = 100  # the most Lune serves at once (Lune's schema)
_ACCOUNT_LISTS: Final = ("/accounts", "/accounts/client")

T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Caps:
    """The largest bodies that are read, in bytes."""

    json: int = 8 * 2**20
    certificate: int = 32 * 2**20


class LuneClient:
    """Read and place orders at Lune; an asynchronous context manager.

    ``base_url`` is Lune's address with its version, such as ``https://api.lune.co/v1``; plain http
    is for loopback hosts. ``key`` returns the API key and is called again by ``probe``. Wrong ones
    raise ``ConfigurationError``. ``pacer`` keeps the rate; clients that share a key share a pacer.

    Every call but ``place_order`` is idempotent. Each has a deadline and a size cap, is tried again
    where that can help (see :mod:`harvester.lune.retry`) and raises the ``LuneError`` kinds of
    :mod:`harvester.domain.errors`. What cannot be an id raises ``ValueError``.

    Once Lune has refused the key itself, every call raises ``KeyRefused`` at once, unasked, until
    ``probe`` succeeds.
    """

    def __init__(
        self,
        base_url: str,
        key: Callable[[], str],
        pacer: Pacer,
        *,
        lune_version: str = "2024-08-08",
        deadlines: Deadlines | None = None,
        caps: Caps | None = None,
        user_agent: str = "lune-harvester",
        connections: int = 16,
        sleep: Sleep = asyncio.sleep,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._origin = Origin(base_url, key)
        self._version = lune_version
        self._other_version_told = False
        self._deadlines = deadlines or Deadlines()
        self._caps = caps or Caps()
        self._exchange = Exchange(
            {"Lune-Version": lune_version, "User-Agent": user_agent},
            redact=self._origin.redact,
            deadlines=self._deadlines,
            connections=connections,
            tls=tls,
        )
        self._channel = Channel(
            self._origin,
            self._exchange,
            pacer,
            own_account=self._call(OWN_ACCOUNT),
            connections=connections,
            sleep=sleep,
        )
        self._own_id: str | None = None

    async def __aenter__(self) -> Self:
        await self._exchange.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exchange.__aexit__()

    @property
    def refused(self) -> bool:
        """Tell whether the key is refused, so that only ``probe`` asks anything."""
        return self._channel.refused

    @property
    def clock_offset(self) -> float | None:
        """Tell by how many seconds this clock is ahead of Lune's; None before an answer."""
        return self._channel.clock_offset

    @property
    def outcomes(self) -> Mapping[tuple[str, str], int]:
        """What became of requests so far, by endpoint and outcome; the counts only grow."""
        return self._channel.outcomes

    async def probe(self) -> Account:
        """Re-read the key and ask for its default account; success lifts a refusal."""
        own = await self._channel.probe(_read_own)
        self._own_id = own.id
        return own

    async def fetch_own_account(self) -> Account:
        """Return the key's default account. ``KeyRefused`` when the key is not accepted."""
        own = await self._fetch(self._call(OWN_ACCOUNT), _read_own)
        self._own_id = own.id
        return own

    async def fetch_account(self, account_id: str) -> Account:
        """Return one account the key may act on; ``AccountRefused`` when it may not."""
        call = self._call(OWN_ACCOUNT, account_id=_checked(account_id))
        if account_id == await self._fetch_own_id():
            return await self.fetch_own_account()
        with suppress(NotFound):
            account = await self._fetch(call, lambda answer: read_account(answer.body))
            if account.id == account_id:
                return account
        # A server that ignores Lune-Account here has answered with the default account.
        for account in await self.fetch_accounts():
            if account.id == account_id:
                return account
        raise AccountRefused("the key has no such account", method="GET", path=call.url.raw_path)

    async def fetch_accounts(self) -> list[Account]:
        """Return every account and client account of the key's own mode, the default one first.

        A list that the key's scope does not cover is left out, with a line in the log.
        """
        own = await self.fetch_own_account()
        found = {own.id: own}
        for path in _ACCOUNT_LISTS:
            try:
                async for account in self._list_accounts(path):
                    if account.mode == own.mode:
                        found.setdefault(account.id, account)
            except (AccountRefused, NotFound, RequestRefused) as refusal:
                log.warning("accounts not listed", list=path, reason=str(refusal))
        return list(found.values())

    async def fetch_orders(
        self, account: Account, after: str | None = None, *, urgency: Urgency = Urgency.DUE
    ) -> OrderPage:
        """Return one page of up to 100 orders, newest first, after a cursor.

        A page over the size cap is asked for again in smaller pieces. ``UnexpectedAnswer`` when
        the cursor does not advance; a longer circle shows only to the caller, as a page without
        anything new, and the caller must stop there.
        """
        limit = PAGE_SIZE

        def read(answer: Answer) -> OrderPage:
            page = read_order_page(answer.body)
            if after is not None and page.next_cursor == after:
                raise PayloadError("pagination: the cursor does not advance")
            return page

        while True:
            call = self._call(
                "/orders", _page_query(limit, after), account_id=self._header(account)
            )
            call = replace(call, urgency=urgency)
            try:
                return await self._fetch(call, read)
            except AnswerTooLarge:
                if limit == 1:
                    raise
                limit //= 2
                log.warning("page too large", account=account.id, next_limit=limit)

    async def fetch_order(
        self, account: Account, order_id: str, *, urgency: Urgency = Urgency.DUE
    ) -> Order:
        """Return one order; ``NotFound`` when there is none in this account."""
        call = self._call(f"/orders/{_checked(order_id)}", account_id=self._header(account))
        call = replace(call, urgency=urgency)

        def read(answer: Answer) -> Order:
            order = read_order(answer.body)
            if order.id != order_id:
                raise PayloadError("another order than the one asked for")
            return order

        return await self._fetch(call, read)

    async def fetch_order_by_key(self, account: Account, idempotency_key: str) -> Order:
        """Return the order with this idempotency key; ``NotFound`` when there is none."""
        path = f"/orders/by-idempotency-key/{segment(idempotency_key)}"
        call = self._call(path, account_id=self._header(account))
        return await self._fetch(call, _reading_order_of(idempotency_key))

    async def fetch_certificate(self, account: Account, order_id: str) -> CertificateBody:
        """Return the order's certificate, unchecked; ``NotFound`` when there is none yet."""
        call = Call(
            self._origin.url(f"/orders/{_checked(order_id)}/certificate"),
            account_id=self._header(account),
            total=self._deadlines.certificate_total,
            cap=self._caps.certificate,
            types=None,  # a page of HTML is kept for inspection, not lost here
        )
        return await self._fetch(
            call, lambda answer: CertificateBody(answer.body, answer.content_type, answer.cf_ray)
        )

    def redact(self, data: bytes) -> bytes:
        """Return bytes that were served without the key, should they quote it."""
        return self._origin.redact_bytes(data)

    async def quote(self, account: Account, purchase: Purchase) -> Quote:
        """Price a purchase by mass or value without placing it.

        ``RequestRefused`` with Lune's code when it cannot be had; ValueError for an estimate,
        which Lune does not price.
        """
        if purchase.kind == "estimate":
            raise ValueError("Lune prices an estimate only when it is ordered")
        call = self._post(f"/orders/by-{purchase.kind}/quote", account, purchase.quote_request())
        return await self._fetch(call, lambda answer: read_quote(answer.body))

    async def place_order(
        self, account: Account, purchase: Purchase, idempotency_key: str
    ) -> Order:
        """Place an order: spend money, at most once for a key.

        Sent once. When the outcome is unknown (``Unreachable``, ``ServerFault``,
        ``UnexpectedAnswer``), ``fetch_order_by_key`` tells; a used key is ``RequestRefused`` with
        the code ``order_idempotency_already_exists``. Never answer either with another key.
        """
        body = {**purchase.request, "idempotency_key": check_key(idempotency_key)}
        call = self._post(f"/orders/by-{purchase.kind}", account, body, repeatable=False)
        return await self._fetch(call, _reading_order_of(idempotency_key))

    async def _fetch(self, call: Call, read: Callable[[Answer], T]) -> T:
        def read_and_note(answer: Answer) -> T:
            self._note_version(answer.lune_version)
            return read(answer)

        return await self._channel.fetch(call, read_and_note)

    def _note_version(self, served: str | None) -> None:
        """Log once that another version is served: its fields may mean something else."""
        if served not in {None, self._version} and not self._other_version_told:
            self._other_version_told = True
            log.warning("another version of the API", asked=self._version, served=served)

    async def _fetch_own_id(self) -> str | None:
        """Return the default account's id; None when that account is refused."""
        if self._own_id is None:
            with suppress(AccountRefused):
                await self.fetch_own_account()
        return self._own_id

    async def _list_accounts(self, path: str) -> AsyncIterator[Account]:
        """Yield the accounts of all pages; ``UnexpectedAnswer`` when the list goes in circles."""
        rows: set[str] = set()
        cursors: set[str] = set()
        after: str | None = None
        while True:
            call = self._call(path, _page_query(PAGE_SIZE, after))
            page = await self._fetch(call, lambda answer: read_account_page(answer.body))
            for reason in page.skipped:
                log.warning("account skipped", list=path, reason=reason)
            for account in page.accounts:
                yield account
            after = page.next_cursor
            if after is None:
                return
            if after in cursors or page.references <= rows:
                message = "pagination: the list goes in circles"
                raise UnexpectedAnswer(message, method="GET", path=call.url.raw_path)
            cursors.add(after)
            rows |= page.references

    def _header(self, account: Account) -> str | None:
        # A key that was changed meanwhile may stand for another account by itself.
        is_own = account.is_default and self._own_id in {None, account.id}
        return None if is_own else _checked(account.id)

    def _call(
        self, path: str, query: Mapping[str, str] | None = None, *, account_id: str | None = None
    ) -> Call:
        return Call(
            self._origin.url(path, query),
            account_id=account_id,
            total=self._deadlines.total,
            cap=self._caps.json,
            urgency=Urgency.WAITED_FOR,
        )

    def _post(
        self, path: str, account: Account, body: Mapping[str, Any], *, repeatable: bool = True
    ) -> Call:
        return replace(
            self._call(path, account_id=self._header(account)),
            method="POST",
            body=json.dumps(body, ensure_ascii=False).encode(),
            repeatable=repeatable,
        )


def _reading_order_of(idempotency_key: str) -> Callable[[Answer], Order]:
    def read(answer: Answer) -> Order:
        order = read_order(answer.body)
        if order.idempotency_key != idempotency_key:
            raise PayloadError("another order than the one asked for")
        return order

    return read


def _read_own(answer: Answer) -> Account:
    return read_account(answer.body, is_default=True)


def _page_query(limit: int, after: str | None) -> dict[str, str]:
    return {"limit": str(limit)} | ({} if after is None else {"after": after})


def _checked(identifier: str) -> str:
    if not is_identifier(identifier):
        raise ValueError("not an id: 1 to 64 letters, digits, dashes and underscores")
    return identifier
