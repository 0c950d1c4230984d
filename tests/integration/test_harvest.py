"""The steps of the harvest on real parts: sandbox, client, SQLite, files."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from harvester.app import App
from harvester.context import utc_now
from harvester.domain.certificate_names import DEFAULT_LAYOUT, CertificateNames
from harvester.domain.errors import ConfigurationError, KeyRefused
from harvester.domain.orders import EVERYTHING, OrderFilter, Source
from harvester.harvest.collect import Collector
from harvester.harvest.filing import Filing
from harvester.ledger.accounts import begin_sweep, postpone_sweep, read_accounts
from harvester.ledger.certificates import reopen_certificate
from harvester.ledger.orders import record_orders
from harvester.ledger.queries import OrderDetail, OrderRow, find_orders, stream_orders
from harvester.ledger.schedule import postpone_checks
from harvester.ledger.schema import accounts
from harvester.runtime.drain import Drain, DrainReport
from harvester.sandbox import Sandbox
from tests.integration.conftest import OpenApp

CERTIFICATE = "GET /orders/{id}/certificate"


async def rows(app: App) -> dict[str, OrderRow]:
    return {row.id: row async for row in stream_orders(app.database)}


async def detail(app: App, order_id: str) -> OrderDetail:
    (found,) = await find_orders(app.database, order_id)
    return found


async def chain(app: App, order_id: str) -> list[tuple[str | None, str]]:
    steps = (await detail(app, order_id)).transitions
    assert [step.seq for step in steps] == list(range(1, len(steps) + 1))
    return [(step.before, step.after) for step in steps]


async def make_everything_due(app: App) -> None:
    """Let an interval pass, as the ledger sees it."""
    for account in await read_accounts(app.database):
        await postpone_sweep(app.database, account.id, utc_now())
        ids = [row.id for row in (await rows(app)).values() if row.next_check_at]
        await postpone_checks(app.database, account.id, ids, utc_now())


async def sweep(app: App) -> None:
    await make_everything_due(app)
    await app.sweep.run_once(await app.accounts.accounts())


def pdfs(folder: Path) -> list[Path]:
    return sorted((folder / "archive").rglob("*.pdf"))


async def test_an_order_is_followed_from_received_to_a_stored_certificate(
    sandbox: Sandbox, opened: OpenApp, tmp_path: Path
) -> None:
    order = sandbox.create_order("received", hold=True)
    async with opened() as app:
        for status in ("received", "placed", "paid", "retiring", "complete"):
            sandbox.move_order(order.id, status)
            await sweep(app)
        report = await app.collector.run_once()

        assert await chain(app, order.id) == [
            (None, "received"),
            ("received", "placed"),
            ("placed", "paid"),
            ("paid", "retiring"),
            ("retiring", "complete"),
        ]
        row = (await rows(app))[order.id]
    assert report.stored == 1
    assert row.certificate_state == "stored"
    assert row.next_check_at is None
    assert [path.read_bytes() for path in pdfs(tmp_path)] == [sandbox.certificate(order.id)]


async def test_a_jump_is_one_transition_and_nothing_is_invented(
    sandbox: Sandbox, opened: OpenApp
) -> None:
    order = sandbox.create_order("placed", hold=True)
    async with opened() as app:
        await sweep(app)
        sandbox.move_order(order.id, "complete")
        await sweep(app)
        assert await chain(app, order.id) == [(None, "placed"), ("placed", "complete")]


async def test_a_backward_status_is_an_anomaly_and_the_order_is_checked_again(
    sandbox: Sandbox, opened: OpenApp
) -> None:
    order = sandbox.create_order("complete", hold=True)
    async with opened() as app:
        await Drain(app).run()
        sandbox.move_order(order.id, "paid")
        await sweep(app)
        found = await detail(app, order.id)
        assert found.order.status == "complete"
        assert [(a.kind, a.recorded, a.served, a.count) for a in found.anomalies] == [
            ("after_the_end", "complete", "paid", 1)
        ]
        assert found.order.next_check_at is not None

        sandbox.move_order(order.id, "complete")
        await sweep(app)
        found = await detail(app, order.id)
        assert found.order.next_check_at is None
        assert found.order.certificate_state == "stored"
        assert len(found.transitions) == 1


async def test_a_certificate_is_downloaded_once_however_often_it_is_drained(
    sandbox: Sandbox, opened: OpenApp, tmp_path: Path
) -> None:
    for _ in range(3):
        sandbox.create_order("complete", hold=True)
    async with opened() as app:
        await Drain(app).run()
    asked = sandbox.journal.count()
    async with opened() as app:
        report = await Drain(app).run()
    assert (report.collected.stored, report.collected.recovered) == (0, 0)
    # Accounts (own, two lists) and a page for each of the two accounts.
    assert sandbox.journal.count() - asked == 5
    assert len(pdfs(tmp_path)) == 3


async def test_a_file_whose_row_was_lost_is_recovered_without_a_download(
    sandbox: Sandbox, opened: OpenApp, tmp_path: Path
) -> None:
    sandbox.create_order("complete", hold=True)
    async with opened() as app:
        await Drain(app).run()
    for path in tmp_path.glob("ledger.db*"):
        path.unlink()
    before = [(path, path.stat().st_ino) for path in pdfs(tmp_path)]
    sandbox.journal.clear()
    async with opened() as app:
        report = await Drain(app).run()
    assert (report.collected.recovered, report.collected.stored) == (1, 0)
    assert sandbox.journal.count(CERTIFICATE) == 0
    assert [(path, path.stat().st_ino) for path in pdfs(tmp_path)] == before


async def test_an_interim_certificate_is_kept_beside_the_final_one(
    sandbox: Sandbox, opened: OpenApp, tmp_path: Path
) -> None:
    order = sandbox.create_order("retiring", hold=True)
    interim = sandbox.certificate(order.id)
    async with opened(interim=True) as app:
        await Drain(app).run()
        assert [path.name for path in pdfs(tmp_path)] == [f"{order.id}.interim.pdf"]
        sandbox.move_order(order.id, "complete")
        await sweep(app)
        await app.collector.run_once()
        found = await detail(app, order.id)
    assert [(c.version, c.kind) for c in found.certificates] == [(1, "interim"), (2, "final")]
    by_name = {path.name: path.read_bytes() for path in pdfs(tmp_path)}
    assert by_name == {
        f"{order.id}.interim.pdf": interim,
        f"{order.id}.v2.pdf": sandbox.certificate(order.id),
    }


async def test_an_interim_certificate_that_is_not_there_yet_costs_one_request_a_check(
    sandbox: Sandbox, opened: OpenApp
) -> None:
    sandbox.faults.add("certificate-missing")
    sandbox.create_order("retiring", hold=True)
    async with opened(interim=True) as app:
        await sweep(app)
        sandbox.journal.clear()
        for _ in range(3):
            await app.collector.run_once()
        assert sandbox.journal.count(CERTIFICATE) == 1
        (row,) = (await rows(app)).values()
        assert (row.certificate_state, row.attempts) == ("owed", 0)


async def test_a_certificate_missing_at_complete_is_owed_and_had_later(
    sandbox: Sandbox, opened: OpenApp
) -> None:
    sandbox.faults.add("certificate-missing")
    sandbox.create_order("complete", hold=True)
    async with opened() as app:
        report = await Drain(app).run()
        (missing,) = report.missing
        assert (missing.state, missing.attempts) == ("owed", 1)
        assert missing.next_attempt_at is not None
        assert timedelta(0) < missing.next_attempt_at - utc_now() <= timedelta(seconds=10)
        assert report.unfinished
        sandbox.faults.clear()
        assert (await app.collector.run_once()).stored == 0  # not due yet
        assert (await Drain(app).run()).collected.stored == 1  # a drain asks all the same


@pytest.mark.parametrize("fault", ["not-pdf", "html-certificate"])
async def test_what_is_not_a_whole_pdf_is_never_stored(
    sandbox: Sandbox, opened: OpenApp, tmp_path: Path, fault: str
) -> None:
    sandbox.faults.add(fault)
    order = sandbox.create_order("complete", hold=True)
    async with opened() as app:
        report = await Drain(app).run()
        assert report.collected.stored == 0
        assert [one.order_id for one in report.missing] == [order.id]
        assert [one.state for one in report.missing] == ["failed"]
        assert pdfs(tmp_path) == []
        kept = sorted(path.name for path in (tmp_path / "archive" / "quarantine").iterdir())
        assert [path.endswith((".bin", ".reason.txt")) for path in kept] == [True, True]
        sandbox.faults.clear()
        assert (await Drain(app).run()).collected.stored == 1


async def test_changed_bytes_become_version_two_and_the_first_file_stays(
    sandbox: Sandbox, opened: OpenApp, tmp_path: Path
) -> None:
    sandbox.faults.add("certificate-changes")
    order = sandbox.create_order("complete", hold=True)
    async with opened() as app:
        await Drain(app).run()
        (first,) = pdfs(tmp_path)
        bytes_before = first.read_bytes()
        account = (await rows(app))[order.id].account_id
        await reopen_certificate(app.database, account, order.id, 1, utc_now())
        await app.collector.run_once()
        found = await detail(app, order.id)
    assert [c.version for c in found.certificates] == [1, 2]
    assert first.read_bytes() == bytes_before
    assert [path.name for path in pdfs(tmp_path)] == [f"{order.id}.pdf", f"{order.id}.v2.pdf"]


async def test_a_sweep_cut_short_does_not_hide_the_orders_below_it(
    sandbox: Sandbox, opened: OpenApp
) -> None:
    async with opened() as app:
        sandbox.create_order("complete", hold=True)
        await sweep(app)
        expected = {sandbox.create_order("received", hold=True).id for _ in range(250)}
        # The first page is recorded, then the daemon is stopped in the middle of the listing.
        account = sandbox.accounts[0]
        (own,) = await read_accounts(app.database, [account.id])
        mark = await begin_sweep(app.database, own.id)
        page = await app.lune.fetch_orders(own)
        schedule = app.context.schedule
        await record_orders(app.database, own, page, Source.SWEEP, utc_now(), schedule, sweep=mark)
    async with opened() as app:
        await sweep(app)
        assert expected <= (await rows(app)).keys()


async def test_a_quiet_account_costs_one_page_a_sweep(sandbox: Sandbox, opened: OpenApp) -> None:
    for _ in range(250):
        sandbox.create_order("complete", hold=True)
    async with opened() as app:
        await Drain(app).run()
        sandbox.journal.clear()
        await sweep(app)
        assert sandbox.journal.count() == 2  # two accounts, a page each


async def test_an_old_open_order_is_asked_for_by_itself(sandbox: Sandbox, opened: OpenApp) -> None:
    old = sandbox.create_order("paid", hold=True)
    for _ in range(350):
        sandbox.create_order("received", hold=True)
    for order in sandbox.orders():
        if order.id != old.id:
            sandbox.move_order(order.id, "cancelled")
    async with opened() as app:
        await Drain(app).run()
        sandbox.move_order(old.id, "complete")
        sandbox.journal.clear()
        await sweep(app)
        assert sandbox.journal.count("GET /orders/{id}") == 1
        assert sandbox.journal.count() == 3
        steps = (await detail(app, old.id)).transitions
        assert [step.source for step in steps] == ["drain", "check"]


async def test_a_suspended_account_is_parked_and_the_others_go_on(
    sandbox: Sandbox, opened: OpenApp
) -> None:
    bad, good = sandbox.accounts[1], sandbox.accounts[0]
    order = sandbox.create_order("complete", account_id=good.id, hold=True)
    sandbox.create_order("complete", account_id=bad.id, hold=True)
    sandbox.faults.add(f"suspended-account={bad.id}")
    async with opened() as app:
        report = await Drain(app).run()
        assert list(report.swept.parked) == [bad.id]
        assert (await rows(app))[order.id].certificate_state == "stored"
        sandbox.journal.clear()
        await app.sweep.run_once(await app.accounts.accounts())
        assert sandbox.journal.count() == 0  # parked, and the other one is not due
        sandbox.faults.clear()
        await sweep(app)
        assert len(await rows(app)) == 2


async def count_at_rest(sandbox: Sandbox) -> int:
    """Count requests once those that were in flight have reached the server too."""
    before = -1
    while before != (count := sandbox.journal.count()):
        before = count
        await asyncio.sleep(0.3)
    return count


async def test_a_refused_key_ends_the_round_with_few_requests(
    sandbox: Sandbox, opened: OpenApp
) -> None:
    for _ in range(30):
        sandbox.create_order("complete", hold=True)
    async with opened() as app:
        await app.sweep.run_once(await app.accounts.accounts())
        sandbox.faults.add("revoked-key")
        sandbox.journal.clear()
        with pytest.raises(KeyRefused):
            await app.collector.run_once()
        few = await count_at_rest(sandbox)
        assert few <= 16  # what was in flight
        with pytest.raises(KeyRefused):
            await app.collector.run_once()
        assert await count_at_rest(sandbox) == few
        assert {row.status for row in (await rows(app)).values()} == {"complete"}


async def test_storage_that_is_gone_costs_no_order_an_attempt_and_resumes_by_itself(
    sandbox: Sandbox, opened: OpenApp, tmp_path: Path
) -> None:
    order = sandbox.create_order("complete", hold=True)
    async with opened() as app:
        await app.sweep.run_once(await app.accounts.accounts())
        (tmp_path / "archive").rename(tmp_path / "away")
        assert (await app.collector.run_once()).storage is not None
        sandbox.journal.clear()
        assert (await app.collector.run_once()).storage is not None
        assert sandbox.journal.count() == 0  # nothing is downloaded for no shelf
        row = (await rows(app))[order.id]
        assert (row.certificate_state, row.attempts) == ("owed", 0)
        (tmp_path / "away").rename(tmp_path / "archive")
        assert (await app.collector.run_once()).stored == 1


async def test_storage_that_was_emptied_and_made_again_is_used(
    sandbox: Sandbox, opened: OpenApp, tmp_path: Path
) -> None:
    sandbox.create_order("complete", hold=True)
    async with opened() as app:
        await app.sweep.run_once(await app.accounts.accounts())
        (tmp_path / "archive").rename(tmp_path / "away")
        assert (await app.collector.run_once()).storage is not None
        (tmp_path / "archive").mkdir()
        assert (await app.collector.run_once()).stored == 1


async def test_a_key_of_the_other_mode_is_refused(sandbox: Sandbox, opened: OpenApp) -> None:
    async with opened() as app:
        await app.accounts.accounts()
        async with app.database.transaction() as tx:
            await tx.execute(update(accounts).values(mode="live"))
    async with opened() as app:
        with pytest.raises(ConfigurationError, match="test key, but this ledger holds live"):
            await app.accounts.accounts()


async def test_a_drain_of_a_span_stores_only_what_is_in_it(
    sandbox: Sandbox, opened: OpenApp, tmp_path: Path
) -> None:
    for _ in range(5):
        sandbox.create_order("complete")
        sandbox.clock.advance(86_400)
    async with opened() as app:
        created = sorted(row.created_at for row in (await drained(app, EVERYTHING)).values())
    assert len(created) == 5
    for path in (*tmp_path.glob("ledger.db*"),):
        path.unlink()
    (tmp_path / "archive").rename(tmp_path / "before")
    async with opened() as app:
        scope = OrderFilter(since=created[1], until=created[3])
        found = await drained(app, scope)
        stored = [row.created_at for row in found.values() if row.certificate_state == "stored"]
        assert sorted(stored) == created[1:3]


async def drained(app: App, scope: OrderFilter) -> dict[str, OrderRow]:
    report: DrainReport = await Drain(app).run(scope)
    assert not report.unfinished
    return await rows(app)


async def test_tracking_finds_an_order_by_key_in_whichever_account_has_it(
    sandbox: Sandbox, opened: OpenApp
) -> None:
    theirs = sandbox.accounts[1]
    order = sandbox.create_order("paid", account_id=theirs.id, idempotency_key="INV/1 ü", hold=True)
    async with opened() as app:
        (found,) = await app.tracker.track(["INV/1 ü"], by_key=True, account_id=None)
        assert (found.order_id, found.account_id, found.problem) == (order.id, theirs.id, None)
        (step,) = (await detail(app, order.id)).transitions
        assert (step.after, step.source) == ("paid", "track")
        (nobody,) = await app.tracker.track(["INV-2"], by_key=True, account_id=None)
        assert nobody.problem is not None
        assert "no such order" in nobody.problem
        (hostile,) = await app.tracker.track(["../x"], by_key=False, account_id=None)
        assert hostile.problem is not None
        assert "not an order id" in hostile.problem


class BreakingNames(CertificateNames):
    """A naming with a fault that one order's id shows."""

    def __init__(self, order_id: str) -> None:
        super().__init__(DEFAULT_LAYOUT)
        self._order_id = order_id

    def path(
        self,
        account_id: str,
        order_id: str,
        created_at: datetime,
        version: int,
        *,
        interim: bool = False,
    ) -> str:
        if order_id == self._order_id:
            raise ZeroDivisionError
        return super().path(account_id, order_id, created_at, version, interim=interim)


async def test_a_fault_of_ours_on_one_order_leaves_the_others_their_certificates(
    sandbox: Sandbox, opened: OpenApp
) -> None:
    orders = [sandbox.create_order("complete", hold=True) for _ in range(3)]
    async with opened() as app:
        await app.sweep.run_once(await app.accounts.accounts())

        names = BreakingNames(orders[1].id)
        filing = Filing(app.database, app.archive, names, app.context)
        collector = Collector(app.lune, app.database, filing, app.context)
        report = await collector.run_once()
        states = {row.id: row.certificate_state for row in (await rows(app)).values()}
    assert (report.stored, report.failed) == (2, 1)
    assert states[orders[1].id] == "failed"
