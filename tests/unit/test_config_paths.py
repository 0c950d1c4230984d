"""Relative paths in a configuration file begin at its folder, wherever the command is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from harvester.config.load import load


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "a folder"
    folder.mkdir()
    for name, secret in (("key", "kkkkkkkkkkkkkkkkkkkk"), ("one", "a" * 40), ("two", "b" * 40)):
        (folder / name).write_text(secret)
        (folder / name).chmod(0o600)
    return folder


def test_every_path_of_a_file_begins_at_its_folder(folder: Path) -> None:
    config = folder / "config.toml"
    config.write_text(
        'lune.api_key_file = "key"\n'
        'database.url = "sqlite:///ledger.db"\n'
        'storage.url = "file:certificates"\n'
        'http.token_file = "one"\n'
        "[[events.receivers]]\n"
        'name = "billing"\nurl = "https://billing.example/"\nsecret_file = ["one", "two"]\n'
    )
    settings = load(config)
    assert settings.api_key.read() == "kkkkkkkkkkkkkkkkkkkk"
    assert settings.database.path == folder / "ledger.db"
    assert settings.storage.path == folder / "certificates"
    assert settings.http_token is not None
    assert settings.http_token.read() == "a" * 40
    (billing,) = settings.events.receivers
    assert [secret.read() for secret in billing.secrets] == ["a" * 40, "b" * 40]


def test_absolute_paths_stay(folder: Path, tmp_path: Path) -> None:
    config = folder / "config.toml"
    config.write_text(
        f'lune.api_key_file = "{folder}/key"\n'
        f'database.url = "sqlite:///{tmp_path}/ledger.db"\n'
        f'storage.url = "file://{tmp_path}/certificates"\n'
    )
    settings = load(config)
    assert settings.database.path == tmp_path / "ledger.db"
    assert settings.storage.path == tmp_path / "certificates"


def test_the_environment_is_taken_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARVESTER_DATABASE__URL", "sqlite:////var/lib/other.db")
    config = folder / "config.toml"
    config.write_text('lune.api_key_file = "key"\ndatabase.url = "sqlite:///ledger.db"\n')
    assert load(config).database.path == Path("/var/lib/other.db")
