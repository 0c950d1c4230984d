"""What the ledger is asked: ``orders``, ``show``, ``status``, ``export``, ``db``.

One harvest is made for all of them; nothing here changes it.
"""

from __future__ import annotations

import asyncio
import csv
import json
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from harvester.sandbox import Sandbox, SandboxOptions
from tests.acceptance.harness import HARVESTER, Home, on_a_terminal

ROW = {
    *("id", "account_id", "idempotency_key", "status", "quantity", "metadata", "created_at"),
    *("first_seen_at", "last_seen_at", "next_check_at", "certificate"),
}
CERTIFICATE = {"state", "version", "path", "sha256", "size", "stored_at"}
TRANSITION = {"seq", "from", "to", "observed_at", "source"}
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
FORMULA = '=HYPERLINK("http://elsewhere.invalid","INV")'
HOSTILE = "ev\u202eil\x1b[31m\nINV-2"
SHARED = "INV-in-two-accounts"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return asyncio.run(_harvested(tmp_path_factory.mktemp("harvested")))


async def _harvested(folder: Path) -> Home:
    options = SandboxOptions(orders=14, client_accounts=1, speed=0, rate_limit=0)
    async with Sandbox(options) as lune:
        lune.create_order("placed", hold=True, idempotency_key=FORMULA)
        lune.create_order(
            "complete", hold=True, idempotency_key=HOSTILE, metadata={"note": "+1", "ö": "=1+1"}
        )
        for account in lune.accounts:
            lune.create_order("paid", hold=True, account_id=account.id, idempotency_key=SHARED)
        home = Home(folder, lune)
        assert (await home.run("run", "--drain")).code == 0
        # One certificate that is owed, so that every state but one is there.
        lune.faults.add("certificate-missing")
        lune.create_order("complete", hold=True, idempotency_key="INV-owed")
        assert (await home.run("run", "--drain", "--account", lune.accounts[0].id)).code == 3
    return home


@pytest.fixture(scope="module")
def orders(home: Home) -> dict[str, Any]:
    """The rows of ``orders --json`` by order id, as they are listed."""
    return asyncio.run(home.orders())


def times(value: Any) -> Iterable[str]:
    """Yield every instant in a document: the values whose names end in ``_at``."""
    for name, one in value.items() if isinstance(value, dict) else ():
        if name.endswith("_at") and one is not None:
            yield one
        yield from times(one)
    for one in value if isinstance(value, list) else ():
        yield from times(one)


def test_orders_json_has_exactly_the_promised_keys(orders: dict[str, Any]) -> None:
    rows = list(orders.values())
    assert len(rows) == 19
    assert all(set(row) == ROW for row in rows)
    states = Counter(row["certificate"] and row["certificate"]["state"] for row in rows)
    assert states.keys() == {None, "stored", "owed"}
    for row in rows:
        assert row["quantity"] is None or isinstance(row["quantity"], str)
        assert isinstance(row["metadata"], dict)
        assert all(INSTANT.fullmatch(at) for at in times(row))
        certificate = row["certificate"]
        assert certificate is None or set(certificate) == CERTIFICATE
        assert (certificate is None) == (row["status"] != "complete")
        if certificate and certificate["state"] == "stored":
            assert Path(certificate["path"]).stat().st_size == certificate["size"]
            assert row["next_check_at"] is None


def test_orders_are_listed_newest_first(orders: dict[str, Any]) -> None:
    born = [row["created_at"] for row in orders.values()]
    assert born == sorted(born, reverse=True)


async def test_every_filter_of_orders_leaves_what_it_says(
    home: Home, orders: dict[str, Any]
) -> None:
    account = next(iter(orders.values()))["account_id"]
    days = sorted(row["created_at"][:10] for row in orders.values())
    middle = days[len(days) // 2]

    def state(row: Any) -> str:
        return "none" if row["certificate"] is None else str(row["certificate"]["state"])

    expected: dict[tuple[str, ...], Callable[[Any], bool]] = {
        ("--status", "settling"): lambda row: False,
        ("--certificate", "none"): lambda row: state(row) == "none",
        ("--certificate", "owed"): lambda row: state(row) == "owed",
        ("--certificate", "stored"): lambda row: state(row) == "stored",
        ("--since", middle): lambda row: row["created_at"][:10] >= middle,
        ("--until", middle): lambda row: row["created_at"][:10] <= middle,
        ("--status", "paid", "--account", account): lambda row: (
            row["status"] == "paid" and row["account_id"] == account
        ),
    }
    found = await asyncio.gather(*(home.orders(*filters) for filters in expected))
    for rows, (filters, meant) in zip(found, expected.items(), strict=True):
        assert rows == {name: row for name, row in orders.items() if meant(row)}, filters
    limited = (await home.run("orders", "--json", "--limit", "3")).rows()
    assert limited == list(orders.values())[:3]


async def test_a_pipe_gets_a_line_per_order_whatever_its_key_holds(home: Home) -> None:
    ran = await home.run("orders")
    assert ran.code == 0
    assert len(ran.out.splitlines()) == 19
    assert "\x1b" not in ran.out
    assert "\u202e" not in ran.out
    assert r"ev\u202eil\x1b[31m\nINV-2" in ran.out


async def test_a_terminal_gets_a_table_with_a_heading(home: Home) -> None:
    code, drawn = await on_a_terminal(home, "orders")
    assert code == 0
    heading = drawn.splitlines()[0]
    assert all(word in heading for word in ("order", "status", "tonnes", "certificate"))
    assert "\x1b[31m" not in drawn


async def test_show_json_adds_the_transitions_and_the_certificates(
    home: Home, orders: dict[str, Any]
) -> None:
    states = [row for row in orders.values() if row["certificate"]]
    stored = next(row for row in states if row["certificate"]["state"] == "stored")
    shown = await home.show(stored["id"])
    assert {name: shown[name] for name in ROW} == stored
    (step,) = shown["transitions"]
    assert set(step) == TRANSITION
    assert (step["seq"], step["from"], step["to"]) == (1, None, "complete")
    assert step["source"] == "drain"
    (version,) = shown["certificates"]
    assert (
        version.items()
        >= {name: value for name, value in stored["certificate"].items() if name != "state"}.items()
    )
    assert all(INSTANT.fullmatch(at) for at in times(shown))


async def test_show_finds_an_order_by_its_idempotency_key(home: Home) -> None:
    assert (await home.show(FORMULA))["idempotency_key"] == FORMULA
    assert (await home.show(HOSTILE))["metadata"] == {"note": "+1", "ö": "=1+1"}


async def test_show_says_to_a_person_where_an_order_is_and_what_it_waits_for(home: Home) -> None:
    owed, placed = await asyncio.gather(home.run("show", "INV-owed"), home.run("show", FORMULA))
    assert (owed.code, placed.code) == (0, 0)
    assert "complete" in owed.out
    assert re.search("waits for.*certificate.*404", owed.out)
    assert re.search("waits for.*payment", placed.out)
    assert re.search(r"1\t-\tplaced\t.*\tdrain", placed.out)


async def test_show_asks_whose_when_two_accounts_have_the_key(
    home: Home, orders: dict[str, Any]
) -> None:
    ran = await home.run("show", SHARED)
    assert ran.code == 2
    accounts = {row["account_id"] for row in orders.values()}
    assert len(accounts) == 2
    assert all(account in ran.err for account in accounts)
    account = accounts.pop()
    chosen = await home.run("show", SHARED, "--account", account, "--json")
    assert chosen.document()["account_id"] == account


async def test_show_of_an_order_nobody_knows_exits_3_and_names_it(home: Home) -> None:
    ran = await home.run("show", "no\x1bthing", "--json")
    assert (ran.code, ran.out) == (3, "")
    assert r"no\x1bthing" in ran.err


async def test_status_counts_what_the_orders_are(home: Home, orders: dict[str, Any]) -> None:
    rows = orders.values()
    status = (await home.run("status", "--json")).document()
    assert status["orders"] == Counter(row["status"] for row in rows)
    states = Counter(row["certificate"]["state"] for row in rows if row["certificate"])
    assert {name: status["certificates"][name] for name in states} == states
    assert status["daemon"] is None
    assert INSTANT.fullmatch(status["next_wake_at"])
    assert {account["id"] for account in status["accounts"]} == {row["account_id"] for row in rows}
    assert all(INSTANT.fullmatch(account["last_sweep_at"]) for account in status["accounts"])


async def test_status_says_the_same_to_a_person(home: Home) -> None:
    ran = await home.run("status")
    assert ran.code == 0
    assert "1 owed" in ran.out
    assert "complete" in ran.out
    assert "next wake-up: 20" in ran.out
    assert ran.out.splitlines()[0] == "daemon: no daemon is running"


@pytest.mark.parametrize("arguments", [["orders"], ["show", "some"], ["status"], ["export"]])
async def test_without_a_ledger_a_reader_exits_78_and_says_what_makes_one(
    tmp_path: Path, arguments: list[str]
) -> None:
    empty = Home(tmp_path)
    ran = await empty.run(*arguments)
    assert (ran.code, ran.out) == (78, "")
    assert "harvester run" in ran.err
    assert not empty.ledger.parent.exists()


async def test_export_as_csv_has_a_row_per_order_and_runs_no_formula(
    home: Home, orders: dict[str, Any]
) -> None:
    ran = await home.run("export", "--format", "csv")
    assert ran.code == 0
    rows = list(csv.DictReader(ran.out.splitlines(keepends=True)))
    assert [row["id"] for row in rows] == list(orders)
    cells = [cell for row in rows for cell in row.values()]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    (formula,) = [row for row in rows if FORMULA in row["idempotency_key"]]
    assert formula["idempotency_key"] == "'" + FORMULA
    for row in rows:
        assert json.loads(row["metadata"]) == orders[row["id"]]["metadata"]
        certificate = orders[row["id"]]["certificate"] or {}
        assert row["certificate_state"] == certificate.get("state", "")
        assert row["certificate_sha256"] == (certificate.get("sha256") or "")


async def test_export_as_json_lines_is_what_orders_prints(
    home: Home, orders: dict[str, Any]
) -> None:
    exported = await home.run("export", "--format", "jsonl", "--status", "complete", "--limit", "4")
    complete = [row for row in orders.values() if row["status"] == "complete"]
    assert exported.rows() == complete[:4]


async def test_what_is_no_file_is_written_to_and_never_replaced(home: Home) -> None:
    target = home.folder / "null"
    target.symlink_to("/dev/null")
    assert (await home.run("export", "-o", target)).code == 0
    assert (await home.run("run", "--drain", "--report", target)).code in (0, 3)
    ran = await home.run("run", "--drain", "--metrics", target)
    assert (ran.code, "would replace what is no file" in ran.err) == (2, True)
    assert target.is_symlink()


async def test_export_to_a_file_replaces_it_only_when_it_is_whole(
    home: Home, tmp_path: Path
) -> None:
    target = tmp_path / "orders.csv"
    ran = await home.run("export", "-o", target)
    assert (ran.code, ran.out) == (0, "")
    whole = target.read_bytes()
    assert whole.decode() == (await home.run("export")).out
    other = Home(tmp_path)
    other.ledger.parent.mkdir()
    other.ledger.write_bytes(home.ledger.read_bytes()[:8192] + os.urandom(65536))
    ran = await other.run("export", "-o", target)
    assert ran.code != 0
    assert target.read_bytes() == whole
    assert [path.name for path in tmp_path.glob("*orders.csv*")] == ["orders.csv"]


async def test_a_reader_that_goes_away_is_no_fault(home: Home) -> None:
    process = await asyncio.create_subprocess_exec(
        "sh",
        "-c",
        '"$0" export --format jsonl | head -c 1',
        HARVESTER,
        cwd=home.folder,
        env=home.environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert (out, err) == (b"{", b"")


async def test_db_current_and_backup_read_and_upgrade_makes_a_ledger(
    home: Home, tmp_path: Path
) -> None:
    current = (await home.run("db", "current", "--json")).document()
    assert current["schema"] == current["head"]
    copy = tmp_path / "copy.db"
    ran = await home.run("db", "backup", copy)
    assert ran.code == 0
    assert str(copy) in ran.out
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM orders").fetchone() == (19,)
    again = await home.run("db", "backup", copy)
    assert again.code != 0
    assert str(copy) in again.err

    fresh = Home(tmp_path)
    nothing = await fresh.run("db", "current", "--json")
    assert (nothing.code, nothing.document()["schema"]) == (0, None)
    assert not fresh.ledger.exists()
    made = await fresh.run("db", "upgrade")
    assert made.code == 0
    assert current["head"] in made.out
    assert fresh.ledger.stat().st_mode & 0o777 == 0o600


async def test_a_drain_s_summary_counts_one_as_one(tmp_path: Path) -> None:
    async with Sandbox(SandboxOptions(orders=1, client_accounts=0, speed=0)) as lune:
        ran = await Home(tmp_path, lune).run("run", "--drain")
    assert not re.search(r"\b1 (\w+ )?(orders|accounts|certificates|requests)\b", ran.out)
