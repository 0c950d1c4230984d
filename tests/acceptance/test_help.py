"""The first minutes with the command: its help, its version, and where its configuration is."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.acceptance.harness import Home, Ran

TOLD = {
    "demo": ("sandbox", "--folder"),
    "run": (
        *("--drain", "--since", "--until", "--account", "--dry-run", "--wait", "--report"),
        *("--json", "SIGTERM"),
    ),
    "track": ("--key", "--account", "--json", "stdin"),
    "orders": (
        *("--status", "--account", "--certificate", "--since", "--until", "--limit", "--json"),
    ),
    "show": ("--json", "idempotency key"),
    "status": ("--json", "last good sweep"),
    "retry": ("--all", "--json"),
    "verify": ("--repair", "--json", "missing", "changed"),
    "export": ("--format", "csv", "jsonl", "--output", "--certificate"),
    "events": ("list", "resend", "secret"),
    "events list": ("--after", "--undelivered", "--json", "seven days", "thirty"),
    "events resend": ("--receiver", "--json", "parked"),
    "events secret": ("secret_file",),
    "doctor": ("--json", "configuration", "archive"),
    "sandbox": ("--port", "--speed", "--fault", "--orders"),
    "db": ("upgrade", "current", "backup"),
    "db upgrade": ("backup",),
    "db current": ("schema",),
    "db backup": ("FILE", "daemon"),
}
WRONG_VALUES = """\
[lune]
api_key = "CANARY-api-key"
base_url = "http://api.lune.co/v1"
accounts = []
rate_limit = -4
[database]
url = "mysql://CANARY-password@db/ledger"
[storage]
url = "certificates"
layout = "{account_id}/{when}"
[harvest]
sweep_interval = "soon"
interim = "perhaps"
[log]
level = "loud"
"""
WRONG_KEYS = """\
[lune]
api_key = "CANARY-api-key"
acounts = ["all"]
[harvst]
interim = true
[webhook]
secrets = "CANARY-webhook-secret"
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def is_plain(ran: Ran) -> bool:
    """Tell whether a refusal is a few plain lines on stderr, without a secret or a traceback."""
    said = ran.out + ran.err
    return not ran.out and bool(ran.err) and "Traceback" not in said and "CANARY" not in said


@pytest.mark.parametrize("name", TOLD)
async def test_every_command_explains_itself(home: Home, name: str) -> None:
    ran = await home.run(*name.split(), "--help")
    assert (ran.code, ran.err) == (0, "")
    usage, said, *_ = ran.out.split("\n\n")
    assert usage.startswith(f"Usage: harvester {name} [OPTIONS]")
    assert said.strip().endswith(".")
    missing = [word for word in TOLD[name] if word not in " ".join(ran.out.split())]
    assert not missing


async def test_the_help_lists_every_command_and_every_exit_code(home: Home) -> None:
    ran = await home.run("--help")
    assert (ran.code, ran.err) == (0, "")
    listed = [line.split()[0] for line in ran.out.splitlines() if line.startswith("  ")]
    assert {name for name in TOLD if " " not in name} <= set(listed)
    codes = ran.out[ran.out.index("Exit codes") :].split()
    assert {"0", "1", "2", "3", "75", "77", "78", "130"} <= set(codes)


async def test_the_version_is_the_distribution_s(home: Home) -> None:
    ran = await home.run("--version")
    assert (ran.code, ran.out, ran.err) == (
        0,
        f"harvester, version {version('lune-harvester')}\n",
        "",
    )


async def test_python_m_harvester_is_the_same_command(home: Home) -> None:
    module = (sys.executable, "-m", "harvester")
    for arguments, code in ((["--version"], 0), (["--config", "gone.toml", "status"], 78)):
        ran = await home.run(*arguments, program=module)
        assert ran == await home.run(*arguments)
        assert ran.code == code


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["harvest"], "harvest"),
        (["--frobnicate"], "--frobnicate"),
        (["orders", "--frobnicate"], "--frobnicate"),
        (["orders", "--certificate", "lost"], "lost"),
        (["orders", "--since", "yesterday"], "yesterday"),
        (["orders", "--limit", "0"], "0"),
        (["run", "--drain", "--wait", "a while"], "a while"),
        (["show"], "ID"),
        (["track"], "ID"),
        (["retry"], "--all"),
        (["events", "resend"], "--receiver"),
        (["retry", "some", "--all"], "--all"),
        (["export", "--format", "xml"], "xml"),
        (["db", "downgrade"], "downgrade"),
    ],
)
async def test_wrong_usage_exits_2_and_names_what_is_wrong(
    home: Home, arguments: list[str], named: str
) -> None:
    ran = await home.run(*arguments)
    assert ran.code == 2
    assert is_plain(ran)
    assert named in ran.err.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config", "other.toml", "db", "current"],
        ["db", "--config", "other.toml", "current"],
        ["db", "current", "--config", "other.toml"],
    ],
)
async def test_the_configuration_is_named_before_or_after_the_command(
    home: Home, arguments: list[str]
) -> None:
    home.config.rename(home.folder / "other.toml")
    ran = await home.run(*arguments, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.document()["ledger"] == str(home.ledger)


async def test_the_option_outweighs_the_variable_and_that_the_folder(home: Home) -> None:
    async def ledger(*arguments: str, **env: str) -> str:
        ran = await home.run(*arguments, "db", "current", "--json", env=env)
        assert ran.code == 0, ran.err
        return Path(ran.document()["ledger"]).name

    for name in ("variable", "option"):
        text = home.config.read_text().replace("harvester.db", f"{name}.db")
        (home.folder / f"{name}.toml").write_text(text)
    assert await ledger() == "harvester.db"
    assert await ledger(HARVESTER_CONFIG="variable.toml") == "variable.db"
    assert await ledger("--config", "option.toml", HARVESTER_CONFIG="variable.toml") == "option.db"
    override = f"sqlite:///{home.folder}/environment.db"
    assert await ledger(HARVESTER_DATABASE__URL=override) == "environment.db"


@pytest.mark.parametrize(
    ("arguments", "env"),
    [
        (["--config", "gone.toml"], {}),
        ([], {"HARVESTER_CONFIG": "gone.toml"}),
        (["--config", "."], {}),
    ],
)
async def test_a_named_configuration_that_is_not_there_exits_78(
    home: Home, arguments: list[str], env: dict[str, str]
) -> None:
    ran = await home.run(*arguments, "status", env=env)
    assert ran.code == 78
    assert is_plain(ran)
    assert (env.get("HARVESTER_CONFIG") or arguments[1]) in ran.err


async def test_every_wrong_value_is_named_at_once(home: Home) -> None:
    home.config.write_text(WRONG_VALUES)
    ran = await home.run("doctor")
    assert ran.code == 78
    assert "CANARY" not in ran.out + ran.err
    assert "Traceback" not in ran.err
    names = [
        *("lune.base_url", "lune.accounts", "lune.rate_limit", "database.url", "storage.url"),
        *("storage.layout", "harvest.sweep_interval", "harvest.interim", "log.level"),
    ]
    assert [name for name in names if name not in ran.out + ran.err] == []


async def test_every_unknown_key_is_named_at_once_with_the_one_that_was_meant(home: Home) -> None:
    home.config.write_text(WRONG_KEYS)
    ran = await home.run("status")
    assert ran.code == 78
    assert is_plain(ran)
    assert "lune.acounts" in ran.err
    assert "did you mean accounts?" in ran.err
    assert "[harvst]" in ran.err
    assert "webhook.secrets" in ran.err
    assert all("config.toml" in line for line in ran.err.splitlines())


async def test_an_unknown_key_does_not_hide_a_wrong_value(home: Home) -> None:
    home.config.write_text('[lune]\nacounts = ["all"]\nrate_limit = -4\n')
    ran = await home.run("status")
    assert ran.code == 78
    assert "lune.acounts" in ran.err
    assert "lune.rate_limit" in ran.err


@pytest.mark.parametrize(
    ("text", "named"),
    [("[lune\n", "line 1"), ("lune = 4\n", "[lune]"), ("\xff", "UTF-8")],
)
async def test_a_file_that_is_no_configuration_exits_78(home: Home, text: str, named: str) -> None:
    home.config.write_bytes(text.encode("latin-1"))
    ran = await home.run("status")
    assert ran.code == 78
    assert is_plain(ran)
    assert named in ran.err


async def test_a_misspelt_variable_is_named_but_not_its_value(home: Home) -> None:
    ran = await home.run("status", env={"HARVESTER_LUNE__APIKEY": "CANARY-api-key"})
    assert ran.code == 78
    assert is_plain(ran)
    assert "HARVESTER_LUNE__APIKEY" in ran.err
    assert "HARVESTER_LUNE__API_KEY?" in ran.err


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("lune__base_url", "http://api.lune.co/v1"),
        ("lune__base_url", "http://CANARY:CANARY@127.0.0.1/v1"),
        ("lune__api_key_file", "/nonexistent/key"),
        ("storage__layout", "{account_id}/{when}"),
    ],
)
async def test_what_cannot_work_exits_78_before_anything_is_made(
    home: Home, setting: str, value: str
) -> None:
    home.configure(lune__api_key="CANARY-api-key")
    home.configure(**{setting: value})
    ran = await home.run("run", "--drain")
    assert ran.code == 78
    assert is_plain(ran)
    assert setting.partition("__")[2] in ran.err
    assert not home.ledger.exists()
    assert not home.archive.exists()
