"""``run --drain``: once over, to the end, with a report of what was had and what was not."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import signal
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from harvester.sandbox import Sandbox, SandboxOptions
from tests.acceptance.harness import Home, events, hurry, on_a_terminal, until

DRAIN = ("run", "--drain")
CERTIFICATE = "GET /orders/{id}/certificate"


@pytest.fixture
async def lune() -> AsyncIterator[Sandbox]:
    options = SandboxOptions(orders=14, client_accounts=1, speed=0, rate_limit=0)
    async with Sandbox(options) as sandbox:
        yield sandbox


@pytest.fixture
def home(tmp_path: Path, lune: Sandbox) -> Home:
    return Home(tmp_path, lune)


def served(lune: Sandbox, status: str | None = None) -> set[str]:
    """Return the ids of the sandbox's orders, all or those in one status."""
    orders = [order for account in lune.accounts for order in lune.orders(account.id)]
    return {order.id for order in orders if status in (None, lune.status(order.id))}


def ids(files: set[str]) -> set[str]:
    """Return the order ids that the names of certificates begin with."""
    return {Path(name).name.partition(".")[0] for name in files}


def contents(folder: Path) -> dict[str, str]:
    """Return what lies in a folder: each path with the digest of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in folder.rglob("*")
        # SQLite's readers map the ledger through these; they hold nothing when nobody writes.
        if not (path.name.endswith(("-shm", "-wal")) and path.name.startswith("harvester.db"))
    }


def counts(ledger: Path) -> dict[str, int]:
    """Return the number of rows of each of the ledger's tables."""
    with contextlib.closing(sqlite3.connect(f"{ledger.as_uri()}?mode=ro", uri=True)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return {
            table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for (table,) in tables.fetchall()
        }


async def test_a_drain_records_every_order_and_stores_every_certificate(
    home: Home, lune: Sandbox
) -> None:
    ran = await home.run(*DRAIN)
    assert ran.code == 0, ran.err
    rows = await home.orders()
    assert {name: row["status"] for name, row in rows.items()} == {
        name: lune.status(name) for name in served(lune)
    }
    complete = served(lune, "complete")
    assert ids(home.files()) == complete
    for name in complete:
        certificate = rows[name]["certificate"]
        data = Path(certificate["path"]).read_bytes()
        assert data == lune.certificate(name)
        assert certificate["sha256"] == hashlib.sha256(data).hexdigest()
        assert certificate["size"] == len(data)
    assert f"{len(rows)} orders" in ran.out
    assert f"{len(complete)} certificates stored" in ran.out


async def test_a_second_drain_asks_for_no_certificate_again(home: Home, lune: Sandbox) -> None:
    await home.run(*DRAIN)
    stored = contents(home.archive)
    lune.journal.clear()
    ran = await home.run(*DRAIN, "--json")
    assert (ran.code, ran.document()["certificates_stored"]) == (0, 0)
    assert lune.journal.count(CERTIFICATE) == 0
    assert contents(home.archive) == stored


async def test_json_is_one_document_on_stdout_and_the_same_as_the_report(
    home: Home, lune: Sandbox
) -> None:
    ran = await home.run(*DRAIN, "--json", "--report", "report.json")
    assert ran.code == 0, ran.err
    report = ran.document()
    assert json.loads((home.folder / "report.json").read_text()) == report
    assert (report["exit_code"], report["interrupted"], report["dry_run"]) == (0, False, False)
    assert report["accounts"] == len(lune.accounts)
    assert report["orders_seen"] == report["orders_new"] == len(served(lune))
    assert report["certificates_stored"] == len(served(lune, "complete"))
    assert report["certificates_missing"] == []
    assert report["requests"] == lune.journal.count()
    waiting = {one["id"]: one["status"] for one in report["open"]}
    assert waiting == {
        name: status
        for status in ("received", "placed", "paid", "retiring")
        for name in served(lune, status)
    }
    assert all(one["waits_for"] for one in report["open"])
    assert not list(home.folder.glob(".report.json*"))


async def test_since_and_until_are_days_in_utc_and_both_count(home: Home, lune: Sandbox) -> None:
    born = {name: datetime.fromtimestamp(lune.order(name).created_at, UTC) for name in served(lune)}
    days = sorted({at.date() for at in born.values()}, reverse=True)
    first, last = days[-3], days[2]
    ran = await home.run(*DRAIN, "--since", str(first), "--until", str(last), "--json")
    assert ran.code == 0, ran.err
    meant = {name for name, at in born.items() if first <= at.date() <= last}
    complete = served(lune, "complete") & meant
    assert complete
    assert ids(home.files()) == complete
    assert {one["id"] for one in ran.document()["open"]} <= meant
    assert meant <= set(await home.orders())


async def test_account_drains_that_account_alone(home: Home, lune: Sandbox) -> None:
    client = lune.accounts[1]
    ran = await home.run(*DRAIN, "--account", client.id, "--json")
    assert (ran.code, ran.document()["accounts"]) == (0, 1)
    rows = await home.orders()
    assert set(rows) == {order.id for order in lune.orders(client.id)}


async def test_an_account_the_key_does_not_reach_is_named_and_exits_3(home: Home) -> None:
    ran = await home.run(*DRAIN, "--account", "nobody", "--json", "--report", "report.json")
    assert ran.code == 3
    assert "nobody" in ran.err
    assert "nobody" in (home.folder / "report.json").read_text()
    assert ran.document()["exit_code"] == 3


async def test_a_dry_run_on_nothing_leaves_nothing(home: Home, lune: Sandbox) -> None:
    temporary = home.folder / "tmp"
    temporary.mkdir()
    before = contents(home.folder)
    ran = await home.run(*DRAIN, "--dry-run", "--json", env={"TMPDIR": str(temporary)})
    assert ran.code == 0, ran.err
    assert contents(home.folder) == before
    report = ran.document()
    assert (report["dry_run"], report["certificates_stored"]) == (True, 0)
    assert report["orders_new"] == len(served(lune))
    assert lune.journal.count(CERTIFICATE) == 0


async def test_a_dry_run_leaves_the_ledger_as_it_is_and_needs_no_lock(
    home: Home, lune: Sandbox
) -> None:
    await home.run(*DRAIN)
    lune.create_order("complete", hold=True)
    moved = served(lune, "retiring").pop()
    lune.move_order(moved, "complete")
    before, rows = contents(home.folder), counts(home.ledger)
    ran = await home.run(*DRAIN, "--dry-run")
    assert ran.code == 0, ran.err
    assert "1 new, 1 changed" in ran.out
    assert "2 certificates would be asked for" in ran.out
    assert contents(home.folder) == before
    assert counts(home.ledger) == rows
    async with home.daemon():
        beside = await home.run(*DRAIN, "--dry-run")
    assert beside.code == 0, beside.err


async def test_a_certificate_that_comes_within_the_wait_is_stored(
    home: Home, lune: Sandbox
) -> None:
    late = served(lune, "complete")
    lune.faults.add(f"certificate-missing,times={len(late)}")
    ran = await home.run(*DRAIN, "--wait", "45s", "--json")
    assert ran.code == 0, ran.err
    assert ran.document()["certificates_stored"] == len(late)
    assert ran.document()["seconds"] < 40
    assert ids(home.files()) == late
    # It takes over ten seconds, and progress is shown every five.
    progress = [line for line in ran.err.splitlines() if not line.startswith("{")]
    assert re.search(r"\d orders seen .* \d+ of \d+ certificates stored", " ".join(progress))
    assert all(re.fullmatch(r"[ -~]+", line) for line in progress)


async def test_a_wait_is_over_when_nothing_falls_due_in_it(home: Home) -> None:
    ran = await home.run(*DRAIN, "--wait", "5m", "--json")
    assert ran.code == 0, ran.err
    assert ran.document()["open"]
    assert ran.document()["seconds"] < 30


async def test_a_wait_follows_moving_orders_to_their_end(home: Home, lune: Sandbox) -> None:
    home.configure(harvest__sweep_interval="500ms", harvest__longest_interval="1s")
    hurry(lune, 3)
    ran = await home.run(*DRAIN, "--wait", "40s", "--json")
    assert ran.code == 0, ran.err
    assert ran.document()["open"] == []
    assert ran.document()["seconds"] < 30
    assert ids(home.files()) == served(lune, "complete")


@pytest.mark.parametrize("fault", ["certificate-missing", "not-pdf=cut"])
async def test_a_certificate_that_cannot_be_had_is_named_and_exits_3(
    home: Home, lune: Sandbox, fault: str
) -> None:
    lune.faults.add(fault)
    ran = await home.run(*DRAIN, "--report", "report.json")
    assert ran.code == 3
    report = json.loads((home.folder / "report.json").read_text())
    assert report["exit_code"] == 3
    owed = served(lune, "complete")
    assert {one["id"] for one in report["certificates_missing"]} == owed
    assert all(one["reason"] and one["next_check_at"] for one in report["certificates_missing"])
    plain = [line for line in ran.err.splitlines() if not line.startswith("{")]
    assert all(any(name in line for line in plain) for name in owed)
    assert home.files() == set()
    assert {row["status"] for row in (await home.orders()).values() if row["id"] in owed} == {
        "complete"
    }


async def test_a_drain_that_gets_no_answer_exits_3_with_a_report(home: Home, lune: Sandbox) -> None:
    lune.faults.add("redirect")
    ran = await home.run(*DRAIN, "--json", "--report", "report.json")
    assert ran.code == 3
    assert "Traceback" not in ran.err
    assert ran.document()["exit_code"] == 3
    assert json.loads((home.folder / "report.json").read_text()) == ran.document()


async def test_a_report_that_cannot_be_written_is_found_before_the_work(
    home: Home, lune: Sandbox
) -> None:
    ran = await home.run(*DRAIN, "--report", "nowhere/report.json")
    assert ran.code != 0
    assert "nowhere/report.json" in ran.err
    assert lune.journal.count() == 0


async def test_a_ledger_that_another_harvester_holds_exits_75_and_names_it(home: Home) -> None:
    async with home.daemon() as daemon:
        ran = await home.run(*DRAIN)
        assert ran.code == 75
        assert f"process {daemon.process.pid}" in ran.err
        assert (await home.run("run")).code == 75
        assert not daemon.ended


async def test_a_refused_key_exits_77(home: Home, lune: Sandbox) -> None:
    (home.folder / "lune_api_key").write_text("CANARY-wrong-key")
    ran = await home.run(*DRAIN)
    assert ran.code == 77
    assert "key" in ran.err.splitlines()[-1]
    assert "CANARY" not in ran.out + ran.err
    assert lune.journal.count() == 1


async def test_a_key_of_the_other_mode_exits_78(home: Home) -> None:
    await home.run(*DRAIN)
    rows = counts(home.ledger)
    async with Sandbox(SandboxOptions(orders=3, mode="live", rate_limit=0)) as live:
        home.configure(lune__base_url=live.base_url)
        for command in (DRAIN, ("run",)):
            ran = await home.run(*command)
            assert ran.code == 78
            assert "live key" in ran.err
            assert "test orders" in ran.err
    assert counts(home.ledger) == rows


async def test_options_of_a_drain_without_drain_are_wrong_usage(home: Home) -> None:
    given: list[tuple[str, ...]] = [
        ("--since", "2026-01-01"),
        ("--until", "2026-01-01"),
        ("--account", "some"),
        ("--dry-run",),
        ("--wait", "1s"),
        ("--report", "report.json"),
        ("--json",),
    ]
    for ran, options in zip(
        await asyncio.gather(*(home.run("run", *options) for options in given)), given, strict=True
    ):
        assert ran.code == 2
        assert options[0] in ran.err.splitlines()[-1]
    assert not home.ledger.exists()


async def test_an_interrupted_drain_exits_130_and_goes_on_where_it_was(
    home: Home, lune: Sandbox
) -> None:
    for _ in range(30):
        lune.create_order("complete", hold=True)
    home.configure(lune__rate_limit=10)
    async with home.running(*DRAIN, "--report", "report.json") as drain:
        await until(lambda: drain.events("certificate stored") or drain.ended)
        ran = await drain.end(signal.SIGINT)
    assert ran.code == 130
    report = json.loads((home.folder / "report.json").read_text())
    assert (report["exit_code"], report["interrupted"]) == (130, True)
    first = ids(home.files())
    assert 0 < len(first) < len(served(lune, "complete"))
    assert {event["order"] for event in events(ran.err, "certificate stored")} == first

    home.configure(lune__rate_limit=1000)
    ran = await home.run(*DRAIN)
    assert ran.code == 0, ran.err
    again = {event["order"] for event in events(ran.err, "certificate stored")}
    assert again == served(lune, "complete") - first
    assert (await home.run("verify")).code == 0


async def test_a_second_interrupt_ends_a_drain_that_hangs(home: Home, lune: Sandbox) -> None:
    lune.faults.add("hang")
    async with home.running(*DRAIN) as drain:
        await until(lambda: lune.faults.hits["hang"] or drain.ended)

        for _ in range(5):  # one interrupt alone leaves it 15 s
            drain.process.send_signal(signal.SIGINT)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(drain.process.wait(), 2)
                break
        assert drain.ended
        ran = await drain.result()
    assert ran.code == 130
    assert "Traceback" not in ran.err


async def test_a_terminal_gets_a_live_line_and_no_log(home: Home, lune: Sandbox) -> None:
    code, drawn = await on_a_terminal(home, *DRAIN)
    assert code == 0
    assert "\x1b[" in drawn
    assert f"{len(served(lune, 'complete'))} certificates stored" in drawn
    assert "order moved" not in drawn
