"""The Docker deployment, as far as it can be judged without an engine: what its files say."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from harvester import __version__
from harvester.config.load import SECRETS, load
from harvester.config.types import parse_duration
from harvester.context import Limits
from tests.acceptance.harness import HARVESTER

REPOSITORY = Path(__file__).parents[2]
DOCKER = REPOSITORY / "deploy" / "docker"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))
SANDBOX = yaml.safe_load((DOCKER / "compose.sandbox.yaml").read_text("utf-8"))
STATE = "/var/lib/harvester"
RUNNING = {
    "harvester": COMPOSE["services"]["harvester"],
    "billing": COMPOSE["services"]["billing"],
    "sandbox": SANDBOX["services"]["sandbox"],
}


def instructions(file: str) -> list[tuple[str, str]]:
    """Return a Dockerfile's instructions with their arguments, lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (DOCKER / file).read_text("utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines if line)]


IMAGE = instructions("Dockerfile")
LAST_STAGE = IMAGE[max(index for index, (word, _) in enumerate(IMAGE) if word == "FROM") :]


def of(word: str) -> str:
    """Return the arguments of the last stage's one instruction of this name."""
    (found,) = [rest for name, rest in LAST_STAGE if name == word]
    return found


def healthcheck() -> tuple[dict[str, str], list[str]]:
    """Return the image's options of the check, named as compose names them, and its command."""
    options, _, command = of("HEALTHCHECK").partition("CMD ")
    found = dict(re.findall(r"--([a-z-]+)=(\S+)", options))
    return {name.replace("-", "_"): text for name, text in found.items()}, json.loads(command)


@pytest.mark.parametrize("file", ["Dockerfile", "Dockerfile.tests"])
def test_an_engine_without_buildkit_builds_it(file: str) -> None:
    assert not (DOCKER / file).read_text("utf-8").startswith("# syntax")
    words = {word for word, _ in instructions(file)}
    assert words <= {
        *("ARG", "FROM", "WORKDIR", "RUN", "COPY", "ENV", "USER", "VOLUME", "STOPSIGNAL"),
        *("HEALTHCHECK", "ENTRYPOINT", "CMD", "LABEL"),
    }
    for word, rest in instructions(file):
        flags = re.findall(r"^(--[a-z]+)", rest)
        assert word == "HEALTHCHECK" or set(flags) <= {"--from"}, rest
        assert "<<" not in rest


def test_it_runs_as_a_user_that_is_nobody_and_a_number() -> None:
    assert of("USER") == "10001:10001"
    assert all(int(part) > 0 for part in of("USER").split(":"))


def test_no_shell_stands_between_the_engine_s_signals_and_the_harvester() -> None:
    assert json.loads(of("ENTRYPOINT")) == ["harvester"]
    assert json.loads(of("CMD")) == ["run"]
    assert of("STOPSIGNAL") == "SIGTERM"


def test_the_commands_it_names_exist_with_these_options() -> None:
    _, check = healthcheck()
    assert check == ["harvester", "healthcheck", "--live"]
    for words in (check[1:], json.loads(of("CMD")), SANDBOX["services"]["sandbox"]["command"]):
        command = [HARVESTER, *words, "--help"]
        shown = subprocess.run(command, capture_output=True, text=True, check=False)
        assert shown.returncode == 0, shown.stderr


def test_python_is_set_up_for_a_read_only_root_and_a_service() -> None:
    settings = dict(re.findall(r"(\w+)=(\S+)", of("ENV")))
    assert settings["PATH"].startswith("/opt/harvester/bin:")
    assert settings["PYTHONDONTWRITEBYTECODE"] == "1"
    assert settings["PYTHONSAFEPATH"] == "1"
    assert settings["PYTHONFAULTHANDLER"] == "1"
    assert int(settings["MALLOC_ARENA_MAX"]) > 0


def test_its_labels_and_its_tag_say_what_the_package_says() -> None:
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', of("LABEL")))
    defaults = dict(rest.partition("=")[::2] for word, rest in LAST_STAGE if word == "ARG")
    assert labels["title"] == PROJECT["name"]
    assert labels["description"] == PROJECT["description"]
    assert labels["licenses"] == PROJECT["license"]
    assert defaults["VERSION"] == __version__
    for name in ("version", "revision", "source"):
        assert labels[name] == f"${{{name.upper()}}}"
    assert {service["image"] for service in RUNNING.values()} == {
        f"${{HARVESTER_IMAGE:-harvester:{__version__}}}"
    }


def test_the_state_s_folders_are_the_configuration_s_and_in_volumes() -> None:
    settings = load(REPOSITORY / "config.example.toml")
    assert of("VOLUME") == STATE
    assert settings.database.path.parent == Path(STATE)
    archive = str(settings.storage.path)
    volumes = COMPOSE["services"]["harvester"]["volumes"]
    assert f"ledger:{STATE}" in volumes
    assert f"certificates:{archive}" in volumes
    assert {"ledger", "certificates"} == set(COMPOSE["volumes"])
    made = next(rest for word, rest in LAST_STAGE if word == "RUN")
    assert made.endswith(f"-m 0750 {archive} {archive}/.incoming")


def is_sent(path: str) -> bool:
    """Tell whether a file goes into the build's context: the last line that matches it decides."""
    sent = True
    for line in (REPOSITORY / ".dockerignore").read_text("utf-8").splitlines():
        pattern = line.removeprefix("!")
        if line.startswith("#"):
            continue
        parts = path.split("/")
        above = ["/".join(parts[: depth + 1]) for depth in range(len(parts))]
        anywhere = pattern.removeprefix("**/")
        if pattern != anywhere:
            matches = any(fnmatch.fnmatch(part, anywhere) for part in parts)
        else:
            matches = any(fnmatch.fnmatch(one, pattern) for one in above)
        if matches:
            sent = line.startswith("!")
    return sent


def test_the_build_is_sent_what_the_wheel_is_made_of() -> None:
    for path in (
        *("pyproject.toml", "README.md", "LICENSE", "deploy/constraints.txt"),
        *("harvester/app.py", "harvester/web/openapi.json", "migrations/env.py"),
    ):
        assert (REPOSITORY / path).is_file() or path.startswith(("harvester/", "migrations/"))
        assert is_sent(path), path


@pytest.mark.parametrize(
    "path",
    [
        *(".git/config", ".venv/bin/python", ".mypy_cache/cache", "config.toml", ".env"),
        *("deploy/docker/secrets/lune_api_key", "deploy/docker/sandbox/lune_api_key"),
        *("harvester-demo-1/harvester.db", "tests/conftest.py", "lune_api_key", "harvester.db"),
        *("harvester/__pycache__/app.cpython-311.pyc", "migrations/versions/__pycache__/x.pyc"),
    ],
)
def test_the_build_is_sent_nothing_secret_and_nothing_heavy(path: str) -> None:
    assert not is_sent(path)


@pytest.mark.parametrize("name", RUNNING)
def test_every_service_is_confined(name: str) -> None:
    service = RUNNING[name]
    uid, gid = map(int, service["user"].split(":"))
    assert min(uid, gid) > 0
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"] <= 64
    assert service["mem_limit"] == service["memswap_limit"]
    for scratch in service["tmpfs"]:
        assert {"noexec", "nosuid", "nodev"} < set(scratch.partition(":")[2].split(","))
    allowed = {
        *("image", "build", "command", "entrypoint", "user", "group_add", "read_only"),
        *("cap_drop", "security_opt", "tmpfs", "mem_limit", "memswap_limit", "pids_limit"),
        *("stop_grace_period", "restart", "healthcheck", "secrets", "volumes", "environment"),
        *("depends_on", "networks"),
    }
    assert set(service) <= allowed  # no privileged, cap_add, devices, pid, ports, ...


def test_what_the_sandbox_leaves_is_not_found_by_the_real_thing() -> None:
    for name in ("harvester", "billing"):
        kept = {folder_of(volume) for volume in RUNNING[name]["volumes"] if is_named(volume)}
        layer = SANDBOX["services"][name]["volumes"]
        assert {folder_of(volume) for volume in layer if is_named(volume)} == kept
    assert not set(COMPOSE["volumes"]) & set(SANDBOX["volumes"])


def is_named(volume: str) -> bool:
    return not volume.startswith((".", "/"))


def folder_of(volume: str) -> str:
    return volume.split(":")[1]


@pytest.mark.parametrize("name", RUNNING)
def test_a_volume_nobody_named_is_not_left_behind(name: str) -> None:
    service = RUNNING[name]
    covered = {scratch.partition(":")[0] for scratch in service["tmpfs"]}
    assert STATE in covered | {folder_of(volume) for volume in service.get("volumes", ())}


def test_the_harvester_has_time_to_end_what_is_in_flight() -> None:
    grace = parse_duration(COMPOSE["services"]["harvester"]["stop_grace_period"])
    assert grace.total_seconds() >= 2 * Limits().stop_grace


def test_compose_checks_health_as_the_image_does() -> None:
    options, command = healthcheck()
    check = dict(COMPOSE["services"]["harvester"]["healthcheck"])
    assert check.pop("test") == ["CMD", *command]
    assert {name: str(value) for name, value in check.items()} == options


def test_secrets_are_files_and_nowhere_else() -> None:
    for compose in (COMPOSE, SANDBOX):
        assert all(set(secret) == {"file"} for secret in compose["secrets"].values())
    for service in (*RUNNING.values(), SANDBOX["services"]["harvester"]):
        named = {f"{section}__{key}".upper() for section, key in SECRETS}
        assert not any(
            name.removeprefix("HARVESTER_") in named for name in service.get("environment", {})
        )
    ignored = (DOCKER / ".gitignore").read_text("utf-8").split()
    default = COMPOSE["secrets"]["lune_api_key"]["file"]
    assert default == "${HARVESTER_SECRETS:-./secrets}/lune_api_key"
    assert "/secrets/" in ignored


def test_the_sandbox_s_secrets_are_there_and_open_nothing_else() -> None:
    files = {name: DOCKER / secret["file"] for name, secret in SANDBOX["secrets"].items()}
    assert files.keys() == COMPOSE["secrets"].keys()
    assert files["lune_api_key"].read_text("ascii") == "sandbox-key\n"
    assert all(file.parent == DOCKER / "sandbox" for file in files.values())


def test_billing_reads_certificates_by_its_group_and_writes_none() -> None:
    harvester, billing = RUNNING["harvester"], RUNNING["billing"]
    uid, gid = harvester["user"].split(":")
    assert billing["user"].split(":")[0] != uid
    assert billing["group_add"] == [gid]
    folder = billing["environment"]["BILLING_CERTIFICATES"]
    assert f"certificates:{folder}:ro" in billing["volumes"]
    assert not any("ledger" in volume for volume in billing["volumes"])
    assert billing["secrets"] == ["billing_secret"]


def test_the_configuration_loads_and_names_what_compose_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in os.environ if name.startswith("HARVESTER_")]:
        monkeypatch.delenv(name)
    settings = load(DOCKER / "config.toml")
    (receiver,) = settings.events.receivers
    url, billing = urlsplit(receiver.url), RUNNING["billing"]
    assert url.hostname in COMPOSE["services"]
    assert billing["environment"]["BILLING_LISTEN"] == f"0.0.0.0:{url.port}"
    assert receiver.allow_private
    (file,) = receiver.secret_file
    assert str(file) == billing["environment"]["BILLING_SECRET_FILE"]
    for service in ("harvester", "billing"):
        assert file.name in RUNNING[service]["secrets"]
    assert settings.http.address is not None
    assert not settings.http.address.is_loopback
    assert {"lune_api_key", "http_token"} < set(RUNNING["harvester"]["secrets"])
    assert "./config.toml:/etc/harvester/config.toml:ro" in RUNNING["harvester"]["volumes"]
    assert f"./billing/{(DOCKER / 'billing' / 'billing.py').name}:" in billing["volumes"][0]


def test_the_sandbox_s_layer_changes_settings_that_exist(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harvester = SANDBOX["services"]["harvester"]
    for name, text in harvester["environment"].items():
        monkeypatch.setenv(name, text)
    settings = load(DOCKER / "config.toml")
    # The sandbox is on loopback only, so the harvester has to live in its network.
    assert harvester["network_mode"] == "service:sandbox"
    assert urlsplit(settings.lune.base_url).hostname == "127.0.0.1"
    assert "harvester" in SANDBOX["services"]["sandbox"]["networks"]["default"]["aliases"]
