"""How the service manager is notified, on a real datagram socket."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from harvester.context import Limits, Stop
from harvester.domain.errors import LedgerUnavailable
from harvester.liveness import StepHungError
from harvester.runtime.daemon import Daemon
from harvester.runtime.systemd import Reports, Supervisor, standing
from tests.integration.test_daemon import Steps, daemon_of


@contextmanager
def listening(address: str | Path) -> Iterator[socket.socket]:
    """Listen as a service manager does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.setblocking(False)
        yield manager


def notifications(manager: socket.socket) -> list[dict[str, str]]:
    """Return the datagrams that came, as the variables they assign."""
    found: list[dict[str, str]] = []
    while True:
        try:
            text = manager.recv(65536).decode()
        except BlockingIOError:
            return found
        found.append(dict(line.split("=", 1) for line in text.split("\n")))


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with listening(tmp_path / "notify") as one:
        yield one


def supervisor(manager: socket.socket, watchdog: float | None = None) -> Supervisor:
    return Supervisor(manager.getsockname(), watchdog)


def test_a_socket_with_a_path_is_told(manager: socket.socket) -> None:
    supervisor(manager).ready("started")
    assert notifications(manager) == [{"READY": "1", "STATUS": "started"}]


def test_an_abstract_socket_is_told() -> None:
    name = f"harvester-test-{os.getpid()}"
    with listening("\0" + name) as manager:
        Supervisor("@" + name).ready("started")
        assert notifications(manager)[0]["READY"] == "1"


@pytest.mark.parametrize("address", ["/nowhere/notify", "relative", "/" + "x" * 200, "\0"])
def test_a_socket_that_is_not_there_stops_nothing_and_is_said_once(address: str) -> None:
    deaf = Supervisor(address, 1.0)
    with capture_logs() as lines:
        deaf.ready("started")
        deaf.alive("following 1 order")
        deaf.stopping()
    assert [line["event"] for line in lines] == ["service manager not notified"]


def test_a_manager_that_does_not_read_is_not_waited_for(manager: socket.socket) -> None:
    one = supervisor(manager, 1.0)
    for _ in range(10_000):  # far more than a socket takes
        one.alive("following 1 order")
    assert 0 < len(notifications(manager)) < 10_000


def test_the_managers_variables_are_taken_out_of_the_environment() -> None:
    environment = {
        "NOTIFY_SOCKET": "@x",
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": str(os.getpid()),
        "PATH": "/bin",
    }
    found = Supervisor.of(environment)
    assert (found.listens, found.watchdog) == (True, 3.0)
    assert environment == {"PATH": "/bin"}


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "-1"},
        {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"},
    ],
)
def test_no_sign_of_life_is_wanted_of_us(variables: dict[str, str]) -> None:
    assert Supervisor.of({"NOTIFY_SOCKET": "@x", **variables}).watchdog is None


def test_a_reload_is_framed_with_the_monotonic_clock(manager: socket.socket) -> None:
    one = supervisor(manager)
    one.ready("started")
    one.reloading()
    one.reloaded("configuration not reloaded: x")
    one.alive("following 1 order")
    one.reloaded()
    _, begun, over, later, good = notifications(manager)
    assert begun["RELOADING"] == "1"
    assert int(begun["MONOTONIC_USEC"]) > 0
    assert over == {"READY": "1", "STATUS": "started; configuration not reloaded: x"}
    assert later == {"STATUS": "following 1 order; configuration not reloaded: x"}
    assert good["STATUS"] == "following 1 order"


def test_a_text_from_outside_cannot_forge_a_line(manager: socket.socket) -> None:
    supervisor(manager).ready("Lune: x\nSTOPPING=1\0" + "y" * 5000)
    (one,) = notifications(manager)
    assert "STOPPING" not in one
    assert len(one["STATUS"]) < 1000


def test_how_things_stand_is_a_line() -> None:
    assert standing(1, 0, None) == "following 1 order, 0 certificates owed, no sweep yet"
    line = standing(120, 3, timedelta(minutes=2), "Lune refuses the key", None)
    assert line == (
        "following 120 orders, 3 certificates owed, last sweep 2 min ago; Lune refuses the key"
    )
    assert standing(0, 1, timedelta(hours=26)).endswith("1 certificate owed, last sweep 26 h ago")


class Clock:
    """A monotonic clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_signs_of_life_come_at_half_the_time_and_no_sooner(manager: socket.socket) -> None:
    clock = Clock()

    async def state() -> str:
        return "fine"

    reports = Reports(supervisor(manager, 60.0), state, lambda: 0, Stop(), clock)
    notified_at = []
    for _ in range(130):
        reports.look()
        await settled()
        notified_at += [clock.now] * len(notifications(manager))
        clock.now += 1.0
    gaps = [after - before for before, after in pairwise(notified_at)]
    assert notified_at[0] == 100.0
    assert len(gaps) >= 3
    assert all(28.0 <= gap <= 30.0 for gap in gaps)


async def test_after_something_was_asked_the_text_is_soon_a_new_one(
    manager: socket.socket,
) -> None:
    clock, asked = Clock(), [0]

    async def state() -> str:
        return f"asked {asked[0]}"

    reports = Reports(supervisor(manager), state, lambda: asked[0], Stop(), clock)
    reports.look()
    await settled()
    asked[0], clock.now = 7, clock.now + 6.0
    reports.look()
    await settled()
    assert [one["STATUS"] for one in notifications(manager)] == ["asked 0", "asked 7"]


async def test_a_ledger_that_does_not_answer_leaves_no_sign_of_life(
    manager: socket.socket,
) -> None:
    clock = Clock()
    reports = Reports(supervisor(manager, 60.0), _never, lambda: 0, Stop(), clock)
    for _ in range(100):
        reports.look()
        await settled()
        clock.now += 30.0
    assert notifications(manager) == []
    await asyncio.wait_for(reports.close(), 5)


async def _never() -> str:
    await asyncio.Event().wait()
    raise AssertionError


async def test_a_ledger_that_cannot_be_used_is_a_text_and_a_sign_of_life(
    manager: socket.socket,
) -> None:
    async def state() -> str:
        raise LedgerUnavailable("the disk is full")

    Reports(supervisor(manager, 60.0), state, lambda: 0, Stop()).look()
    await settled()
    assert notifications(manager) == [{"STATUS": "the disk is full", "WATCHDOG": "1"}]


async def test_a_stop_is_notified_at_once(manager: socket.socket) -> None:
    stop, steps = Stop(), Steps()
    steps.hang.set()
    running = asyncio.create_task(watched(daemon_of(steps, stop), manager, stop))
    await asyncio.wait_for(steps.hanging.wait(), 5)
    stop.request()
    await asyncio.wait_for(running, 5)
    assert notifications(manager)[-1]["STOPPING"] == "1"


async def test_signs_of_life_end_with_a_step_that_hangs(manager: socket.socket) -> None:
    stop = Stop()
    daemon = daemon_of(Steps(), stop, limits=Limits(step_timeout=2.0))
    with capture_logs(), pytest.raises(StepHungError):
        await asyncio.wait_for(watched(daemon, manager, stop, 0.4), 20)
    assert len([one for one in notifications(manager) if "WATCHDOG" in one]) >= 2
    await asyncio.sleep(1.0)  # five times as long as between two signs
    assert notifications(manager) == []


async def watched(
    daemon: Daemon, manager: socket.socket, stop: Stop, watchdog: float | None = None
) -> None:
    async def state() -> str:
        return "fine"

    reports = Reports(supervisor(manager, watchdog), state, lambda: 0, stop)
    try:
        await daemon.run_forever(reports.look)
    finally:
        await reports.close()
