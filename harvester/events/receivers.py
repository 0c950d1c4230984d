"""The receivers of the configuration, and the ways to them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from harvester import __version__
from harvester.config.settings import EventsSettings
from harvester.events.command import CommandHook
from harvester.events.dispatch import Receiver
from harvester.events.http import HttpSender, SenderOptions
from harvester.events.signing import read_signer

_AT_ONCE = 4
"""Events on their way to one receiver: of different orders."""


def make_receivers(
    events: EventsSettings, locate: Callable[[str], Path], clock: Callable[[], datetime]
) -> list[Receiver]:
    """Make all receivers. ``ConfigurationError`` when a secret cannot be used.

    ``locate`` turns a certificate's path in the archive into where it lies.
    """
    receivers = []
    for one in events.receivers:
        for secret in one.secrets:
            read_signer(secret)
        options = SenderOptions(
            allow_private=one.allow_private, width=_AT_ONCE, agent=f"lune-harvester/{__version__}"
        )
        sender = HttpSender(one.url, one.secrets, clock, options)
        receivers.append(Receiver(one.name, one.filter, sender, _AT_ONCE))
    for hook in events.hooks:
        command = CommandHook(hook.command, hook.timeout, locate)
        receivers.append(Receiver(hook.name, hook.filter, command, 1))
    return receivers
