"""Events: each move of an order pushed to the webhooks that want it, as Lune's guide has it.

At least once, strictly in order within an account, several at a time; what is not acknowledged
holds back all behind it and is tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

from harvester.sandbox.documents import Document, timestamp
from harvester.sandbox.faults import Faults
from harvester.sandbox.lives import COMPLETE, RETIRING
from harvester.sandbox.webhooks import Webhook, Webhooks
from harvester.sandbox.world import Order, World, new_id

LARGEST_BATCH = 10
"""Events in one request."""

_TICK_S = 0.05
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
_DEADLINE = aiohttp.ClientTimeout(total=30)  # Lune's webhooks guide

_Queue = deque[Document]


def signature(secret: str, at: int, body: bytes) -> str:
    """Return the signature of a body that is sent at a Unix second, in hex."""
    return hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()


@dataclass(slots=True)
class Attempt:
    """A request that was made: to which webhook, its events, and the status it was answered.

    ``status`` is 0 when there was no answer.
    """

    webhook_id: str
    events: list[Document]
    status: int


class Announcer:
    """Watches the orders and pushes what happens to them, while it runs.

    ``document`` gives an order as it is served in a status. ``attempts`` are all requests so far.
    """

    def __init__(
        self,
        world: World,
        webhooks: Webhooks,
        faults: Faults,
        document: Callable[[Order, str], Document],
    ) -> None:
        self._world = world
        self._webhooks = webhooks
        self._faults = faults
        self._document = document
        self._queues: defaultdict[tuple[str, str], _Queue] = defaultdict(deque)
        self._pushing: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._count = 0
        self.attempts: list[Attempt] = []

    async def run(self) -> None:
        """Announce until cancelled."""
        async with aiohttp.ClientSession(timeout=_DEADLINE, trust_env=False) as session:
            try:
                while True:
                    self._look()
                    for key, queue in list(self._queues.items()):
                        if queue and (key not in self._pushing or self._pushing[key].done()):
                            work = self._push(session, key, queue)
                            self._pushing[key] = asyncio.create_task(work, name="push")
                    await asyncio.sleep(_TICK_S)
            finally:
                for task in self._pushing.values():
                    task.cancel()
                await asyncio.gather(*self._pushing.values(), return_exceptions=True)

    def _look(self) -> None:
        """Queue an event for each status that an order entered since the last look."""
        if not self._webhooks.kept:
            return
        before, reached = self._webhooks.reached, self._world.reached()
        self._webhooks.reached = reached
        for order_id, at in reached.items():
            for index in range(before.get(order_id, at - 1) + 1, at + 1):
                order = self._world.order(order_id)
                self._announce(order, order.life.path[index])

    def _announce(self, order: Order, status: str) -> None:
        order_event = "completed" if status == COMPLETE else status
        data: Document = {"order": self._document(order, status)}
        made = [self._event(order, f"order.{order_event}", data)]
        if status in (RETIRING, COMPLETE):
            made.append(self._event(order, *self._allocation(order, status)))
        for webhook in self._webhooks.kept.values():
            if webhook.wants(order.account_id) and not self._faults.strike("lost-events"):
                self._queues[webhook.id, order.account_id] += made

    def _event(self, order: Order, event_type: str, data: Document) -> Document:
        self._count += 1
        return {
            "api_version": "v1",
            "account_id": order.account_id,
            "event_id": new_id(self._world.rng),
            "event_type": event_type,
            "sequence": f"{timestamp(self._world.clock.now())} {self._count:09d}",
            "data": data,
        }

    def _allocation(self, order: Order, status: str) -> tuple[str, Document]:
        state = "new" if status == RETIRING else "retired"
        allocation = {
            "id": new_id(self._world.rng),
            "order_id": order.id,
            "project_id": new_id(self._world.rng),
            "quantity": "1",
            "status": state,
            "created_at": timestamp(self._world.clock.now()),
        }
        return f"allocation.{state}", {"allocation": allocation}

    async def _push(
        self, session: aiohttp.ClientSession, key: tuple[str, str], queue: _Queue
    ) -> None:
        """Send a queue's events until it is empty, each batch until it is acknowledged."""
        pause = _FIRST_PAUSE_S
        while queue:
            webhook = self._webhooks.kept.get(key[0])
            if webhook is None or not webhook.enabled:
                queue.clear()
                return
            if late := self._faults.strike("late-events"):
                await asyncio.sleep(float(late.arg or 0))
            batch = [queue[index] for index in range(min(len(queue), LARGEST_BATCH))]
            if self._faults.strike("disordered-events"):
                batch.reverse()
            status = await self._send(session, webhook, batch)
            if status // 100 != 2:
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_S)
                continue
            pause = _FIRST_PAUSE_S
            if not self._faults.strike("repeated-events"):
                for _ in batch:
                    queue.popleft()

    async def _send(
        self, session: aiohttp.ClientSession, webhook: Webhook, batch: list[Document]
    ) -> int:
        body = json.dumps({"events": batch}).encode()
        stale = self._faults.strike("stale-events")
        at = int(time.time() - float((stale and stale.arg) or 0))
        headers = {
            "Content-Type": "application/json",
            "Lune-HMAC": f"timestamp={at},organisation={self._world.organisation_id},"
            f"v1={signature(webhook.secret, at, body)}",
        }
        attempt = Attempt(webhook.id, batch, 0)
        self.attempts.append(attempt)
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with session.post(
                webhook.url, data=body, headers=headers, allow_redirects=False
            ) as answer:
                attempt.status = answer.status
        return attempt.status
