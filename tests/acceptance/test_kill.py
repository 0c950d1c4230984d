"""Killed at any moment, or asked to stop: nothing is lost, half, twice or invented."""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from tests.acceptance.conftest import House
from tests.acceptance.other_lune import Habits, OtherLune

ROUNDS = 8
DAYS = ["placed", "paid", "retiring", "complete"]


def slow_lune(orders: int) -> OtherLune:
    """Return a Lune with two accounts' orders, most of them complete, behind a slow line."""
    draw = random.Random(3)
    lune = OtherLune(Habits(chunk_seconds=0.02))
    for account in lune.live:
        statuses = draw.choices(DAYS, [1, 1, 1, 12], k=orders // 2)
        lune.add_orders(account, statuses, size=lambda: draw.randrange(20_000, 60_000))
    return lune


@pytest.fixture
def large() -> Iterator[OtherLune]:
    """300 orders: enough for fifteen rounds of killing."""
    with slow_lune(300) as lune:
        yield lune


@pytest.fixture
def lune() -> Iterator[OtherLune]:
    """60 orders."""
    with slow_lune(60) as lune:
        yield lune


def move(lune: OtherLune, draw: random.Random) -> None:
    """Let some of the open orders go a step or two on."""
    still_open = [order for order in lune.orders.values() if order.status != "complete"]
    for order in draw.sample(still_open, k=len(still_open) // 6):
        ahead = DAYS[DAYS.index(order.status) + 1 :][:2]
        order.status = draw.choice(ahead)


def wait_for_a_moment(
    lune: OtherLune, process: subprocess.Popen[bytes], draw: random.Random
) -> None:
    """Wait for a random moment: of the work in two cases of three, else of starting up too."""
    if draw.random() < 1 / 3:
        time.sleep(draw.uniform(0, 1.5))
        return
    enough = len(lune.asked("/certificate")) + draw.randrange(1, 25)
    deadline = time.monotonic() + 15
    while len(lune.asked("/certificate")) < enough and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.06))


def assert_every_file_is_whole(house: House, lune: OtherLune) -> dict[str, str]:
    """See that each file under a final name is its order's certificate; return them by order."""
    files = house.certificates()
    found = {name.rpartition("/")[2].removesuffix(".pdf"): sha for name, sha in files.items()}
    assert len(found) == len(files)
    for order, sha256 in found.items():
        assert sha256 == hashlib.sha256(lune.orders[order].certificate).hexdigest(), order
    return found


def assert_all_is_there_once(house: House, lune: OtherLune) -> None:
    """See that ledger and archive agree with Lune and with each other in everything."""
    files = assert_every_file_is_whole(house, lune)
    assert files.keys() == lune.orders.keys()
    assert house.temporaries() == []
    rows = house.orders("--certificate", "stored")
    assert {order: row["certificate"]["sha256"] for order, row in rows.items()} == files
    assert {row["certificate"]["version"] for row in rows.values()} == {1}
    assert house.query("SELECT count(*) FROM files") == [(len(files),)]
    assert house.query("PRAGMA integrity_check") == [("ok",)]
    assert house.query("PRAGMA foreign_key_check") == []
    chains = house.chains()
    assert chains.keys() == lune.orders.keys()
    for order, chain in chains.items():
        served = iter(lune.statuses[order])
        assert all(status in served for status, _ in chain), f"{order}: {chain} was not served"
        assert chain[-1][0] == "complete"
    verified = house.run("verify")
    assert verified.code == 0, verified.err


def finish(house: House, lune: OtherLune) -> None:
    """Complete every order, drain once more, and see that all is there."""
    for order in lune.orders.values():
        order.status = "complete"
    lune.habits = Habits()
    last = house.drain()
    assert last.code == 0, last.err
    assert_all_is_there_once(house, lune)


@pytest.mark.parametrize(("command", "rounds"), [(["run", "--drain"], ROUNDS), (["run"], 4)])
def test_a_harvester_killed_again_and_again_stores_everything_once(
    house: House,
    large: OtherLune,
    tell: Callable[[str], None],
    command: list[str],
    rounds: int,
) -> None:
    lune = large
    draw = random.Random(len(command))
    house.configure(lune.base_url, lune.key)
    outcomes = []
    for _ in range(rounds):
        process = house.start(*command)
        wait_for_a_moment(lune, process, draw)
        process.kill()
        outcomes.append(house.finish(process).code)
        stored = assert_every_file_is_whole(house, lune) if house.archive.exists() else {}
        outcomes.append(len(stored))
        move(lune, draw)
    finish(house, lune)
    recovered = sum(
        log.read_text().count("certificate recovered") for log in house.said.glob("*.err")
    )
    killed = outcomes[::2].count(-signal.SIGKILL)
    assert killed > rounds // 2
    tell(
        f"{' '.join(command)}: killed {killed} times with {outcomes[1::2]} files, "
        f"{len(lune.asked('/certificate'))} downloads for {len(lune.orders)} certificates, "
        f"{recovered} recovered"
    )


@pytest.mark.parametrize(("command", "code"), [(["run"], 0), (["run", "--drain"], 130)])
def test_asked_to_stop_it_ends_what_it_began(
    house: House, lune: OtherLune, command: list[str], code: int
) -> None:
    lune.habits = Habits(chunk_seconds=0.6)
    house.configure(lune.base_url, lune.key)
    process = house.start(*command)
    house.until(lambda: len(lune.asked("/certificate")) >= 4, "downloads")
    process.send_signal(signal.SIGTERM)
    ended = house.finish(process, timeout=20)
    assert ended.code == code
    downloads = lune.asked("/certificate")
    assert {one.status for one in downloads} == {200}
    assert len(assert_every_file_is_whole(house, lune)) == len(downloads)
    assert house.temporaries() == []

    finish(house, lune)
    assert len(lune.asked("/certificate")) == len(lune.orders)


@pytest.mark.parametrize(("command", "code"), [(["run"], 0), (["run", "--drain"], 130)])
def test_asked_twice_it_stops_at_once(
    house: House, lune: OtherLune, command: list[str], code: int
) -> None:
    lune.habits = Habits(chunk_seconds=15)
    house.configure(lune.base_url, lune.key)
    process = house.start(*command)
    house.until(lambda: len(lune.asked("/certificate")) >= 4, "downloads")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)  # two signals of one kind at once are one
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    ended = house.finish(process, timeout=20)
    assert (ended.code, ended.seconds < 5) == (code, True)
    assert house.certificates() == {}


@pytest.mark.parametrize("second", [["run"], ["run", "--drain"]])
def test_a_second_harvester_gives_way_and_names_the_first(
    house: House, lune: OtherLune, second: list[str]
) -> None:
    lune.habits = Habits(chunk_seconds=0.5)
    house.configure(lune.base_url, lune.key)
    first = house.start("run")
    house.until(lambda: lune.asked("/certificate"), "downloads")
    ended = house.run(*second)
    assert ended.code == 75
    assert f" {first.pid} " in ended.err
    assert first.poll() is None
    first.kill()
    house.finish(first)

    finish(house, lune)
