"""The systemd units are right, closed, and agree with each other."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from harvester.cli.exits import CONFIGURATION, HELD, REFUSED
from tests.needs import need

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
DAEMON, DRAIN, TIMER = (
    UNITS / name
    for name in ("harvester.service", "harvester-drain.service", "harvester-drain.timer")
)
OWN = {"Type", "NotifyAccess", "ExecStart", "ExecReload", "Restart", "RestartSec", "WatchdogSec"}
OWN |= {"RestartPreventExitStatus", "SuccessExitStatus", "TimeoutStartSec", "TimeoutAbortSec"}
"""What the two services may differ in."""


def settings(unit: Path) -> list[tuple[str, str]]:
    """Return a unit's assignments; a comment behind one would be part of its value."""
    lines = [line for line in unit.read_text().splitlines() if line and line[0] not in "#["]
    assert not [line for line in lines if "#" in line]
    return [(name, value) for name, _, value in (line.partition("=") for line in lines)]


def value(unit: Path, name: str) -> str:
    (found,) = [value for named, value in settings(unit) if named == name]
    return found


@pytest.mark.parametrize("unit", [DAEMON, DRAIN, TIMER], ids=lambda unit: unit.name)
def test_systemd_finds_nothing_wrong(unit: Path) -> None:
    need(shutil.which("systemd-analyze"), "systemd-analyze")
    said = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    # The program is not installed here.
    odd = [line for line in said.stderr.splitlines() if "is not executable" not in line]
    assert odd == []


@pytest.mark.parametrize("unit", [DAEMON, DRAIN], ids=lambda unit: unit.name)
def test_a_service_is_exposed_to_no_more_than_1_1_of_10(unit: Path) -> None:
    need(shutil.which("systemd-analyze"), "systemd-analyze")
    words = [
        "systemd-analyze",
        "security",
        "--no-pager",
        "--offline=yes",
        "--threshold=11",
        str(unit),
    ]
    judged = subprocess.run(words, capture_output=True, text=True, check=False)
    assert judged.returncode == 0, judged.stdout[-200:]


def test_the_drain_is_confined_as_the_daemon_is() -> None:
    daemon, drain = (
        [pair for pair in settings(unit) if pair[0] not in OWN] for unit in (DAEMON, DRAIN)
    )
    unit_section = {"Description", "After", "Wants", "StartLimitIntervalSec", "StartLimitBurst"}
    both = [
        [pair for pair in found if pair[0] not in unit_section | {"WantedBy"}]
        for found in (daemon, drain)
    ]
    assert both[0] == both[1]
    assert ("DynamicUser", "yes") in both[1]


def test_what_needs_a_person_is_not_tried_again_and_a_held_ledger_is_no_failure() -> None:
    assert value(DAEMON, "RestartPreventExitStatus").split() == [str(REFUSED), str(CONFIGURATION)]
    assert value(DRAIN, "SuccessExitStatus").split() == [str(HELD)]
    assert value(DAEMON, "Type") == "notify"


def test_the_process_has_time_to_end_itself_before_systemd_does() -> None:
    assert int(value(DAEMON, "TimeoutStopSec")) > 25 + 4
    assert int(value(DAEMON, "WatchdogSec")) > 60 + 4
