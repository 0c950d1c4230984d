"""A ledger, receivers on loopback and an announcer between them, with a clock that tests move."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harvester.config.secrets import Secret
from harvester.context import Stop
from harvester.domain import deliveries as announcing
from harvester.domain.events import EventFilter
from harvester.events.dispatch import Announcer
from harvester.events.http import HttpSender
from harvester.events.signing import make_secret
from harvester.ledger import migrate
from harvester.ledger.database import Database
from harvester.ledger.outbox import SqlOutbox, list_events
from harvester.ledger.sql import SqlLedger
from tests.contract.ledger_cases import NOW, Kept, order
from tests.integration.receiver import Receiver

ANY = EventFilter()


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


class Scene:
    """A ledger, receivers and an announcer on them, with a clock that tests move."""

    def __init__(self, folder: Path) -> None:
        path = folder / "ledger.db"
        migrate.upgrade(path)
        self.database = Database(path)
        self.kept = Kept(SqlLedger(self.database), self.database)
        self.clock = Clock()
        self.stop = Stop()
        file = folder / "secret"
        file.write_text(make_secret())
        file.chmod(0o600)
        self.secret = Secret("secret", None, file)
        self.senders: list[HttpSender] = []

    async def announcer(self, *receivers: announcing.Receiver) -> Announcer:
        one = Announcer(
            SqlOutbox(self.database),
            receivers,
            clock=self.clock,
            stop=self.stop,
            luck=lambda: 0.5,
        )
        await one.begin()
        return one

    async def way_to(
        self,
        receiver: Receiver,
        name: str = "billing",
        wanted: EventFilter = ANY,
        **more: Any,
    ) -> announcing.Receiver:
        options: dict[str, Any] = {"allow_private": True, "agent": "test"} | more
        sender = HttpSender(receiver.url, [self.secret], clock=lambda: datetime.now(UTC), **options)
        self.senders.append(await sender.__aenter__())
        return announcing.Receiver(name, wanted, sender)

    async def move(self, status: str, *order_ids: str) -> None:
        await self.kept.see(*(order(one, status) for one in order_ids), at=self.clock.now)

    async def lacking(self, name: str = "billing") -> list[int]:
        rows = list_events(self.database, 0, {name: EventFilter()})
        return [event.seq async for event, lacking in rows if lacking]

    async def next_try(self) -> datetime:
        """Return when the one event that is lacking is due."""
        ((_, (one,)),) = [row async for row in list_events(self.database, 0, {})]
        assert one.next_try_at is not None
        return one.next_try_at
