"""Lune's webhooks: taken when they are genuine and durably written, and acted on afterwards.

Nothing is asked of Lune and no file is touched while Lune waits: an event becomes a row and a
check that is due, in one transaction, and only then does the answer say that it was taken. What is
refused here comes again, and every check that a lost event would have caused is only late.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Final

import structlog
from aiohttp import web

from harvester.context import Context
from harvester.domain.errors import ConfigurationError, LedgerUnavailable
from harvester.domain.lune_events import WEBHOOK_PATH, LuneWebhook
from harvester.ledger.accounts import read_accounts
from harvester.ledger.database import Database
from harvester.ledger.hints import RecordedWebhooks, record_webhooks
from harvester.lune.webhooks import NotGenuineError, Signed, read_events, verify
from harvester.web.problems import Problem, read_body

log = structlog.get_logger()

_Pending = tuple[LuneWebhook, asyncio.Future[None]]

LARGEST_BODY: Final = 2**20
"""Bytes of a webhook's body."""

MOST_AT_ONCE: Final = 224
"""Genuine webhooks that wait for the ledger at a time; one more is sent away, to come again."""

SMALL_BODY: Final = 32 * 1024
"""Bytes of a body that are never too many: webhooks are smaller by custom."""

MOST_LARGE: Final = 8 * 2**20
"""Bytes beyond that, of all bodies at a time."""

_SECRETS_SECONDS: Final = 1.0
_QUIET_SECONDS: Final = 60.0
_LATEST: Final = 253_402_300_799
"""The last second that a date can hold, in the year 9999."""

OUTCOMES: Final = ("taken", "stale", "refused", "busy")
"""What can become of a request."""


class LuneWebhooks:
    """The handler. ``secrets`` reads the secrets anew, newest first; ``wake`` runs a step now.

    ``outcomes`` counts requests by what became of them; the counts only grow.
    """

    def __init__(
        self,
        database: Database,
        secrets: Callable[[], Sequence[str]],
        context: Context,
        wake: Callable[[str], None],
    ) -> None:
        self._database = database
        self._read_secrets = secrets
        self._clock = context.clock
        self._timeout = context.limits.webhook_write
        self._wake = wake
        self._secrets: Sequence[str] = ()
        self._secrets_read_at = -math.inf
        self._complained_at = -math.inf
        self._organisations: set[str | None] = set()
        self._in_hand = 0
        self._large = 0
        self._pending: list[_Pending] = []
        self._writing: asyncio.Task[None] | None = None
        self.outcomes: Counter[str] = Counter()

    def routes(self) -> list[web.RouteDef]:
        """Return the route that Lune posts to."""
        return [web.post(WEBHOOK_PATH, self.take)]

    async def take(self, request: web.Request) -> web.Response:
        """Answer 200 once everything in the request is durable; a ``Problem`` otherwise."""
        try:
            outcome = await self._take(request)
        except Problem as problem:
            self.outcomes["busy" if problem.status == 503 else "refused"] += 1
            raise
        self.outcomes[outcome] += 1
        return web.Response()

    async def _take(self, request: web.Request) -> str:
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise Problem(415, "a webhook is not compressed: its bytes are what is signed")
        headers = request.headers.getall("Lune-HMAC", [])
        if not headers:
            self._complain("no signature")
            raise Problem(401)  # unread: what nobody signed takes no room
        async with self._reading(request) as body:
            signed = self._verify(headers, body)
            webhook = self._webhook(signed, body)
            await self._record_in_time(signed, webhook)
        return "stale" if webhook.is_stale else "taken"

    @asynccontextmanager
    async def _reading(self, request: web.Request) -> AsyncIterator[bytes]:
        """Read the body and keep it counted while inside, as far as it is large."""
        counted = 0

        def hold(size: int) -> None:
            nonlocal counted
            more = max(size - SMALL_BODY, 0) - counted
            if self._large + more > MOST_LARGE:
                raise _too_many()
            counted += more
            self._large += more

        try:
            yield await read_body(request, LARGEST_BODY, hold)
        finally:
            self._large -= counted

    async def _record_in_time(self, signed: Signed, webhook: LuneWebhook) -> None:
        if self._in_hand >= MOST_AT_ONCE:
            raise _too_many()
        self._in_hand += 1
        try:
            await self._require_our_organisation(signed)
            async with asyncio.timeout(self._timeout):
                await self._record(webhook)
        except (TimeoutError, LedgerUnavailable):
            raise Problem(503, "the ledger takes nothing just now") from None
        finally:
            self._in_hand -= 1

    def _verify(self, headers: Sequence[str], body: bytes) -> Signed:
        now = time.monotonic()
        if now - self._secrets_read_at >= _SECRETS_SECONDS:
            try:
                self._secrets = self._read_secrets()
            except ConfigurationError:
                raise Problem(503, "the configured secret cannot be read") from None
            self._secrets_read_at = now
        try:
            return verify(headers, body, self._secrets)
        except NotGenuineError as error:
            self._complain(str(error))
            raise Problem(401) from None

    async def _require_our_organisation(self, signed: Signed) -> None:
        """Refuse what another organisation signed, as far as it is known which one is ours."""
        if signed.organisation is None or signed.organisation in self._organisations:
            return
        found = {account.organisation_id for account in await read_accounts(self._database)} - {
            None
        }
        self._organisations = found
        if found and signed.organisation not in found:
            self._complain("another organisation")
            raise Problem(401)

    def _complain(self, rule: str) -> None:
        # At most once a minute: a stranger could fill the log otherwise.
        if time.monotonic() - self._complained_at >= _QUIET_SECONDS:
            self._complained_at = time.monotonic()
            log.warning("webhook refused", reason=rule, refused=self.outcomes["refused"] + 1)

    def _webhook(self, signed: Signed, body: bytes) -> LuneWebhook:
        now = self._clock()
        return LuneWebhook(
            signed_at=datetime.fromtimestamp(min(signed.timestamp, _LATEST), UTC),
            received_at=now,
            is_stale=signed.is_stale(now.timestamp()),
            events=read_events(body),
        )

    async def _record(self, webhook: LuneWebhook) -> None:
        """Return once the webhook is durable; all that wait share one transaction."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append((webhook, written))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write(), name="webhooks")
        await written

    async def _write(self) -> None:
        while self._pending:
            batch, self._pending = self._pending, []
            fault: BaseException | None = None
            try:
                recorded = await record_webhooks(self._database, [one for one, _ in batch])
            except Exception as error:  # noqa: BLE001 - raised by each of those who wait
                fault = error
            for _, written in batch:
                if written.done():
                    continue  # whoever waited has given up
                if fault is None:
                    written.set_result(None)
                else:
                    written.set_exception(fault)
            if fault is None:
                self._act_on(recorded)

    def _act_on(self, recorded: RecordedWebhooks) -> None:
        if recorded.unreadable:
            log.warning("webhook events unreadable", events=recorded.unreadable)
        if recorded.new:
            log.debug(
                "webhook received",
                events=recorded.new,
                repeated=recorded.repeated,
                hints=recorded.hints,
            )
        if recorded.hints:
            self._wake("hints")

    async def close(self) -> None:
        """Wait for what is being written."""
        if self._writing is not None:
            await asyncio.wait({self._writing})


def _too_many() -> Problem:
    return Problem(503, "too many at a time", headers={"Retry-After": "1"})
