"""What changes something: ``track``, ``retry``, ``verify --repair``, with a daemon and without."""

from __future__ import annotations

import sqlite3
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from harvester.sandbox import Sandbox
from tests.acceptance.harness import Home, until

HOSTILE = ("../../etc/passwd", "; rm -rf /", "a\nb", "\x1b[31mred", "", "x" * 65, "id?limit=1")


@pytest.fixture
def home(tmp_path: Path, lune: Sandbox) -> Home:
    return Home(tmp_path, lune, lune__accounts=["default"])


async def followed(home: Home, order_id: str) -> Any:
    """Return an order's row and chain, having seen that ``track`` alone made it."""
    shown = await home.show(order_id)
    assert {step["source"] for step in shown["transitions"]} == {"track"}
    return shown


async def test_track_by_id_follows_an_order_at_once(home: Home, lune: Sandbox) -> None:
    first, second = lune.create_order("paid", hold=True), lune.create_order("complete", hold=True)
    ran = await home.run("track", first.id, second.id, first.id)
    assert ran.code == 0, ran.err
    account = lune.accounts[0].id
    assert ran.out.splitlines() == [
        f"{first.id}\t{account}\tpaid",
        f"{second.id}\t{account}\tcomplete",
    ]
    assert (await followed(home, first.id))["status"] == "paid"
    assert (await home.show(second.id))["certificate"]["state"] == "owed"


async def test_track_by_key_reads_keys_from_stdin_too(home: Home, lune: Sandbox) -> None:
    keys = ["INV 7/ä", "INV%2F8", "INV-9"]
    made = [lune.create_order("paid", hold=True, idempotency_key=key) for key in keys]
    text = f"{keys[0]}\n\n  {keys[1]}  \n"
    ran = await home.run("track", "--key", "-", keys[2], "--json", stdin=text)
    assert ran.code == 0, ran.err
    assert [row["reference"] for row in ran.rows()] == keys
    assert [row["order_id"] for row in ran.rows()] == [order.id for order in made]
    assert (await followed(home, made[0].id))["idempotency_key"] == keys[0]


async def test_track_finds_an_order_of_an_account_that_is_not_followed(
    home: Home, lune: Sandbox
) -> None:
    client = lune.accounts[1].id
    order = lune.create_order("complete", hold=True, account_id=client)
    unknown = await home.run("track", order.id)
    assert unknown.code == 3
    assert order.id in unknown.err
    found = await home.run("track", order.id, "--account", client)
    assert found.code == 0, found.err
    assert (await followed(home, order.id))["account_id"] == client


async def test_an_unknown_order_is_named_and_the_known_ones_are_followed(
    home: Home, lune: Sandbox
) -> None:
    order = lune.create_order("paid", hold=True)
    ran = await home.run("track", "Unknown1", order.id, "--json")
    assert ran.code == 3
    assert "Unknown1" in ran.err
    assert [row["problem"] is None for row in ran.rows()] == [False, True]
    assert list(await home.orders()) == [order.id]


@pytest.mark.parametrize("daemon_runs", [False, True])
async def test_hostile_ids_are_refused_without_asking_lune(
    home: Home, lune: Sandbox, daemon_runs: bool
) -> None:
    async with AsyncExitStack() as stack:
        if daemon_runs:
            await stack.enter_async_context(home.daemon())
        ran = await home.run("track", "--json", "--", *HOSTILE)
    assert ran.code == 3, ran.err
    assert len(ran.rows()) == len(HOSTILE)
    assert all(row["problem"] for row in ran.rows())
    assert len(ran.err.splitlines()) == len(HOSTILE)
    assert "\x1b" not in ran.err
    assert lune.journal.count("GET /orders/{id}") == 0
    assert lune.journal.count("(unknown)") == 0


async def test_nothing_on_stdin_is_wrong_usage(home: Home) -> None:
    ran = await home.run("track", "-", stdin="\n\n")
    assert ran.code == 2
    assert not home.ledger.exists()


async def test_a_running_daemon_tracks_for_the_command_and_stores_what_is_owed(
    home: Home, lune: Sandbox
) -> None:
    async with home.daemon() as daemon:
        await until(lambda: daemon.events("sweep finished"))
        order = lune.create_order("complete", hold=True, idempotency_key="INV-1")
        ran = await home.run("track", "--key", "INV-1", "nothing")
        assert ran.code == 3
        assert order.id in ran.out
        assert "nothing" in ran.err
        await until(lambda: daemon.events("certificate stored"))
        assert (await followed(home, order.id))["certificate"]["state"] == "stored"
        logged = daemon.events("order moved")
    assert [(event["order"], event["source"]) for event in logged] == [(order.id, "track")]


@pytest.mark.parametrize("fault", ["account", "key"])
async def test_track_exits_alike_with_a_daemon_and_without(
    home: Home, lune: Sandbox, fault: str
) -> None:
    arguments = (
        ["track", "some", "--account", "nobody"] if fault == "account" else ["track", "some"]
    )
    async with home.daemon() as daemon:
        await until(lambda: daemon.events("sweep finished"))
        if fault == "key":
            lune.faults.add("revoked-key")
        handed = await home.run(*arguments)
    alone = await home.run(*arguments)
    assert handed.code == alone.code == (3 if fault == "account" else 77)


async def test_a_socket_that_a_killed_daemon_left_is_no_daemon(home: Home, lune: Sandbox) -> None:
    order = lune.create_order("paid", hold=True)
    socket = home.ledger.with_name(home.ledger.name + ".socket")
    async with home.daemon() as daemon:
        await until(socket.is_socket)
        daemon.process.kill()
        await daemon.result()
    assert socket.is_socket()
    ran = await home.run("track", order.id)
    assert ran.code == 0, ran.err


async def test_retry_makes_a_failed_certificate_due_and_the_daemon_fetches_it(
    home: Home, lune: Sandbox
) -> None:
    orders = [lune.create_order("complete", hold=True) for _ in range(3)]
    lune.faults.add("html-certificate")
    async with home.daemon() as daemon:
        await until(lambda: len(daemon.events("certificate download failed")) == 3)
        failed = await home.orders("--certificate", "failed")
        assert set(failed) == {order.id for order in orders}
        lune.faults.clear()
        one = await home.run("retry", orders[0].id, "--json")
        assert one.code == 0, one.err
        assert one.rows() == [{"account_id": lune.accounts[0].id, "id": orders[0].id}]
        await until(lambda: len(home.files()) == 1)
        rest = await home.run("retry", "--all")
        assert rest.code == 0, rest.err
        assert len(rest.out.splitlines()) == 2
        await until(lambda: len(daemon.events("certificate stored")) == 3)
    assert len(await home.orders("--certificate", "stored")) == 3


async def test_retry_without_a_daemon_leaves_it_to_the_next_drain(
    home: Home, lune: Sandbox
) -> None:
    order = lune.create_order("complete", hold=True)
    lune.faults.add("not-pdf")
    assert (await home.run("run", "--drain")).code == 3
    assert (await home.show(order.id))["certificate"]["state"] == "failed"
    ran = await home.run("retry", order.id, "nobody-knows")
    assert ran.code == 3
    assert order.id in ran.out
    assert "nobody-knows" in ran.err
    assert home.files() == set()
    lune.faults.clear()
    assert (await home.run("run", "--drain")).code == 0
    assert len(home.files()) == 1
    nothing = await home.run("retry", "--all")
    assert (nothing.code, nothing.out) == (0, "")


async def spoilt(home: Home, lune: Sandbox) -> dict[str, str]:
    """Harvest, then lose one certificate, change one, add one; return the finding by file."""
    for _ in range(4):
        lune.create_order("complete", hold=True)
    assert (await home.run("run", "--drain")).code == 0
    lost, changed, *_ = sorted(home.files())
    (home.archive / lost).unlink()
    with (home.archive / changed).open("ab") as file:
        file.write(b"more\n")
    foreign = str(Path(lost).with_name("foreign.pdf"))
    (home.archive / foreign).write_bytes(b"%PDF-1.4\n")
    return {lost: "missing", changed: "changed", foreign: "unknown"}


async def test_verify_finds_what_is_missing_changed_and_unknown_and_repairs_it(
    home: Home, lune: Sandbox
) -> None:
    wrong = await spoilt(home, lune)
    found = await home.run("verify", "--json")
    assert found.code == 3
    report = found.document()
    assert report["checked"] == 4
    assert {one["path"]: one["finding"] for one in report["discrepancies"]} == wrong
    assert "--repair" in found.err
    repaired = await home.run("verify", "--repair")
    assert repaired.code == 0, repaired.err
    after = await home.run("verify", "--json")
    assert after.code == 0
    assert [one["finding"] for one in after.document()["discrepancies"]] == ["unknown"]
    assert sum(path.suffix == ".pdf" for path in (home.archive / "quarantine").iterdir()) == 1


async def test_verify_of_a_whole_archive_exits_0(home: Home, lune: Sandbox) -> None:
    lune.create_order("complete", hold=True)
    assert (await home.run("run", "--drain")).code == 0
    ran = await home.run("verify")
    assert ran.code == 0
    assert ran.out.startswith("1 certificate")
    assert ran.err == ""


async def test_a_running_daemon_repairs_for_the_command(home: Home, lune: Sandbox) -> None:
    await spoilt(home, lune)
    async with home.daemon() as daemon:
        ran = await home.run("verify", "--repair", "--json")
        assert ran.code == 0, ran.err
        assert len(ran.document()["discrepancies"]) == 3
        assert "daemon" in ran.err
        await until(lambda: len(daemon.events("certificate stored")) == 2)
        assert (await home.run("verify")).code == 0


async def test_what_cannot_be_repaired_is_named_and_exits_3(home: Home, lune: Sandbox) -> None:
    await spoilt(home, lune)
    lune.faults.add("certificate-missing")
    ran = await home.run("verify", "--repair")
    assert ran.code == 3
    owed = await home.orders("--certificate", "owed")
    assert len(owed) == 2
    assert all(name in ran.err for name in owed)


async def test_verify_of_an_archive_that_is_gone_exits_3_and_says_so(
    home: Home, lune: Sandbox
) -> None:
    lune.create_order("complete", hold=True)
    assert (await home.run("run", "--drain")).code == 0
    home.archive.rename(home.folder / "unmounted")
    for arguments in (["verify"], ["verify", "--repair"]):
        ran = await home.run(*arguments)
        assert ran.code == 3
        assert str(home.archive) in ran.err
    assert not home.archive.exists()
    assert (await home.orders()).popitem()[1]["certificate"]["state"] == "stored"


async def test_verify_of_a_ledger_that_contradicts_itself_exits_1_and_names_the_order(
    home: Home, lune: Sandbox
) -> None:
    order = lune.create_order("paid", hold=True)
    assert (await home.run("run", "--drain")).code == 0
    with closing(sqlite3.connect(home.ledger)) as connection, connection:
        connection.execute("UPDATE orders SET status = 'placed'")
    ran = await home.run("verify", "--json")
    assert ran.code == 1
    (line,) = ran.document()["ledger"]
    assert order.id in line
    assert line in ran.err
    assert "restore a backup" in ran.err
    # Files are not fetched by a ledger that cannot be trusted.
    assert (await home.run("verify", "--repair")).code == 1


async def test_verify_of_a_damaged_ledger_exits_1_with_what_to_do(
    home: Home, lune: Sandbox
) -> None:
    lune.create_order("complete", hold=True)
    assert (await home.run("run", "--drain")).code == 0
    data = bytearray(home.ledger.read_bytes())
    data[-4096:] = bytes(4096)
    home.ledger.write_bytes(data)
    ran = await home.run("verify")
    assert ran.code == 1
    assert "Restore a backup" in ran.err
    assert home.ledger.read_bytes() == data
