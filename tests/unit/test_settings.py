"""Configuration: every wrong key is named with what it should be, and no secret is ever shown."""

from __future__ import annotations

import os
import traceback
from datetime import timedelta
from pathlib import Path

import pytest

from harvester.config.load import find_config, load
from harvester.config.settings import Settings
from harvester.domain.errors import ConfigurationError
from harvester.domain.schedule import WEIGHTS

CANARY = "sk_live_Canary"


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("HARVESTER_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def loaded(file: Path, text: str) -> Settings:
    file.write_text(text, "utf-8")
    return load(file)


def problems(path: Path | None) -> tuple[str, ...]:
    """Return what is wrong with a configuration, having looked for a secret in all it shows."""
    with pytest.raises(ConfigurationError) as refused:
        load(path)
    shown = "".join(traceback.format_exception(refused.value)) + repr(refused.value)
    assert "Canary" not in shown
    return refused.value.problems


def refused(file: Path, text: str) -> tuple[str, ...]:
    file.write_text(text, "utf-8")
    return problems(file)


# Loading, and what outweighs what.


def test_an_empty_file_and_no_file_are_all_defaults(file: Path) -> None:
    assert loaded(file, "") == load(None) == Settings()


def test_weights_are_by_status_and_above_zero(file: Path) -> None:
    settings = loaded(file, "[harvest]\nweight_paid = 2\nstuck_paid = '3d'\n")
    assert settings.harvest.weights == {**WEIGHTS, "paid": 2.0}
    assert settings.harvest.stuck["paid"] == timedelta(days=3)
    (problem,) = refused(file, "[harvest]\nweight_paid = 0\n")
    assert problem == f"{file}: harvest.weight_paid: input should be greater than 0"


def test_every_section_is_read_from_the_file(file: Path) -> None:
    settings = loaded(
        file,
        """
        [lune]
        base_url = "http://127.0.0.1:9/v1"
        api_key_file = "key"
        accounts = ["default", "acc1", "default"]
        rate_limit = 1.5
        [database]
        url = "sqlite:////var/lib/a%20b.db"
        [storage]
        url = "file:///srv/a%20b"
        layout = "{order_id}"
        [harvest]
        sweep_interval = "1m"
        longest_interval = "1h30m"
        interim = true
        [http]
        listen = "127.0.0.1:1"
        [webhook]
        secret_file = "hook"
        [log]
        level = "debug"
        format = "json"
        """,
    )
    assert settings.lune.accounts == ("default", "acc1")
    assert settings.lune.rate_limit == 1.5
    assert settings.database.path == Path("/var/lib/a b.db")
    assert settings.storage.path == Path("/srv/a b")
    assert settings.harvest.longest_interval == timedelta(minutes=90)
    assert settings.harvest.interim is True
    assert settings.webhook.secret_file == file.parent / "hook"  # beside the file
    assert settings.log.level == "debug"


def test_the_environment_outweighs_the_file_key_by_key(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARVESTER_HARVEST__SWEEP_INTERVAL", "5m")
    monkeypatch.setenv("HARVESTER_LUNE__RATE_LIMIT", "3")
    settings = loaded(file, '[harvest]\nsweep_interval = "20m"\ninterim = true\n')
    assert settings.harvest.sweep_interval == timedelta(minutes=5)
    assert settings.harvest.interim is True
    assert settings.lune.rate_limit == 3


def test_the_environment_alone_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARVESTER_LUNE__API_KEY", f"{CANARY}\n")
    monkeypatch.setenv("HARVESTER_HARVEST__INTERIM", "true")
    settings = load(None)
    assert settings.api_key.read() == CANARY
    assert settings.harvest.interim is True


@pytest.mark.parametrize(
    "text", ["default,acc1", "default acc1", " default, acc1 ", "default,,acc1"]
)
def test_a_list_in_the_environment_is_split_at_commas_and_blanks(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARVESTER_LUNE__ACCOUNTS", text)
    assert load(None).lune.accounts == ("default", "acc1")


def test_a_secret_file_outweighs_a_secret_in_the_same_file(file: Path, tmp_path: Path) -> None:
    (tmp_path / "key").touch(0o600)
    (tmp_path / "key").write_text("from-the-file")
    settings = loaded(file, f'[lune]\napi_key = "inline"\napi_key_file = "{tmp_path / "key"}"\n')
    assert settings.api_key.read() == "from-the-file"


def test_a_secret_in_the_environment_outweighs_a_file_named_in_the_configuration(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("from-the-file")
    monkeypatch.setenv("HARVESTER_LUNE__API_KEY", "from-the-environment")
    settings = loaded(file, f'[lune]\napi_key_file = "{tmp_path / "key"}"\n')
    assert settings.api_key.read() == "from-the-environment"


@pytest.mark.parametrize("value_first", [True, False])
def test_of_a_secret_and_its_file_both_in_the_environment_the_same_one_wins_always(
    value_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("from-the-file")
    pair = [("", "from-the-environment"), ("_FILE", str(tmp_path / "key"))]
    for suffix, value in pair if value_first else reversed(pair):
        monkeypatch.setenv(f"HARVESTER_LUNE__API_KEY{suffix}", value)
    assert load(None).api_key.read() == "from-the-environment"


def test_a_secret_file_is_not_read_while_loading(file: Path) -> None:
    settings = loaded(file, '[lune]\napi_key_file = "/nonexistent/key"\n')
    with pytest.raises(ConfigurationError, match="cannot be read"):
        settings.api_key.read()


# What is wrong is named, with what it should be.


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[lune]\nrate_limits = 1", "lune.rate_limits is not a setting; did you mean rate_limit?"),
        ("[lune]\nzzz = 1", "lune.zzz is not a setting; known are accounts, api_key, api_key_file"),
        ("[harvset]\n", "[harvset] is not a section; did you mean harvest?"),
        ("[zzz]\n", "[zzz] is not a section; known are database, events, harvest"),
        ("rate_limit = 1", "[rate_limit] is not a section"),
        ("lune = 1", "lune should be a section: [lune]"),
        ("[[lune]]\nrate_limit = 1", "lune should be a section: [lune]"),
        ("[lune]\nrate_limit = 0", "lune.rate_limit: input should be greater than 0"),
        ("[lune]\nrate_limit = nan", "lune.rate_limit: input should be"),
        ("[lune]\nrate_limit = inf", "lune.rate_limit: input should be less than or equal to"),
        ('[lune]\nrate_limit = "fast"', "lune.rate_limit: input should be a valid number"),
        ("[lune]\naccounts = []", "lune.accounts: should name at least one account"),
        ('[lune]\naccounts = ["all", "acc1"]', 'lune.accounts: should be ["all"] alone'),
        ('[lune]\naccounts = ["a/../b"]', "lune.accounts: should hold"),
        ("[lune]\naccounts = 7", "lune.accounts: input should be a valid tuple"),
        ("[lune]\naccounts = [7]", "lune.accounts.0: input should be a valid string"),
        ("[harvest]\ninterim = 7", "harvest.interim: input should be a valid boolean"),
        ("[harvest]\nsweep_interval = 15", "harvest.sweep_interval: should be a duration"),
        ("[harvest]\nsweep_interval = 00:15:00", "harvest.sweep_interval: should be a duration"),
        ('[harvest]\nlongest_interval = "1m"', "longest_interval: should not be shorter than"),
        ('[log]\nlevel = "loud"', "log.level: input should be 'debug', 'info', 'warning' or"),
        ('[database]\nurl = "sqlite:///"', "database.url: should be sqlite:////absolute"),
        ('[database]\nurl = "mysql://h/d"', "database.url: should be sqlite:////absolute"),
        ('[database]\nurl = "postgresql://h/d"', "database.url: this release keeps its ledger in"),
        ('[storage]\nurl = "s3://bucket"', "storage.url: this release stores in a directory"),
        ('[storage]\nurl = "file://host/x"', "storage.url: should be file:///absolute"),
        ('[storage]\nurl = "/srv/files"', "storage.url: should be file:///absolute"),
    ],
)
def test_a_wrong_setting_is_named_with_the_file_and_what_it_should_be(
    file: Path, text: str, problem: str
) -> None:
    (only,) = refused(file, text)
    assert only.startswith(f"{file}: ")
    assert problem in only


def test_a_sweep_interval_beyond_the_longest_one_is_refused_though_that_is_a_default(
    file: Path,
) -> None:
    (only,) = refused(file, '[harvest]\nsweep_interval = "12h"\n')
    assert "longest_interval: should not be shorter than sweep_interval" in only


def test_everything_wrong_is_told_at_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARVESTER_LUNE__APIKEY", CANARY)
    found = refused(
        file,
        """
        [lune]
        rate_limit = 0
        colour = "blue"
        [harvset]
        [harvest]
        sweep_interval = "soon"
        [log]
        level = "loud"
        """,
    )
    for name in (
        "lune.rate_limit",
        "lune.colour",
        "[harvset]",
        "harvest.sweep_interval",
        "log.level",
        "HARVESTER_LUNE__APIKEY",
    ):
        assert any(name in problem for problem in found), name
    assert len(found) == 6


def test_a_wrong_value_in_the_environment_is_not_blamed_on_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARVESTER_LUNE__RATE_LIMIT", "fast")
    (only,) = refused(file, "[lune]\nrate_limit = 12\n")
    assert "HARVESTER_LUNE__RATE_LIMIT" in only


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("HARVESTER_LUNE__APIKEY", "did you mean HARVESTER_LUNE__API_KEY?"),
        ("HARVESTER_LUNE_API_KEY", "did you mean HARVESTER_LUNE__API_KEY?"),
        ("HARVESTER_LUNE", "is not a setting"),
        ("HARVESTER_ZZZ__YYY", "is not a setting"),
        ("HARVESTER_LUNE__RATE_LIMIT__MAX", "is not a setting"),
    ],
)
def test_an_unknown_environment_variable_is_refused_by_name(
    name: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, CANARY)
    (only,) = problems(None)
    assert only.startswith(f"environment variable {name} is not a setting")
    assert hint in only


def test_variables_of_other_programs_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LUNE__API_KEY", "COMBINE_HARVESTER_X", "HARVESTERS_X"):
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("HARVESTER_CONFIG", "elsewhere.toml")
    assert load(None) == Settings()


# Secrets are in no message, whatever is wrong around them.


@pytest.mark.parametrize(
    "text",
    [
        f'[lune]\napi_key = ["{CANARY}"]',
        f'[lune]\napi_key = {{ value = "{CANARY}" }}',
        f'[lune]\napi_key = "{CANARY}"\nrate_limit = "{CANARY}"',
        f'[lune]\napikey = "{CANARY}"',
        f'[lune]\napi_key_file = ["{CANARY}"]',
        f'[lune]\naccounts = ["all", "{CANARY}"]',
        f'[lune]\naccounts = ["a/{CANARY}"]',
        f'[http]\ntoken = ["{CANARY}"]',
        f'[webhook]\nsecret = ["{CANARY}"]',
        f'[log]\nlevel = "{CANARY}"',
        f'[harvest]\nsweep_interval = "{CANARY}"\ninterim = "{CANARY}"',
        f'[database]\nurl = "postgresql://user:{CANARY}@host/db"',
        f'[storage]\nurl = "s3://{CANARY}@bucket"',
        f'lune = "{CANARY}"',
        f'api_key = "{CANARY}"',
        f'[lune]\napi_key = "{CANARY}',
        f"[lune]\napi_key = {CANARY}",
        f'[lune]\napi_key = "{CANARY}"\napi_key = "{CANARY}"',
        f'[lune]\napi_key = "{CANARY}\\q"',
    ],
)
def test_no_problem_shows_a_value(file: Path, text: str) -> None:
    assert refused(file, text)


def test_a_file_that_is_not_text_is_refused_without_showing_it(file: Path) -> None:
    file.write_bytes(f'[lune]\napi_key = "{CANARY}'.encode() + b'\xff"\n')
    assert problems(file) == (f"{file}: not valid TOML: not UTF-8 text",)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert problems(tmp_path) == (f"{tmp_path}: cannot be read: Is a directory",)


def test_settings_do_not_show_their_secrets(file: Path) -> None:
    settings = loaded(
        file,
        f'[lune]\napi_key = "{CANARY}"\n[http]\ntoken = "{CANARY}"\n[webhook]\nsecret = "{CANARY}"',
    )
    shown = f"{settings} {settings!r} {settings.model_dump()} {settings.model_dump_json()}"
    assert "Canary" not in shown


# Which file.


def test_a_named_file_is_taken_and_has_to_exist(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.touch()
    monkeypatch.setenv("HARVESTER_CONFIG", str(tmp_path / "other.toml"))
    assert find_config(file) == file
    for given in (tmp_path / "missing.toml", None):
        with pytest.raises(ConfigurationError, match="no such configuration file"):
            find_config(given)


def test_without_a_name_the_file_beside_is_taken(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(None) != Path("config.toml")
    file.touch()
    assert find_config(None) == Path("config.toml")
