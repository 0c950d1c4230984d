"""Webhooks as they are set up at Lune."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from harvester.domain.lune_events import Subscription
from harvester.domain.orders import is_identifier
from harvester.lune.client import LuneClient
from harvester.lune.parsing import read_instant
from harvester.lune.payload import PayloadError, is_line, load, settle
from harvester.lune.responses import NOTHING, Answer
from harvester.lune.session import Call

_LONGEST_URL: Final = 2048
_LONGEST_SECRET: Final = 256


class WebhookClient(LuneClient):
    """A client that also manages the webhooks of the key's organisation.

    What makes or changes a secret is sent once: after an error the secret may be another one that
    nobody has seen, and rotating it again mends that.
    """

    async def fetch_webhooks(self) -> list[Subscription]:
        """Return the webhooks there are, their secrets shortened."""
        return await self._fetch(self._call("/webhooks"), _read_webhooks)

    async def register_webhook(self, url: str, account_ids: Sequence[str] = ()) -> Subscription:
        """Set up a webhook and return it with its whole secret, which is shown this once.

        Without ``account_ids`` it gets the events of all the organisation's accounts.
        """
        body: dict[str, Any] = {"url": url}
        if account_ids:
            body["account_ids"] = list(account_ids)
        call = replace(
            self._call("/webhooks"),
            method="POST",
            body=json.dumps(body).encode(),
            repeatable=False,
        )
        return await self._fetch(call, _read_webhook)

    async def rotate_webhook(self, webhook_id: str) -> Subscription:
        """Give a webhook a new secret and return it; the old one is no good from now on."""
        call = self._call(f"/webhooks/{_checked(webhook_id)}/rotate-secret")
        return await self._fetch(replace(call, method="PUT", repeatable=False), _read_webhook)

    async def remove_webhook(self, webhook_id: str) -> None:
        """End a webhook; ``NotFound`` when there is none."""
        call: Call = self._call(f"/webhooks/{_checked(webhook_id)}")
        await self._fetch(replace(call, method="DELETE", types=NOTHING), lambda _: None)


def _checked(webhook_id: str) -> str:
    if not is_identifier(webhook_id):
        raise ValueError("not an id: 1 to 64 letters, digits, dashes and underscores")
    return webhook_id


def _read_webhooks(answer: Answer) -> list[Subscription]:
    rows = load(answer.body)
    if not isinstance(rows, list):
        raise PayloadError("webhooks: not a list")
    return [_subscription(row) for row in rows]


def _read_webhook(answer: Answer) -> Subscription:
    return _subscription(load(answer.body))


def _subscription(row: object) -> Subscription:
    fields = settle(row)
    if not isinstance(fields, dict):
        raise PayloadError("webhook: not an object")
    for name, longest in (
        ("id", 64),
        ("url", _LONGEST_URL),
        ("account_type", 64),
        ("secret", _LONGEST_SECRET),
    ):
        if not is_line(fields.get(name), longest):
            raise PayloadError(f"webhook: {name}: not printable text")
    created_at = read_instant(fields.get("created_at"))
    account_ids = fields.get("account_ids") or []
    if created_at is None or not isinstance(fields.get("enabled"), bool):
        raise PayloadError("webhook: created_at or enabled: not as in the schema")
    if not isinstance(account_ids, list) or not all(isinstance(one, str) for one in account_ids):
        raise PayloadError("webhook: account_ids: not a list of texts")
    return Subscription(
        id=fields["id"],
        url=fields["url"],
        enabled=fields["enabled"],
        mode=fields["account_type"],
        created_at=created_at,
        account_ids=tuple(account_ids),
        secret=fields["secret"],
    )
