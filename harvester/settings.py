"""Configuration: TOML, then secret files, then the environment; every wrong key is named.

Nothing is read from a secret file while loading: a command that only reads the ledger needs no
key, and a rotated key is found by reading again.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
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
    ValidationError,
    field_validator,
)

from harvester.archive.layout import Layout
from harvester.domain.addresses import check_base_url
from harvester.domain.errors import ConfigurationError
from harvester.domain.events import EVENT_VARIABLES
from harvester.domain.orders import is_identifier
from harvester.durations import Duration, LearnedDuration
from harvester.secret import Secret
from harvester.subscriptions import EventsSettings
from harvester.web.address import Address, parse_address

PREFIX = "HARVESTER_"
NOT_SETTINGS = frozenset({"HARVESTER_CONFIG", "HARVESTER_REQUIRE_ALL"}) | EVENT_VARIABLES
"""Variables with our prefix that are no configuration keys (those of the test suite too)."""

SECRETS = {("lune", "api_key"), ("http", "token"), ("webhook", "secret")}


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
    layout: str = "{account_id}/{created:%Y-%m}/{order_id}"

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
            Layout(value)
        except ConfigurationError as error:
            raise ValueError(str(error)) from None
        return value

    @property
    def path(self) -> Path:
        """The archive's root folder."""
        return Path(unquote(urlsplit(self.url).path))


class HarvestSettings(_Section):
    """How often to look."""

    sweep_interval: Duration = timedelta(minutes=15)
    longest_interval: Duration = timedelta(hours=6)
    interim: bool = False
    stuck_received: LearnedDuration = None
    stuck_placed: LearnedDuration = None
    stuck_paid: LearnedDuration = None
    stuck_retiring: LearnedDuration = None

    @property
    def stuck(self) -> Mapping[str, timedelta | None]:
        """How long an order may stay in a status, by status; None to learn it."""
        kept = self.model_dump()
        return {name.removeprefix("stuck_"): kept[name] for name in kept if "stuck_" in name}

    @field_validator("longest_interval")
    @classmethod
    def _not_shorter(cls, value: timedelta, info: Any) -> timedelta:
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


class LogSettings(_Section):
    """What is logged and how: ``auto`` is console on a terminal and JSON lines elsewhere."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class Settings(_Section):
    """The whole configuration; make it with :func:`load`."""

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


def find_config(given: Path | None) -> Path | None:
    """Return the configuration file to read: given, ``HARVESTER_CONFIG``, ./, /etc/harvester/.

    ConfigurationError when a named file does not exist; None when none was named or found.
    """
    if given is None and os.environ.get("HARVESTER_CONFIG"):
        given = Path(os.environ["HARVESTER_CONFIG"])
    if given is not None:
        if not given.is_file():
            raise ConfigurationError(f"{given}: no such configuration file")
        return given
    for candidate in (Path("config.toml"), Path("/etc/harvester/config.toml")):
        if candidate.is_file():
            return candidate
    return None


def load(path: Path | None) -> Settings:
    """Read the configuration; ConfigurationError has one problem a line, secrets never shown."""
    values = _read_toml(path) if path is not None else {}
    environment = _read_environment()
    problems = [f"{path}: {problem}" for problem in _take_unknown(values)]
    problems += _unknown_variables(os.environ)
    _merge(values, environment)
    try:
        settings = Settings(**values)
    except ValidationError as error:
        problems += [_problem(path, environment, item) for item in error.errors()]
    if problems:
        raise ConfigurationError(*problems)
    return settings


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        # The text of a TOML error names a place, and a decoding error shows bytes of the file.
        detail = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "not UTF-8 text"
        raise ConfigurationError(f"{path}: not valid TOML: {detail}") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None


def _take_unknown(values: dict[str, Any]) -> Iterable[str]:
    """Take out what is no setting, so that the rest can be judged too; tell of each."""
    for section, keys in list(values.items()):
        field = Settings.model_fields.get(section)
        if field is None:
            del values[section]
            yield f"[{section}] is not a section{_hint(section, Settings.model_fields)}"
        elif not isinstance(keys, dict):
            del values[section]
            yield f"{section} should be a section: [{section}]"
        else:
            known = _fields(section)
            for key in [key for key in keys if key not in known]:
                del keys[key]
                yield f"{section}.{key} is not a setting{_hint(key, known)}"


def _unknown_variables(environ: Mapping[str, str]) -> list[str]:
    known = {
        f"{PREFIX}{section}__{key}".upper()
        for section in Settings.model_fields
        for key in _fields(section)
    }
    return [
        f"environment variable {name} is not a setting{_hint(name, known)}"
        for name in sorted(environ)
        if name.startswith(PREFIX)
        and name not in NOT_SETTINGS
        and not name.startswith(f"{PREFIX}TEST_")
        and name.upper() not in known
    ]


def _fields(section: str) -> Mapping[str, Any]:
    model = Settings.model_fields[section].annotation
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise TypeError(f"{section} is not a section")
    return model.model_fields


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(sorted(known))}"


def _read_environment() -> dict[str, dict[str, str]]:
    values: dict[str, dict[str, str]] = {}
    for name, text in os.environ.items():
        section, separator, key = name.removeprefix(PREFIX).lower().partition("__")
        known = separator and section in Settings.model_fields and key in _fields(section)
        if name.startswith(PREFIX) and known:
            values.setdefault(section, {})[key] = text
    return values


def _merge(values: dict[str, Any], stronger: Mapping[str, Mapping[str, str]]) -> None:
    for section, keys in stronger.items():
        target = values.setdefault(section, {})
        target.update(keys)
        for key in keys:
            if (section, key) in SECRETS:
                # A secret in the environment outweighs any file.
                target.pop(f"{key}_file", None)


def _problem(path: Path | None, environment: Mapping[str, Mapping[str, str]], error: Any) -> str:
    section, key = [*map(str, error["loc"]), "", ""][:2]
    text = str(error["msg"]).removeprefix("Value error, ")
    text = f"{text[0].lower()}{text[1:]}"
    if key in environment.get(section, {}):
        return f"environment variable {PREFIX}{section.upper()}__{key.upper()}: {text}"
    place = ".".join(str(part) for part in error["loc"])
    return f"{path or 'configuration'}: {place}: {text}"
