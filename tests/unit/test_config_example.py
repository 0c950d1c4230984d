"""The example configuration: it loads as it is and shows every key with its default."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from harvester.config.load import SECRETS, load
from harvester.config.settings import HookSettings, ReceiverSettings, Settings

EXAMPLE = Path(__file__).parents[2] / "config.example.toml"
KEYS = [
    (section, key)
    for section, field in Settings.model_fields.items()
    for key in field.default.__class__.model_fields
]
SECRET_KEYS = {(section, key + suffix) for section, key in SECRETS for suffix in ("", "_file")}
LISTS = {("events", "receivers"): ReceiverSettings, ("events", "hooks"): HookSettings}


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("HARVESTER_")]:
        monkeypatch.delenv(name)


def shown() -> dict[str, dict[str, Any]]:
    """Return the settings the example shows, those that are commented out among them."""
    text = re.sub(r"^# ?(?=[a-z_]+ = |\[\[)", "", EXAMPLE.read_text("utf-8"), flags=re.MULTILINE)
    return tomllib.loads(text)


def test_the_example_loads_as_it_is_and_changes_nothing() -> None:
    assert load(EXAMPLE) == Settings()


def test_the_example_loads_with_everything_in_it_switched_on() -> None:
    Settings.model_validate(shown())


def test_the_example_shows_every_key_of_every_section_and_no_other() -> None:
    assert {(section, key) for section, keys in shown().items() for key in keys} == set(KEYS)


@pytest.mark.parametrize(
    ("section", "key"), [pair for pair in KEYS if pair not in {*SECRET_KEYS, *LISTS}]
)
def test_the_example_shows_the_default(section: str, key: str) -> None:
    read = Settings.model_validate(shown())
    assert getattr(getattr(read, section), key) == getattr(getattr(Settings(), section), key)


@pytest.mark.parametrize(("place", "model"), LISTS.items(), ids=[key for _, key in LISTS])
def test_the_example_shows_a_list_by_one_entry_with_every_key_and_its_default(
    place: tuple[str, str], model: type[ReceiverSettings | HookSettings]
) -> None:
    section, key = place
    (entry,) = shown()[section][key]
    assert entry.keys() == model.model_fields.keys()
    read = model.model_validate(entry)
    for name, field in model.model_fields.items():
        if not field.is_required():
            assert getattr(read, name) == field.default, name
