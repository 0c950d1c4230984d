"""A ledger, receivers on loopback and a dispatcher between them, with a clock that tests move."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harvester.config.secrets import Secret
from harvester.context import Context, Stop
from harvester.domain.events import EventFilter
from harvester.events import dispatch
from harvester.events.dispatch import Dispatcher
from harvester.events.http import HttpSender, SenderOptions
from harvester.events.signing import make_secret
from harvester.ledger import migrate
from harvester.ledger.database import Database
from harvester.ledger.outbox import list_events
from tests.contract.ledger_cases import NOW, SCHEDULE, Kept, order
from tests.integration.receiver import Receiver

ANY = EventFilter()


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


class Scene:
    """A ledger, receivers and a dispatcher to them, with a clock that tests move."""

    def __init__(self, folder: Path) -> None:
        path = folder / "ledger.db"
        migrate.upgrade(path)
        self.database = Database(path)
        self.kept = Kept(self.database)
        self.clock = Clock()
        self.stop = Stop()
        file = folder / "secret"
        file.write_text(make_secret())
        file.chmod(0o600)
        self.secret = Secret("secret", None, file)
        self.senders: list[HttpSender] = []

    async def dispatcher(self, *receivers: dispatch.Receiver) -> Dispatcher:
        context = Context(SCHEDULE, self.stop, self.clock)
        one = Dispatcher(self.database, receivers, context, jitter=lambda: 0.5)
        await one.register()
        return one

    async def way_to(
        self,
        receiver: Receiver,
        name: str = "billing",
        wanted: EventFilter = ANY,
        **more: Any,
    ) -> dispatch.Receiver:
        options = replace(SenderOptions(allow_private=True, agent="test"), **more)
        sender = HttpSender(receiver.url, [self.secret], lambda: datetime.now(UTC), options)
        self.senders.append(sender)
        return dispatch.Receiver(name, wanted, sender)

    async def move(self, status: str, *order_ids: str) -> None:
        await self.kept.see(*(order(one, status) for one in order_ids), at=self.clock.now)

    async def undelivered(self, name: str = "billing") -> list[int]:
        """Return the numbers of the events that a receiver has not accepted."""
        return [
            event.seq
            async for event, undelivered in list_events(self.database)
            if name in {one.receiver for one in undelivered}
        ]

    async def next_attempt(self) -> datetime:
        """Return when the one event that is undelivered is due."""
        ((_, (one,)),) = [row async for row in list_events(self.database)]
        assert one.next_attempt_at is not None
        return one.next_attempt_at
