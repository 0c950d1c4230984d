"""The benchmarks still run and still compare what they say: their small settings, no timings."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

from harvester.ledger.audit import contradictions
from harvester.ledger.database import open_reader
from harvester.ledger.queries import find_orders
from tests.bench import economy, idle, ledger, load, peers, rate_limit
from tests.bench.__main__ import BENCHMARKS, print_table
from tests.bench.large_ledger import TRANSITIONS, make_large_ledger
from tests.bench.processes import run
from tests.bench.static_lune import StaticLune
from tests.bench.virtual_time import simulate
from tests.needs import need

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin:/sbin:/bin")


def figure(row: Mapping[str, object], name: str) -> float:
    value = row[name]
    assert isinstance(value, int | float)
    return value


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_a_module_that_measures(name: str) -> None:
    assert callable(importlib.import_module(f"tests.bench.{name}").measure)


def test_a_table_has_the_columns_of_all_rows(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([{"way": "curl", "a second": 1}, {"way": "aria2c", "peak MB": 2}])
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["way", "a", "second", "peak", "MB"],
        ["curl", "1"],
        ["aria2c", "2"],
    ]


def test_following_costs_fewer_requests_than_asking_for_each_order() -> None:
    rows = {row["way"]: row for row in economy.measure(small=True)}
    assert figure(rows["harvester"], "requests/day") < figure(rows["GET each"], "requests/day")


def test_every_way_brings_every_certificate() -> None:
    need(NGINX, "nginx")
    rows = {row["way"]: row for row in peers.measure(small=True)}
    assert set(rows) == set(peers.installed())
    assert peers.HARVEST in rows
    for row in rows.values():
        assert figure(row, "a second") > 0
        assert figure(row, "CPU ms each") > 0
        assert figure(row, "peak MB") > 5


@pytest.mark.parametrize("damage", ["changed", "missing", "more"])
def test_a_way_that_brings_other_files_is_not_counted(tmp_path: Path, damage: str) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.pdf").write_text(name)
    lune = StaticLune("", ("one", "two"), frozenset({digest("one"), digest("two")}))
    peers.check("a way", tmp_path, lune)
    match damage:
        case "changed":
            (tmp_path / "two.pdf").write_text("too")
        case "missing":
            (tmp_path / "two.pdf").unlink()
        case _:
            (tmp_path / "three.pdf").write_text("three")
    with pytest.raises(peers.Incomplete):
        peers.check("a way", tmp_path, lune)


def test_the_rate_limiter_alone_is_never_refused_and_others_are() -> None:
    rows = {row["way"]: row for row in rate_limit.measure(small=True) if row["setting"] == "alone"}
    assert rows[rate_limit.HARVEST]["429s an hour"] == 0
    assert figure(rows[rate_limit.HARVEST], "% of limit") > 75
    assert figure(rows["even, 100 %"], "429s an hour") > 0


def test_beside_bursts_the_rate_limiter_makes_way_and_spacing_does_not() -> None:
    found = rate_limit.measure(small=True)
    rows = {row["way"]: row for row in found if row["setting"] == "beside bursts"}
    limited, spaced = rows["harvester, 15/s"], rows["even, 100 %"]
    assert figure(limited, "429s an hour") < figure(spaced, "429s an hour") / 2
    refused = "other's tries refused %"
    assert figure(limited, refused) < figure(spaced, refused)


def test_a_simulated_server_refuses_what_is_beyond_its_second() -> None:
    async def ask() -> tuple[int, int]:
        server = rate_limit.Server(15, seed=1)
        await asyncio.gather(*(server.request("") for _ in range(20)))
        await asyncio.sleep(1)
        await asyncio.gather(*(server.request("") for _ in range(20)))
        return server.accepted.total(), server.refused.total()

    assert simulate(ask()) == (30, 10)


def test_virtual_time_passes_only_while_all_wait() -> None:
    async def ticks() -> list[float]:
        clock = asyncio.get_running_loop().time
        seen = [clock()]
        for seconds in (0.0, 86_400.0, 0.001):
            await asyncio.sleep(seconds)
            seen.append(clock())
        return seen

    assert simulate(ticks()) == pytest.approx([0.0, 0.0, 86_400.0, 86_400.001])


def test_waiting_for_nothing_is_an_error_and_no_hang() -> None:
    async def wait() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="for nothing"):
        simulate(wait())


def test_a_large_ledger_is_one_that_the_commands_read(tmp_path: Path) -> None:
    rows = {row["what"]: row for row in ledger.measure(small=True, folder=tmp_path)}
    assert figure(rows["file, documents apart"], "bytes an order") > 0
    assert rows["planning, nothing due"]["rows"] == 0
    assert (
        rows["planning, all checks due"]["rows"] == 20
    )  # of two thousand, every hundredth is open
    assert rows["export"]["rows"] == 2000
    assert {"show ID", "status", "run, to the first request"} <= set(rows)


async def test_a_large_ledger_breaks_no_rule_of_a_ledger(tmp_path: Path) -> None:
    made = make_large_ledger(tmp_path / "ledger.db", 1300, 3)
    assert made.bytes > made.bare_bytes > 0
    async with open_reader(made.path) as database:
        assert await contradictions(database) == []
        (found,) = await find_orders(database, made.order_id(1234))
    assert found.order.account_id == made.account_id(1234)
    assert [step.after for step in found.transitions] == list(TRANSITIONS)
    with closing(sqlite3.connect(made.path)) as connection:
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


def test_the_daemon_at_rest_asks_for_nothing() -> None:
    rows = {str(row["what"]).split(",")[0]: row for row in idle.measure(small=True)}
    assert rows["run"]["requests"] == 0
    assert figure(rows["run"], "MB") > 10
    assert {"--help", "status"} <= set(rows)


def test_beside_a_flood_the_harvest_goes_on_and_webhooks_are_taken() -> None:
    rows = load.measure(small=True)
    assert [row["phase"] for row in rows] == [
        "quiet",
        "webhooks",
        "quiet",
        "all together",
        "quiet",
    ]
    assert sum(figure(row, "certificates/s") for row in rows) > 0
    for row in rows:
        assert figure(row, "peak MB") > 10
    for row in rows[1::2]:
        # How many are taken, beside strangers, is a matter of the machine.
        assert figure(row, "200") + figure(row, "503") + figure(row, "other") > 0
        assert row["of quiet"]
    assert figure(rows[1], "200") > 0


def test_what_a_command_costs_counts_what_it_started(tmp_path: Path) -> None:
    work = "sum(range(10_000_000)); bytearray(100_000_000)"
    inner = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}], check=True)"
    cost = run([sys.executable, "-c", inner], folder=tmp_path)
    assert cost.cpu > 0.05
    assert cost.peak_mb > 100


def test_a_command_that_fails_has_no_cost(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as raised:
        run([sys.executable, "-c", "raise SystemExit('no')"], folder=tmp_path)
    assert raised.value.returncode == 1
    assert raised.value.stderr.strip() == b"no"
