"""The sandbox as a server, and as an object to its embedding program."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Mapping
from decimal import Decimal
from types import TracebackType
from typing import Self

from aiohttp import web
from aiohttp.typedefs import Handler

from harvester.sandbox.announcing import Announcer
from harvester.sandbox.clock import Clock
from harvester.sandbox.control import Control
from harvester.sandbox.documents import Document
from harvester.sandbox.faults import Faults
from harvester.sandbox.gate import Gate
from harvester.sandbox.journal import Journal
from harvester.sandbox.lives import STATUSES
from harvester.sandbox.mischief import at_the_edge, send_part
from harvester.sandbox.options import SandboxOptions
from harvester.sandbox.population import create_accounts, create_orders
from harvester.sandbox.pricing import Purchase
from harvester.sandbox.refusals import ApiError
from harvester.sandbox.routes import ACCOUNT, Api
from harvester.sandbox.webhooks import Webhooks
from harvester.sandbox.world import Account, Order, World

LARGEST_REQUEST = 100_000
"""Bytes of a request body; more is answered 413 (Lune's schema)."""

_SHUTDOWN_S = 0.5


class Sandbox:
    """A local Lune API. ``monotonic`` is injectable, so that tests move its time by hand.

    It is an asynchronous context manager that listens on a free port of 127.0.0.1; ``start``
    takes another address. ``faults``, ``journal``, ``clock``, ``webhooks`` and ``announcer`` may be
    used at any time.
    """

    def __init__(
        self,
        options: SandboxOptions | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options = options or SandboxOptions()
        self.key = self.options.key
        self.base_url = ""
        # Simulated fates, no secrets: a seed must give the same world again.
        rng = random.Random(self.options.seed)  # noqa: S311 - repeatable lives, no secrets
        self.clock = Clock(self.options.speed, self.options.starts_at, monotonic)
        self.journal = Journal(monotonic)
        self.faults = Faults(random.Random(self.options.seed))  # noqa: S311 - repeatable faults, no secrets
        for fault in self.options.faults:
            self.faults.add(fault)
        self._world = World(self.clock, rng, self.options.mode)
        create_accounts(self._world, self.options, rng)
        create_orders(self._world, self.options.orders, rng)
        self._gate = Gate(self.options, self._world, self.faults)
        self._api = Api(self._world, self.options, self.faults, lambda: self.base_url)
        self.webhooks = Webhooks(self._world, rng)
        self.announcer = Announcer(self._world, self.webhooks, self.faults, self._api.document_in)
        self._announcing: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._runner: web.AppRunner | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listen and return the base URL, which ends in ``/v1``. Raises ``OSError``."""
        self._stopping.clear()
        self._announcing = asyncio.create_task(self.announcer.run(), name="announcer")
        self._runner = web.AppRunner(
            self._application(),
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=_SHUTDOWN_S,
        )
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError:
            await self.stop()
            raise
        # A name may stand for several addresses, and port 0 for another port at each.
        address, bound, *_ = self._runner.addresses[0]
        self.base_url = f"http://{f'[{address}]' if ':' in address else address}:{bound}/v1"
        return self.base_url

    async def stop(self) -> None:
        """Stop listening and drop what is still open. Idempotent."""
        self._stopping.set()
        if self._announcing is not None:
            self._announcing.cancel()
            await asyncio.wait({self._announcing})
            self._announcing = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def accounts(self) -> list[Account]:
        """The accounts and client accounts the key may act on, its default account first."""
        return self._world.own_accounts()

    def orders(self, account_id: str | None = None) -> list[Order]:
        """Return the orders of an account, the default one unless given, newest first."""
        return self._world.orders(account_id or self.accounts[0].id)

    def order(self, order_id: str) -> Order:
        """Return an order. Raises ``KeyError`` when there is none."""
        try:
            return self._world.order(order_id)
        except ApiError:
            raise KeyError(order_id) from None

    def status(self, order_id: str) -> str:
        """Return an order's true status now, whatever faults serve."""
        return self.order(order_id).life.stage(self.clock.now())[0]

    def create_order(
        self,
        status: str = "received",
        *,
        account_id: str | None = None,
        tonnes: str = "1.25",
        idempotency_key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        hold: bool = False,
    ) -> Order:
        """Create an order that enters ``status`` now and lives on, or keeps it if held.

        It is listed where its creation puts it: below newer ones, unless it is received now.
        Raises ``ValueError`` for a status Lune does not document.
        """
        if status not in STATUSES:
            raise ValueError(f"status is one of {', '.join(STATUSES)}")
        return self._world.create_order_in(
            self._world.accounts[account_id or self.accounts[0].id],
            status,
            Purchase(Decimal(tonnes)),
            hold=hold,
            idempotency_key=idempotency_key,
            metadata=metadata,
        )

    def move_order(self, order_id: str, status: str) -> None:
        """Put an order into ``status`` now, legal or not, where it stays."""
        order = self.order(order_id)
        order.life = order.life.turned(status, self.clock.now())

    def document(self, order_id: str) -> Document:
        """Return an order as it would be served now, faults included."""
        return self._api.document(self.order(order_id))

    def certificate(self, order_id: str) -> bytes | None:
        """Return the bytes of an order's certificate now; None when there is none yet."""
        return self._api.certificate(self.order(order_id))

    def _application(self) -> web.Application:
        api = web.Application(middlewares=[self._front])
        api.add_routes(self._api.routes())
        api.add_routes(self.webhooks.routes())
        root = web.Application(client_max_size=LARGEST_REQUEST)
        root.add_routes(Control(self.clock, self.faults, self.journal).routes())
        root.add_subapp("/v1", api)
        root.on_response_prepare.append(_name_the_ray)
        return root

    @web.middleware
    async def _front(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        path = resource.canonical.removeprefix("/v1") if resource else "(unknown)"
        endpoint = f"{request.method} {path}"
        self.journal.arrive()
        try:
            response = await self._answer(request, handler)
        except asyncio.CancelledError:
            self.journal.record(endpoint, 0)
            raise
        self.journal.record(endpoint, response.status)
        return response

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        response: web.StreamResponse | None = await at_the_edge(self.faults, self._stopping)
        if response is not None:
            return response
        try:
            request[ACCOUNT] = self._gate.admit(request)
            response = await handler(request)
        except ApiError as refusal:
            response = refusal.response()
        except web.HTTPException as error:
            # A method the path does not have is an endpoint that does not exist.
            response = web.Response(status=404 if error.status == 405 else error.status)
        if isinstance(response, web.Response) and response.body and self.faults.strike("reset"):
            return await send_part(request, response, reset=True)
        return response


async def _name_the_ray(_: web.Request, response: web.StreamResponse) -> None:
    response.headers["CF-Ray"] = f"{secrets.token_hex(8)}-LHR"
    response.headers["Server"] = "cloudflare"
