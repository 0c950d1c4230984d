"""Commands that are run for events: what they are given, what is believed, how they end."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from harvester.config.load import NOT_SETTINGS
from harvester.domain.deliveries import DeliveryFailure
from harvester.domain.events import EVENT_VARIABLES, Event, cloud_event
from harvester.events.command import CommandHook

AT = datetime(2026, 3, 1, tzinfo=UTC)
STORED: dict[str, Any] = {
    "idempotency_key": "INV-1",
    "version": 2,
    "kind": "final",
    "sha256": "a" * 64,
    "size": 61_440,
    "path": "acct/2026-03/o1.v2.pdf",
}


def event(data: dict[str, Any], kind: str = "certificate.stored") -> Event:
    return Event(7, "an-id", kind, "acct", "o1", AT, data)


def hook(*command: str, seconds: float = 30, root: Path = Path("/srv/archive")) -> CommandHook:
    return CommandHook(command, timedelta(seconds=seconds), root.joinpath)


def writing(file: Path) -> CommandHook:
    """Make a hook that writes what it was given into a file."""
    script = (
        "import json, os, sys;"
        "given = {'stdin': sys.stdin.read(), 'environment': dict(os.environ)};"
        "open(sys.argv[1], 'w').write(json.dumps(given))"
    )
    return hook(sys.executable, "-c", script, str(file))


def sleeping(pids: Path, seconds: float = 30) -> CommandHook:
    """Make a hook that sleeps, and so does what it started; both processes are in a file."""
    script = "sleep 600 & echo $! $$ >$0.part; mv $0.part $0; wait"
    return hook("/bin/sh", "-c", script, str(pids), seconds=seconds)


async def given(file: Path, what: Event) -> tuple[Any, dict[str, str]]:
    assert await writing(file).send(what) is None
    found = json.loads(file.read_text())
    return json.loads(found["stdin"]), found["environment"]


async def test_a_command_gets_the_event_on_stdin_and_in_its_environment(tmp_path: Path) -> None:
    stdin, environment = await given(tmp_path / "given", event(STORED))
    assert stdin == cloud_event(event(STORED))
    ours = {name: text for name, text in environment.items() if name.startswith("HARVESTER_")}
    assert ours == {
        "HARVESTER_EVENT_ID": "an-id",
        "HARVESTER_EVENT_TYPE": "certificate.stored",
        "HARVESTER_EVENT_SEQUENCE": "7",
        "HARVESTER_EVENT_TIME": "2026-03-01T00:00:00Z",
        "HARVESTER_ORDER_ID": "o1",
        "HARVESTER_ACCOUNT_ID": "acct",
        "HARVESTER_IDEMPOTENCY_KEY": "INV-1",
        "HARVESTER_CERTIFICATE_VERSION": "2",
        "HARVESTER_CERTIFICATE_KIND": "final",
        "HARVESTER_CERTIFICATE_SHA256": "a" * 64,
        "HARVESTER_CERTIFICATE_SIZE": "61440",
        "HARVESTER_CERTIFICATE_PATH": "/srv/archive/acct/2026-03/o1.v2.pdf",
    }
    moved = event({"status": "paid", "previous_status": None}, "order.status_changed")
    _, environment = await given(tmp_path / "given", moved)
    assert environment["HARVESTER_STATUS"] == "paid"
    assert not {"HARVESTER_PREVIOUS_STATUS", "HARVESTER_CERTIFICATE_PATH"} & environment.keys()


async def test_nothing_else_of_our_environment_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HARVESTER_LUNE__API_KEY", "AWS_SECRET_ACCESS_KEY", "CREDENTIALS_DIRECTORY"):
        monkeypatch.setenv(name, "a-secret-of-ours")
    _, environment = await given(tmp_path / "given", event(STORED))
    known = EVENT_VARIABLES | {"PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR"}
    assert environment.keys() - known <= {"LC_CTYPE", "PWD", "SHLVL", "_"}  # made by the program
    assert environment["PATH"] == os.environ["PATH"]
    assert "a-secret-of-ours" not in environment.values()


def test_a_command_may_run_the_harvester_itself() -> None:
    assert EVENT_VARIABLES <= NOT_SETTINGS


async def test_a_text_that_no_environment_can_hold_is_in_the_json_only(tmp_path: Path) -> None:
    odd = {"idempotency_key": "INV\0-1", "status": "half \udce9"}
    stdin, environment = await given(tmp_path / "given", event(odd))
    assert stdin["data"]["idempotency_key"] == "INV\0-1"
    assert not {"HARVESTER_IDEMPOTENCY_KEY", "HARVESTER_STATUS"} & environment.keys()


async def test_a_command_is_not_run_by_a_shell(tmp_path: Path) -> None:
    outcome = await hook("/bin/echo", f"x > {tmp_path}/made; false").send(event({}))
    assert outcome is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["/bin/false"], "exit status 1"),
        (["/bin/sh", "-c", "cat; exit 75"], "exit status 75"),
        (["/bin/sh", "-c", "kill -TERM $$"], "ended by signal 15"),
        (["/nowhere/at/all"], "cannot be run: No such file or directory"),
        (["/etc/passwd"], "cannot be run: Permission denied"),
    ],
)
async def test_anything_but_success_means_not_accepted(command: list[str], reason: str) -> None:
    of_event = reason.startswith("exit")  # the others are about every event
    assert await hook(*command).send(event({})) == DeliveryFailure(reason, of_event=of_event)


async def test_a_command_that_does_not_read_is_not_a_fault() -> None:
    large = event({"anything": "x" * 500_000})  # more than a pipe holds
    assert await hook("/bin/true").send(large) is None


async def test_what_a_command_prints_goes_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    assert await hook("/bin/sh", "-c", "echo loud; echo louder >&2").send(event({})) is None
    assert capfd.readouterr() == ("", "")


async def test_a_command_that_takes_too_long_is_killed_with_all_it_started(
    tmp_path: Path,
) -> None:
    pids = tmp_path / "pids"
    outcome = await sleeping(pids, seconds=2).send(event({}))
    assert outcome == DeliveryFailure("took longer than 2 s")
    await are_gone(pids)


async def test_a_command_that_is_abandoned_is_killed(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    sending = asyncio.create_task(sleeping(pids).send(event({})))
    await abandon(sending, pids)


async def test_a_command_that_is_abandoned_while_it_starts_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids, start = tmp_path / "pids", asyncio.create_subprocess_exec

    async def start_slowly(*command: str, **options: Any) -> asyncio.subprocess.Process:
        process = await start(*command, **options)
        await asyncio.sleep(0.3)  # a busy loop: it runs, and nobody knows of it yet
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_slowly)
    sending = asyncio.create_task(sleeping(pids).send(event({})))
    await abandon(sending, pids)


async def abandon(sending: asyncio.Task[DeliveryFailure | None], pids: Path) -> None:
    """Cancel once the processes run; they have to end."""
    async with asyncio.timeout(60):
        while not pids.exists():  # noqa: ASYNC110 - nothing tells of a file
            await asyncio.sleep(0.02)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    await are_gone(pids)


async def are_gone(pids: Path) -> None:
    """Wait until the processes are dead, zombies included."""
    async with asyncio.timeout(10):
        for pid in pids.read_text().split():
            while _lives(pid):  # noqa: ASYNC110 - nothing tells when a process that is not our child ends
                await asyncio.sleep(0.02)


def _lives(pid: str) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
