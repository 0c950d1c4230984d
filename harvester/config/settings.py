"""What can be configured, with defaults and what is allowed; ``configuration.py`` reads it.

Nothing is read from a secret's file here: a command that only reads the ledger needs no key, and a
rotated key is found by reading again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
)

from harvester.config.secrets import Secret
from harvester.config.types import Address, Duration, LearnedDuration, parse_address
from harvester.domain.certificate_names import DEFAULT_LAYOUT, CertificateNames
from harvester.domain.errors import ConfigurationError
from harvester.domain.events import EventFilter, EventType
from harvester.domain.orders import is_identifier
from harvester.domain.schedule import WEIGHTS
from harvester.domain.urls import check_base_url, check_receiver_url

Weight = Annotated[float, Field(gt=0, le=100)]
"""How readily an order leaves a status: its chance in a second, times its seconds in there."""


LONGEST_HOOK = timedelta(minutes=5)
"""A step that shows no sign of life for fifteen minutes is taken to hang."""


def _one_or_more(value: object) -> object:
    return (value,) if isinstance(value, (str, Path)) else value


def _split(value: object) -> object:
    # The environment has no lists: HARVESTER_LUNE__ACCOUNTS=default,acc1
    return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=True
    )


class LuneSettings(_Section):
    """How to reach Lune, as whom, how fast."""

    base_url: str = "https://api.lune.co/v1"
    api_key: SecretStr | None = None
    api_key_file: Path | None = None
    accounts: Annotated[tuple[str, ...], BeforeValidator(_split)] = ("default",)
    rate_limit: float = Field(default=12, gt=0, le=100_000)

    @field_validator("base_url")
    @classmethod
    def _base_url(cls, value: str) -> str:
        check_base_url(value)
        return value

    @field_validator("accounts")
    @classmethod
    def _accounts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError('should name at least one account, for example ["default"]')
        if "all" in value and len(value) > 1:
            raise ValueError('should be ["all"] alone, or "default" and account ids')
        if any(not is_identifier(account) for account in value):
            raise ValueError('should hold "default", "all" or account ids (letters, digits, - _)')
        return tuple(dict.fromkeys(value))


class DatabaseSettings(_Section):
    """Where the ledger is."""

    url: str = "sqlite:////var/lib/harvester/harvester.db"

    @field_validator("url")
    @classmethod
    def _sqlite(cls, value: str) -> str:
        if value.startswith(("postgresql://", "postgresql+asyncpg://")):
            raise ValueError("this release keeps its ledger in SQLite: sqlite:////path/to/file.db")
        if not value.startswith("sqlite:///") or len(value) == len("sqlite:///"):
            raise ValueError("should be sqlite:////absolute/path/to/file.db")
        return value

    @property
    def path(self) -> Path:
        """The ledger's file."""
        return Path(unquote(self.url.removeprefix("sqlite:///")))


class StorageSettings(_Section):
    """Where certificates go and how they are named."""

    url: str = "file:///var/lib/harvester/certificates"
    layout: str = DEFAULT_LAYOUT

    @field_validator("url")
    @classmethod
    def _directory(cls, value: str) -> str:
        if value.startswith("s3://"):
            raise ValueError("this release stores in a directory: file:///path/to/folder")
        parts = urlsplit(value)
        if parts.scheme != "file" or parts.netloc or not parts.path.startswith("/"):
            raise ValueError("should be file:///absolute/path/to/folder")
        return value

    @field_validator("layout")
    @classmethod
    def _layout(cls, value: str) -> str:
        try:
            CertificateNames(value)
        except ConfigurationError as error:
            raise ValueError(str(error)) from None
        return value

    @property
    def path(self) -> Path:
        """The archive's root folder."""
        return Path(unquote(urlsplit(self.url).path))


class HarvestSettings(_Section):
    """How often to check."""

    sweep_interval: Duration = timedelta(minutes=15)
    longest_interval: Duration = timedelta(hours=6)
    interim: bool = False
    stuck_received: LearnedDuration = None
    stuck_placed: LearnedDuration = None
    stuck_paid: LearnedDuration = None
    stuck_retiring: LearnedDuration = None
    weight_received: Weight = WEIGHTS["received"]
    weight_placed: Weight = WEIGHTS["placed"]
    weight_paid: Weight = WEIGHTS["paid"]
    weight_retiring: Weight = WEIGHTS["retiring"]

    @property
    def weights(self) -> Mapping[str, float]:
        """How readily an order leaves a status, by status, until the ledger tells better."""
        return self._by_status("weight_")

    @property
    def stuck(self) -> Mapping[str, timedelta | None]:
        """How long an order may stay in a status, by status; None to learn it."""
        return self._by_status("stuck_")

    def _by_status(self, prefix: str) -> dict[str, Any]:
        kept = self.model_dump()
        return {name.removeprefix(prefix): kept[name] for name in kept if name.startswith(prefix)}

    @field_validator("longest_interval")
    @classmethod
    def _not_shorter(cls, value: timedelta, info: ValidationInfo) -> timedelta:
        if value < info.data.get("sweep_interval", value):
            raise ValueError("should not be shorter than sweep_interval")
        return value


class HttpSettings(_Section):
    """The listener for health, metrics and the API; an empty ``listen`` for none."""

    listen: str = "127.0.0.1:8080"
    token: SecretStr | None = None
    token_file: Path | None = None

    @field_validator("listen")
    @classmethod
    def _listen(cls, value: str) -> str:
        parse_address(value)
        return value

    @property
    def address(self) -> Address | None:
        """Where to listen; None for nowhere."""
        return parse_address(self.listen)


class WebhookSettings(_Section):
    """Lune's webhooks: taken when there is a secret; ``url`` is where Lune reaches us."""

    secret: SecretStr | None = None
    secret_file: Path | None = None
    url: str = ""

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        if value:
            check_base_url(value)
        return value


class _Subscription(_Section):
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
    def _url(cls, value: str, info: ValidationInfo) -> str:
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


class EventsSettings(_Section):
    """Who gets events; nobody unless named. The feed has them for everyone who asks."""

    receivers: tuple[ReceiverSettings, ...] = ()
    hooks: tuple[HookSettings, ...] = ()

    @field_validator("hooks")
    @classmethod
    def _names(
        cls, value: tuple[HookSettings, ...], info: ValidationInfo
    ) -> tuple[HookSettings, ...]:
        names = Counter(one.name for one in (*info.data.get("receivers", ()), *value))
        twice = sorted(name for name, count in names.items() if count > 1)
        if twice:
            raise ValueError(f"each receiver and hook needs a name of its own: {', '.join(twice)}")
        return value

    @property
    def filters(self) -> dict[str, EventFilter]:
        """Which events each of the receivers and hooks wants, by name."""
        return {one.name: one.filter for one in (*self.receivers, *self.hooks)}


class LogSettings(_Section):
    """What is logged and how: ``auto`` is console on a terminal and JSON lines elsewhere."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class Settings(_Section):
    """The whole configuration; ``load.load`` makes it."""

    lune: LuneSettings = LuneSettings()
    database: DatabaseSettings = DatabaseSettings()
    storage: StorageSettings = StorageSettings()
    harvest: HarvestSettings = HarvestSettings()
    http: HttpSettings = HttpSettings()
    webhook: WebhookSettings = WebhookSettings()
    events: EventsSettings = EventsSettings()
    log: LogSettings = LogSettings()

    @property
    def api_key(self) -> Secret:
        """The key to Lune, read when asked for."""
        return Secret("lune.api_key", self.lune.api_key, self.lune.api_key_file)

    @property
    def http_token(self) -> Secret | None:
        """What who uses the API has to show, read when asked for; None when none is configured."""
        secret = Secret("http.token", self.http.token, self.http.token_file)
        return secret if self.http.token is not None or secret.file() is not None else None

    @property
    def webhook_secrets(self) -> Secret | None:
        """What Lune's webhooks are signed with; None when none is configured."""
        secret = Secret("webhook.secret", self.webhook.secret, self.webhook.secret_file)
        return secret if self.webhook.secret is not None or secret.file() is not None else None
