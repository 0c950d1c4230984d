"""Read the configuration: TOML, then secret files, then the environment; wrong keys are named."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from harvester.config.settings import Settings
from harvester.domain.errors import ConfigurationError
from harvester.domain.events import EVENT_VARIABLES

PREFIX = "HARVESTER_"
NOT_SETTINGS = frozenset({"HARVESTER_CONFIG", "HARVESTER_REQUIRE_ALL"}) | EVENT_VARIABLES
"""Variables with our prefix that are no configuration keys (those of the test suite too)."""

SECRETS = {("lune", "api_key"), ("http", "token"), ("webhook", "secret")}


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
    if path is not None:
        _make_absolute(values, path.absolute().parent)
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


def _make_absolute(values: dict[str, Any], folder: Path) -> None:
    """Let relative paths begin at the configuration's folder, wherever the command is run."""
    sections = list(values.values())
    receivers = values.get("events", {}).get("receivers")
    sections += receivers if isinstance(receivers, list) else []
    for keys in sections:
        for name, path in keys.items() if isinstance(keys, dict) else ():
            if name.endswith("_file"):
                several = isinstance(path, list)
                keys[name] = (
                    [_below(folder, one) for one in path] if several else _below(folder, path)
                )
    for section, scheme, prefix in (
        ("database", "sqlite:///", "sqlite:///"),
        ("storage", "file:", "file://"),
    ):
        url = values.get(section, {}).get("url")
        relative = url.removeprefix(scheme) if isinstance(url, str) else ""
        if relative and relative != url and not relative.startswith("/"):
            values[section]["url"] = f"{prefix}{quote(str(folder))}/{relative}"


def _below(folder: Path, path: object) -> object:
    return str(folder / path) if isinstance(path, str) else path


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
