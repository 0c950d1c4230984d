"""Lune's API as typed asynchronous calls."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Self, TypeVar

import structlog

from harvester.domain.errors import AccountRefused, NotFound, RequestRefused, UnexpectedAnswer
from harvester.domain.lune_events import Subscription
from harvester.domain.orders import Account, CertificateBody, Order, OrderPage, is_identifier
from harvester.domain.polling import PAGE_SIZE
from harvester.domain.purchases import Purchase, Quote, check_idempotency_key
from harvester.lune.origin import Origin, segment
from harvester.lune.parsing import (
    PayloadError,
    parse_account,
    parse_account_page,
    parse_order,
    parse_order_page,
    parse_quote,
    parse_subscription,
    parse_subscriptions,
)
from harvester.lune.rate_limiter import Priority, RateLimiter
from harvester.lune.responses import NOTHING, Response, ResponseTooLarge
from harvester.lune.session import OWN_ACCOUNT, Request, Session
from harvester.lune.transport import ClientOptions

_ACCOUNT_LISTS: Final = ("/accounts", "/accounts/client")

T = TypeVar("T")

log = structlog.get_logger(__name__)


class LuneClient:
    """Read and place orders at Lune; an asynchronous context manager.

    ``base_url`` is Lune's address with its version, such as ``https://api.lune.co/v1``; plain http
    is for loopback hosts. ``key`` returns the API key and is called again by ``probe``. Wrong ones
    raise ``ConfigurationError``. Clients that share a key share a ``rate_limiter``.

    Every call but ``place_order`` and those that make a webhook's secret is idempotent. Each has a
    deadline and a size cap, is tried again where that can help (see :mod:`harvester.lune.retry`)
    and raises the ``LuneError`` kinds of :mod:`harvester.domain.errors`. What cannot be an id
    raises ``ValueError``.

    Once Lune has refused the key itself, every call raises ``KeyRefused`` at once, unasked, until
    ``probe`` succeeds.
    """

    def __init__(
        self,
        base_url: str,
        key: Callable[[], str],
        rate_limiter: RateLimiter,
        options: ClientOptions | None = None,
    ) -> None:
        self._options = options or ClientOptions()
        self._origin = Origin(base_url, key)
        self._session = Session(self._origin, rate_limiter, self._options)
        self._own_id: str | None = None
        self._other_version_logged = False

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Be ready to ask."""
        await self._session.open()

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        await self._session.close()

    @property
    def key_refused(self) -> bool:
        """Whether the key is refused, so that only ``probe`` asks anything."""
        return self._session.key_refused

    @property
    def clock_offset(self) -> float | None:
        """Tell by how many seconds this clock is ahead of Lune's; None before an answer."""
        return self._session.clock_offset

    @property
    def request_counts(self) -> Mapping[tuple[str, str], int]:
        """Requests so far by endpoint and outcome; the counts only grow."""
        return self._session.request_counts

    async def probe(self) -> Account:
        """Re-read the key and ask for its default account; success lifts a refusal."""
        own = await self._session.probe(_parse_own)
        self._own_id = own.id
        return own

    async def fetch_own_account(self) -> Account:
        """Return the key's default account. ``KeyRefused`` when the key is not accepted."""
        own = await self._fetch(Request(OWN_ACCOUNT), _parse_own)
        self._own_id = own.id
        return own

    async def fetch_account(self, account_id: str) -> Account:
        """Return one account the key may act on; ``AccountRefused`` when it may not."""
        request = Request(OWN_ACCOUNT, account_id=_checked(account_id))
        if account_id == await self._fetch_own_id():
            return await self.fetch_own_account()
        with suppress(NotFound):
            account = await self._fetch(request, _parse_account)
            if account.id == account_id:
                return account
        # A server that ignores Lune-Account here has answered with the default account.
        for account in await self.fetch_accounts():
            if account.id == account_id:
                return account
        raise AccountRefused("the key has no such account", method="GET", path=OWN_ACCOUNT)

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
        self, account: Account, after: str | None = None, *, priority: Priority = Priority.DUE
    ) -> OrderPage:
        """Return one page of up to 100 orders, newest first, after a cursor.

        A page over the size cap is asked for again in smaller pieces. ``UnexpectedAnswer`` when
        the cursor does not advance; a longer circle shows only to the caller, as a page without
        anything new, and the caller must stop there.
        """
        limit = PAGE_SIZE

        def parse(response: Response) -> OrderPage:
            page = parse_order_page(response.body)
            if after is not None and page.next_cursor == after:
                raise PayloadError("pagination: the cursor does not advance")
            return page

        while True:
            request = Request(
                "/orders",
                _page_query(limit, after),
                account_id=self._header(account),
                priority=priority,
            )
            try:
                return await self._fetch(request, parse)
            except ResponseTooLarge:
                if limit == 1:
                    raise
                limit //= 2
                log.warning("page too large", account=account.id, next_limit=limit)

    async def fetch_order(
        self, account: Account, order_id: str, *, priority: Priority = Priority.DUE
    ) -> Order:
        """Return one order; ``NotFound`` when there is none in this account."""

        def parse(response: Response) -> Order:
            order = parse_order(response.body)
            if order.id != order_id:
                raise PayloadError("another order than the one asked for")
            return order

        path = f"/orders/{_checked(order_id)}"
        request = Request(path, account_id=self._header(account), priority=priority)
        return await self._fetch(request, parse)

    async def fetch_order_by_key(self, account: Account, idempotency_key: str) -> Order:
        """Return the order with this idempotency key; ``NotFound`` when there is none."""
        path = f"/orders/by-idempotency-key/{segment(idempotency_key)}"
        request = Request(path, account_id=self._header(account))
        return await self._fetch(request, _parsing_order_of(idempotency_key))

    async def fetch_certificate(self, account: Account, order_id: str) -> CertificateBody:
        """Return the order's certificate, unchecked; ``NotFound`` when there is none yet."""
        request = Request(
            f"/orders/{_checked(order_id)}/certificate",
            account_id=self._header(account),
            priority=Priority.DUE,
            total=self._options.deadlines.certificate_total,
            cap=self._options.largest_certificate,
            types=None,  # a page of HTML is kept for inspection, not lost here
        )
        return await self._fetch(request, _to_certificate)

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
        path = f"/orders/by-{purchase.kind}/quote"
        request = Request(
            path, account_id=self._header(account), method="POST", body=_json(purchase.priced())
        )
        return await self._fetch(request, lambda response: parse_quote(response.body))

    async def place_order(
        self, account: Account, purchase: Purchase, idempotency_key: str
    ) -> Order:
        """Place an order: spend money, at most once for a key.

        Sent once. When the outcome is unknown (``Unreachable``, ``ServerFault``,
        ``UnexpectedAnswer``), ``fetch_order_by_key`` tells; a used key is ``RequestRefused`` with
        the code ``order_idempotency_already_exists``. Never answer either with another key.
        """
        body = {
            **purchase.request,
            "idempotency_key": check_idempotency_key(idempotency_key),
        }
        request = Request(
            f"/orders/by-{purchase.kind}",
            account_id=self._header(account),
            method="POST",
            body=_json(body),
            repeatable=False,
        )
        return await self._fetch(request, _parsing_order_of(idempotency_key))

    async def fetch_webhooks(self) -> list[Subscription]:
        """Return the webhooks there are, their secrets shortened."""
        return await self._fetch(Request("/webhooks"), lambda r: parse_subscriptions(r.body))

    async def register_webhook(self, url: str, account_ids: Sequence[str] = ()) -> Subscription:
        """Set up a webhook and return it with its whole secret, which is shown this once.

        Without ``account_ids`` it gets the events of all the organisation's accounts. Sent once:
        after an error there may be one whose secret nobody has seen; rotating it mends that.
        """
        body = {"url": url} | ({"account_ids": list(account_ids)} if account_ids else {})
        request = Request("/webhooks", method="POST", body=_json(body), repeatable=False)
        return await self._fetch(request, lambda response: parse_subscription(response.body))

    async def rotate_webhook(self, webhook_id: str) -> Subscription:
        """Give a webhook a new secret and return it; the old one is no good from now on.

        Sent once: after an error the secret may be one that nobody has seen; rotate it again.
        """
        path = f"/webhooks/{_checked(webhook_id)}/rotate-secret"
        request = Request(path, method="PUT", repeatable=False)
        return await self._fetch(request, lambda response: parse_subscription(response.body))

    async def remove_webhook(self, webhook_id: str) -> None:
        """End a webhook; ``NotFound`` when there is none."""
        path = f"/webhooks/{_checked(webhook_id)}"
        await self._fetch(Request(path, method="DELETE", types=NOTHING), lambda _: None)

    async def _fetch(self, request: Request, parse: Callable[[Response], T]) -> T:
        def parse_and_note(response: Response) -> T:
            self._note_version(response.lune_version)
            return parse(response)

        return await self._session.fetch(request, parse_and_note)

    def _note_version(self, served: str | None) -> None:
        """Log once that another version is served: its fields may mean something else."""
        asked = self._options.lune_version
        if served not in {None, asked} and not self._other_version_logged:
            self._other_version_logged = True
            log.warning("API version differs", asked=asked, served=served)

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
            request = Request(path, _page_query(PAGE_SIZE, after))
            page = await self._fetch(request, lambda r: parse_account_page(r.body))
            for reason in page.skipped:
                log.warning("account skipped", list=path, reason=reason)
            for account in page.accounts:
                yield account
            after = page.next_cursor
            if after is None:
                return
            if after in cursors or page.references <= rows:
                message = "pagination: the list goes in circles"
                raise UnexpectedAnswer(message, method="GET", path=path)
            cursors.add(after)
            rows |= page.references

    def _header(self, account: Account) -> str | None:
        # A key that was changed meanwhile may stand for another account by itself.
        is_own = account.is_default and self._own_id in {None, account.id}
        return None if is_own else _checked(account.id)


def _parsing_order_of(idempotency_key: str) -> Callable[[Response], Order]:
    def parse(response: Response) -> Order:
        order = parse_order(response.body)
        if order.idempotency_key != idempotency_key:
            raise PayloadError("another order than the one asked for")
        return order

    return parse


def _parse_own(response: Response) -> Account:
    return parse_account(response.body, is_default=True)


def _parse_account(response: Response) -> Account:
    return parse_account(response.body)


def _to_certificate(response: Response) -> CertificateBody:
    return CertificateBody(response.body, response.content_type, response.cf_ray)


def _json(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode()


def _page_query(limit: int, after: str | None) -> dict[str, str]:
    return {"limit": str(limit)} | ({} if after is None else {"after": after})


def _checked(identifier: str) -> str:
    if not is_identifier(identifier):
        raise ValueError("not an id: 1 to 64 letters, digits, dashes and underscores")
    return identifier
