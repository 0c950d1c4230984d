"""Wire the announcer: the receivers of the configuration, open, with the ledger's outbox."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path

from harvester import __version__
from harvester.config.receivers import EventsSettings
from harvester.context import Stop
from harvester.domain.deliveries import Receiver
from harvester.events.command import CommandHook
from harvester.events.dispatch import Announcer
from harvester.events.http import HttpSender
from harvester.events.signing import read_signer
from harvester.ledger.database import Database
from harvester.ledger.outbox import SqlOutbox

_AT_ONCE = 4
"""Events on their way to one receiver: of different orders."""


@asynccontextmanager
async def open_announcer(
    events: EventsSettings,
    database: Database,
    path_of: Callable[[str], Path],
    clock: Callable[[], datetime],
    stop: Stop,
) -> AsyncIterator[Announcer]:
    """Open the ways to all receivers. ``ConfigurationError`` when a secret cannot be used."""
    receivers = []
    async with AsyncExitStack() as opened:
        for one in events.receivers:
            for secret in one.secrets:
                read_signer(secret)
            sender = HttpSender(
                one.url,
                one.secrets,
                clock=clock,
                agent=f"lune-harvester/{__version__}",
                allow_private=one.allow_private,
                width=_AT_ONCE,
            )
            await opened.enter_async_context(sender)
            receivers.append(Receiver(one.name, one.filter, sender, _AT_ONCE))
        for hook in events.hooks:
            command = CommandHook(hook.command, hook.timeout, path_of)
            receivers.append(Receiver(hook.name, hook.filter, command, 1))
        yield Announcer(SqlOutbox(database), receivers, clock=clock, stop=stop)
