"""The endpoints under ``/v1``: accounts, orders, certificates, quotes."""

from __future__ import annotations

import json
from collections.abc import Callable

from aiohttp import web

from harvester.sandbox.certificates import certificate, is_issued
from harvester.sandbox.documents import (
    Document,
    account_document,
    order_document,
    page_document,
    quote_document,
)
from harvester.sandbox.faults import Faults
from harvester.sandbox.intake import (
    Body,
    read_body,
    read_limit,
    read_purchase_by_estimate,
    read_purchase_by_mass,
    read_purchase_by_value,
    read_terms,
)
from harvester.sandbox.lives import COMPLETE
from harvester.sandbox.mischief import send_part, spoil_page, web_page
from harvester.sandbox.options import SandboxOptions
from harvester.sandbox.pricing import Purchase
from harvester.sandbox.refusals import ApiError, invalid, not_found
from harvester.sandbox.world import CLIENT_SCOPE, Account, Order, World, cursor, read_cursor

ACCOUNT: web.RequestKey[Account] = web.RequestKey("account", Account)
"""The account a request acts on, put there by the gate."""


class Api:
    """The handlers. ``base_url`` gives the server's own address, ending in ``/v1``."""

    def __init__(
        self,
        world: World,
        options: SandboxOptions,
        faults: Faults,
        base_url: Callable[[], str],
    ) -> None:
        self._world = world
        self._certificate_at = options.certificate_at
        self._faults = faults
        self._base_url = base_url

    def routes(self) -> list[web.RouteDef]:
        """Return the routes, fixed paths before those with a parameter."""
        return [
            web.get("/accounts/me", self.get_own_account),
            web.get("/accounts/client/me", self.get_own_client_account),
            web.get("/accounts/client", self.list_client_accounts),
            web.get("/accounts", self.list_accounts),
            # Lune documents only PUT and PATCH on these two; a client that is to work with
            # Lune reads another account by /accounts/me under its Lune-Account header.
            web.get("/accounts/client/{id}", self.get_account),
            web.get("/accounts/{id}", self.get_account),
            web.get("/orders", self.list_orders),
            web.get("/orders/by-idempotency-key/{idempotency_key}", self.get_order_by_key),
            web.get("/orders/{id}", self.get_order),
            web.get("/orders/{id}/certificate", self.get_certificate),
            web.post("/orders/by-mass", self.order_by_mass),
            web.post("/orders/by-value", self.order_by_value),
            web.post("/orders/by-estimate", self.order_by_estimate),
            web.post("/orders/by-mass/quote", self.quote_by_mass),
            web.post("/orders/by-value/quote", self.quote_by_value),
        ]

    async def get_own_account(self, request: web.Request) -> web.Response:
        """Serve the account acted on."""
        return self._account(request[ACCOUNT])

    async def get_own_client_account(self, request: web.Request) -> web.Response:
        """Serve the client account acted on."""
        account = request[ACCOUNT]
        if account.scope != CLIENT_SCOPE:
            raise ApiError(400, "account_scope_incorrect", "This is not a client account.")
        return self._account(account)

    async def get_account(self, request: web.Request) -> web.Response:
        """Serve an account of the organisation and the key's mode."""
        account = self._world.accounts.get(request.match_info["id"])
        is_client = request.path.startswith("/v1/accounts/client/")
        if (
            account is None
            or account.mode != self._world.mode
            or (account.scope == CLIENT_SCOPE) is not is_client
        ):
            raise not_found()
        return self._account(account)

    async def list_accounts(self, request: web.Request) -> web.Response:
        """List accounts, of both modes: each row has its ``type``, no document narrows it."""
        return self._account_page(request, "account")

    async def list_client_accounts(self, request: web.Request) -> web.Response:
        """List client accounts."""
        return self._account_page(request, CLIENT_SCOPE)

    async def list_orders(self, request: web.Request) -> web.Response:
        """List the account's orders, newest first."""
        account, after = request[ACCOUNT], request.query.get("after")
        if (
            after is not None
            and read_cursor(after) == after
            and self._faults.strike("strict-cursor")
        ):
            raise invalid(".query.after", "should be a cursor")
        orders, has_more = self._world.page(
            account.id,
            read_limit(request.query.get("limit")),
            after,
            request.query.get("offset_link_id"),
        )
        last_id = orders[-1].id if orders else None
        page = page_document([self.document(order) for order in orders], last_id, has_more=has_more)
        spoil_page(page, after or (cursor(last_id) if last_id else None), self._faults)
        return _json(page)

    async def get_order(self, request: web.Request) -> web.Response:
        """Serve one order."""
        order = self._world.order(request.match_info["id"], request[ACCOUNT].id)
        if self._faults.strike("missing-order", order.id):
            raise not_found()
        return _json(self.document(order))

    async def get_order_by_key(self, request: web.Request) -> web.Response:
        """Serve the order with an idempotency key."""
        key = request.match_info["idempotency_key"]
        return _json(self.document(self._world.order_by_key(request[ACCOUNT].id, key)))

    async def get_certificate(self, request: web.Request) -> web.StreamResponse:
        """Serve an order's certificate, from the status on that the options name."""
        order = self._world.order(request.match_info["id"], request[ACCOUNT].id)
        pdf = self.certificate(order)
        if pdf is None or self._is_withheld(order):
            raise not_found()
        if self._faults.strike("html-certificate"):
            return web_page("Certificate")
        if junk := self._faults.strike("not-pdf"):
            pdf = {"empty": b"", "cut": pdf[:-200]}.get(junk.arg or "", b"no PDF at all\n" * 200)
        response = web.Response(body=pdf, content_type="application/pdf")
        if self._faults.strike("truncate"):
            return await send_part(request, response, reset=False)
        return response

    async def order_by_mass(self, request: web.Request) -> web.Response:
        """Place an order for a mass."""
        body = await _body(request)
        return self._place(request, body, read_purchase_by_mass(body))

    async def order_by_value(self, request: web.Request) -> web.Response:
        """Place an order for a value."""
        body = await _body(request)
        return self._place(request, body, read_purchase_by_value(body))

    async def order_by_estimate(self, request: web.Request) -> web.Response:
        """Place an order for what an estimate came to."""
        body = await _body(request)
        purchase, estimate_id = read_purchase_by_estimate(body)
        return self._place(request, body, purchase, estimate_id)

    async def quote_by_mass(self, request: web.Request) -> web.Response:
        """Price a mass."""
        purchase = read_purchase_by_mass(await _body(request))
        return _json(quote_document(purchase, request[ACCOUNT].currency))

    async def quote_by_value(self, request: web.Request) -> web.Response:
        """Price a value."""
        purchase = read_purchase_by_value(await _body(request))
        return _json(quote_document(purchase, request[ACCOUNT].currency))

    def document(self, order: Order) -> Document:
        """Return an order as it is served now, faults included."""
        account = self._world.accounts[order.account_id]
        now = self._world.clock.now()
        status, _ = order.life.stage(now)
        before = order.life.previous(now)
        if before and self._faults.strike("backward", order.id) and self._faults.coin():
            status = before
        document = order_document(order, account, status, self._base_url())
        if unknown := self._faults.strike("unknown-status", order.id):
            document["status"] = unknown.arg
        if foreign := self._faults.strike("foreign-url", order.id):
            document["certificate"] = foreign.arg
        return document

    def document_in(self, order: Order, status: str) -> Document:
        """Return an order as it was served when it entered a status."""
        account = self._world.accounts[order.account_id]
        return order_document(order, account, status, self._base_url())

    def certificate(self, order: Order) -> bytes | None:
        """Return an order's certificate as it is now; None when there is none yet."""
        status, since = order.life.stage(self._world.clock.now())
        if not is_issued(status, self._certificate_at):
            return None
        account = self._world.accounts[order.account_id]
        beneficiary = account.beneficiary or self._world.organisation_beneficiary
        changes = self._faults.strike("certificate-changes")
        copy = self._faults.hits["certificate-changes"] if changes else None
        return certificate(order, beneficiary, status, since, copy)

    def _is_withheld(self, order: Order) -> bool:
        missing = self._faults.get("certificate-missing")
        if missing is None:
            return False
        now = self._world.clock.now()
        status, since = order.life.stage(now)
        over = missing.arg and status == COMPLETE and now - since >= float(missing.arg)
        return not over and self._faults.strike("certificate-missing", order.id) is not None

    def _place(
        self,
        request: web.Request,
        body: Body,
        purchase: Purchase,
        estimate_id: str | None = None,
    ) -> web.Response:
        terms = read_terms(body)
        order = self._world.place_order(
            request[ACCOUNT],
            purchase,
            idempotency_key=terms.idempotency_key,
            metadata=terms.metadata,
            estimate_id=estimate_id,
        )
        return _json(self.document(order))

    def _account(self, account: Account) -> web.Response:
        return _json(account_document(account, self._world.organisation_id))

    def _account_page(self, request: web.Request, scope: str) -> web.Response:
        limit = read_limit(request.query.get("limit"))
        name = request.query.get("name", "").lower()
        ids = [
            account.id
            for account in self._world.accounts.values()
            if account.scope == scope and name in account.name.lower()
        ]
        start = 0
        if (after := request.query.get("after")) is not None:
            last_id = read_cursor(after)
            if last_id not in ids:
                raise invalid(".query.after", "should be a cursor")
            start = ids.index(last_id) + 1
        page = ids[start : start + limit]
        rows = [
            account_document(self._world.accounts[account_id], self._world.organisation_id)
            for account_id in page
        ]
        has_more = start + limit < len(ids)
        return _json(page_document(rows, page[-1] if page else None, has_more=has_more))


async def _body(request: web.Request) -> Body:
    return read_body(await request.read(), request.content_type)


def _json(document: Document) -> web.Response:
    return web.json_response(document, dumps=_dumps)


def _dumps(document: Document) -> str:
    return json.dumps(document, separators=(",", ":"))
