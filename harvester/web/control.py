"""What commands ask of the daemon over the local socket, beside the API: each changes something.

Only who may open the socket, mode 0600 beside the ledger, gets here. An answer comes when what was
done is durable. The bodies are our own commands'; anything else is a bad request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from aiohttp import web

from harvester.app import App
from harvester.domain.purchases import Purchase
from harvester.harvest.verify import Discrepancy, Finding, reopen
from harvester.ledger.certificates import retry_certificates
from harvester.web.problems import Problem, read_json

_LARGEST_BODY = 16 * 1024 * 1024


class Control:
    """The handlers; ``wake`` runs a step of the daemon now."""

    def __init__(self, app: App, wake: Callable[[str], None]) -> None:
        self._app = app
        self._wake = wake

    def routes(self) -> list[web.RouteDef]:
        """Return the routes, as they are below /control."""
        return [
            web.get("/rate", self._rate),
            web.post("/purchase", self._changing(self._purchase)),
            web.post("/retry", self._changing(self._retry)),
            web.post("/repair", self._changing(self._repair)),
            web.post("/resend", self._changing(self._resend)),
        ]

    def _changing(
        self, change: Callable[[Mapping[str, Any]], Awaitable[object]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            answer = await change(await read_json(request, _LARGEST_BODY))
            self._wake("collect")
            return web.json_response(answer)

        return handle

    async def _rate(self, _: web.Request) -> web.Response:
        limiter = self._app.rate_limiter
        return web.json_response(
            {
                "rate": limiter.rate,
                "current_rate": round(limiter.current_rate, 3),
                "pauses": limiter.pauses,
            }
        )

    async def _purchase(self, body: Mapping[str, Any]) -> object:
        with _reading():
            account_id, key = body["account_id"], body["idempotency_key"]
            purchase = Purchase(body["kind"], body["request"])
        account = await self._app.accounts.account(account_id)
        return asdict(await self._app.purchaser.place(account, purchase, key))

    async def _retry(self, body: Mapping[str, Any]) -> object:
        with _reading():
            order_ids = body["order_ids"]
        now = self._app.context.clock()
        return await retry_certificates(self._app.database, now, order_ids)

    async def _repair(self, body: Mapping[str, Any]) -> object:
        with _reading():
            found = [
                Discrepancy(**{**one, "finding": Finding(one["finding"])})
                for one in body["discrepancies"]
            ]
        now = self._app.context.clock()
        return await reopen(self._app.database, self._app.archive, found, now)

    async def _resend(self, body: Mapping[str, Any]) -> object:
        with _reading():
            seqs, receiver = body["seqs"], body["receiver"]
        return await self._app.dispatcher.resend(seqs, receiver)


@contextmanager
def _reading() -> Iterator[None]:
    """Refuse a body that is not one of our commands', while it is read and no longer."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise Problem(400, f"not a request of ours: {type(error).__name__}") from None
