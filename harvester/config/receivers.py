"""The configuration's [events]: who is told what, over HTTP or by running a command."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from harvester.config.secrets import Secret
from harvester.config.types import Duration
from harvester.domain.events import EventFilter, EventType
from harvester.domain.orders import is_identifier
from harvester.domain.urls import check_receiver_url

LONGEST_HOOK = timedelta(minutes=5)
"""A step that shows no sign of life for fifteen minutes is taken to hang."""


def _one_or_more(value: object) -> object:
    return (value,) if isinstance(value, (str, Path)) else value


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=True
    )


class _Subscription(_Part):
    """A name for ever, and which events are wanted; no types or accounts means all."""

    name: str
    types: tuple[EventType, ...] = ()
    accounts: tuple[str, ...] = ()

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not is_identifier(value):
            raise ValueError("should be 1 to 64 letters, digits, - and _")
        return value

    @property
    def filter(self) -> EventFilter:
        """The events that are wanted."""
        return EventFilter(
            frozenset(map(str, self.types)) or None, frozenset(self.accounts) or None
        )


class ReceiverSettings(_Subscription):
    """A URL that events are sent to, signed with each of the secrets."""

    # Before url, whose rule depends on it.
    allow_private: bool = False
    url: str
    secret_file: Annotated[
        tuple[Path, ...], BeforeValidator(_one_or_more), Field(min_length=1, max_length=4)
    ]

    @field_validator("url")
    @classmethod
    def _url(cls, value: str, info: Any) -> str:
        check_receiver_url(value, allow_private=info.data.get("allow_private", False))
        return value

    @property
    def secrets(self) -> list[Secret]:
        """What to sign with, read when asked for."""
        name = f"events.receivers.{self.name}.secret"
        return [Secret(name, None, file) for file in self.secret_file]


class HookSettings(_Subscription):
    """A command that is run for each event; not by a shell."""

    command: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    timeout: Duration = timedelta(seconds=30)

    @field_validator("timeout")
    @classmethod
    def _timeout(cls, value: timedelta) -> timedelta:
        if value > LONGEST_HOOK:
            raise ValueError("should be at most 5m; what takes longer is the command's to put off")
        return value


class EventsSettings(_Part):
    """Who is told what happens; nobody unless named. The feed tells everyone who asks."""

    receivers: tuple[ReceiverSettings, ...] = ()
    hooks: tuple[HookSettings, ...] = ()

    @field_validator("hooks")
    @classmethod
    def _names(cls, value: tuple[HookSettings, ...], info: Any) -> tuple[HookSettings, ...]:
        names = Counter(one.name for one in (*info.data.get("receivers", ()), *value))
        twice = sorted(name for name, count in names.items() if count > 1)
        if twice:
            raise ValueError(f"each receiver and hook needs a name of its own: {', '.join(twice)}")
        return value

    @property
    def filters(self) -> dict[str, EventFilter]:
        """Which events each of the receivers and hooks wants, by name."""
        return {one.name: one.filter for one in (*self.receivers, *self.hooks)}
