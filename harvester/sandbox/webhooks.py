"""Webhooks as they are set up: the endpoints of Lune's schema, and what is kept of each."""

from __future__ import annotations

import ipaddress
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from harvester.sandbox.documents import Document, timestamp
from harvester.sandbox.intake import Body, read_body
from harvester.sandbox.refusals import ApiError, invalid, not_found
from harvester.sandbox.world import World, new_id

MOST = 10
"""Webhooks at a time; Lune's schema has a refusal for one more and does not say how many."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """A webhook; ``account_ids`` None means every account of the organisation."""

    id: str
    url: str
    enabled: bool
    account_ids: tuple[str, ...] | None
    created_at: float
    secret: str = field(repr=False)

    def wants(self, account_id: str) -> bool:
        """Tell whether events of this account are pushed to it."""
        return self.enabled and (self.account_ids is None or account_id in self.account_ids)


class Webhooks:
    """The webhooks there are, by id, and the handlers that change them.

    ``reached`` is how far each order was when they were last told of moves, or the first of them
    was made: a move right after that is an event.
    """

    def __init__(self, world: World, rng: random.Random) -> None:
        self._world = world
        self._rng = rng
        self.kept: dict[str, Webhook] = {}
        self.reached: dict[str, int] = {}

    def routes(self) -> list[web.RouteDef]:
        """Return the routes below ``/v1``."""
        return [
            web.get("/webhooks", self.list_all),
            web.post("/webhooks", self.create),
            web.get("/webhooks/{id}", self.get),
            web.put("/webhooks/{id}", self.update),
            web.delete("/webhooks/{id}", self.remove),
            web.put("/webhooks/{id}/rotate-secret", self.rotate),
        ]

    async def list_all(self, request: web.Request) -> web.Response:
        """List all webhooks, or those of some accounts."""
        wanted = set(request.query.getall("account_id", []))
        return _json(
            [
                self._document(one)
                for one in self.kept.values()
                if not wanted or one.account_ids is None or wanted & set(one.account_ids)
            ]
        )

    async def create(self, request: web.Request) -> web.Response:
        """Make a webhook; the answer is the only one with its whole secret."""
        body = read_body(await request.read(), request.content_type)
        if len(self.kept) >= MOST:
            raise ApiError(400, "webhook_limit_reached", "There are too many webhooks.")
        if not self.kept:
            self.reached = self._world.reached()
        made = Webhook(
            id=new_id(self._rng),
            url=_url(body),
            enabled=True,
            account_ids=self._account_ids(body),
            created_at=self._world.clock.now(),
            secret=new_id(self._rng),
        )
        self.kept[made.id] = made
        return _json(self._document(made, secret=made.secret))

    async def get(self, request: web.Request) -> web.Response:
        """Serve one webhook."""
        return _json(self._document(self._find(request)))

    async def update(self, request: web.Request) -> web.Response:
        """Change a webhook's address, whether it is enabled, and whose events it gets."""
        found = self._find(request)
        body = read_body(await request.read(), request.content_type)
        if not isinstance(body.get("enabled"), bool):
            raise invalid(".body.enabled", "should be boolean")
        account_ids = self._account_ids(body) or found.account_ids
        changed = replace(found, url=_url(body), enabled=body["enabled"], account_ids=account_ids)
        self.kept[found.id] = changed
        return _json(self._document(changed))

    async def remove(self, request: web.Request) -> web.Response:
        """End a webhook."""
        del self.kept[self._find(request).id]
        return web.Response(status=204)

    async def rotate(self, request: web.Request) -> web.Response:
        """Give a webhook a new secret; the old one is no good from now on."""
        rotated = replace(self._find(request), secret=new_id(self._rng))
        self.kept[rotated.id] = rotated
        return _json(self._document(rotated, secret=rotated.secret))

    def _find(self, request: web.Request) -> Webhook:
        found = self.kept.get(request.match_info["id"])
        if found is None:
            raise not_found()
        return found

    def _account_ids(self, body: Body) -> tuple[str, ...] | None:
        ids = body.get("account_ids")
        if ids is None:
            return None
        if not isinstance(ids, list) or not ids or not all(isinstance(one, str) for one in ids):
            raise invalid(".body.account_ids", "should be array of at least 1 string")
        if any(one not in self._world.accounts for one in ids):
            raise invalid(".body.account_ids", "should name accounts")
        return tuple(ids)

    def _document(self, webhook: Webhook, secret: str | None = None) -> Document:
        document: Document = {
            "id": webhook.id,
            "url": webhook.url,
            "enabled": webhook.enabled,
            "account_type": self._world.mode,
            "created_at": timestamp(webhook.created_at),
            "secret": secret or webhook.secret[-4:],
        }
        if webhook.account_ids is not None:
            document["account_ids"] = list(webhook.account_ids)
        return document


def _url(body: Mapping[str, Any]) -> str:
    """Return the address to push to: this machine only, where the real Lune wants https."""
    url = body.get("url")
    host = urlsplit(url).hostname if isinstance(url, str) else None
    try:
        if host == "localhost" or ipaddress.ip_address(host or "").is_loopback:
            return str(url)
    except ValueError:
        pass
    raise invalid(".body.url", "should be a URL on a loopback host: the sandbox calls nobody else")


def _json(document: Document | Sequence[Document]) -> web.Response:
    return web.Response(text=json.dumps(document), content_type="application/json")
