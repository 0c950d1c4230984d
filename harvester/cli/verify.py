"""``verify``: hold the ledger against its rules, and the archive against the ledger."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from harvester.cli.exits import FAULT, UNFINISHED
from harvester.cli.invocation import Invocation, command
from harvester.cli.output import as_json, notice, print_json, print_table

if TYPE_CHECKING:
    from harvester.harvest.verify import Discrepancy, VerifyReport

_TIMEOUT = 600.0
"""Seconds: each changed file is moved away by the daemon, durably."""


@command("verify", "Check the ledger, and hash every certificate against it.")
@click.option("--repair", is_flag=True, help="Fetch missing and changed certificates again.")
@as_json
def verify(invocation: Invocation, repair: bool, json_output: bool) -> None:
    """Check the ledger, hash every stored certificate, report missing, changed and unknown files.

    A replaced one was lost, and Lune served other bytes since, which are stored as a later version.

    Exits 3 when a file is missing or changed (with --repair: when it could not be had again), and 1
    when the ledger is damaged or contradicts itself.
    """
    invocation.configure_logs("warning")
    report, contradictions = asyncio.run(_verify(invocation))
    wrong = [one for one in report.discrepancies if one.finding in {"missing", "changed"}]
    if json_output:
        print_json(
            {
                "checked": report.checked,
                "bytes": report.bytes,
                "discrepancies": [asdict(one) for one in report.discrepancies],
                "ledger": contradictions,
            }
        )
    else:
        click.echo(f"{report.checked} certificates, {report.bytes} bytes hashed")
        print_table(
            ["finding", "file", "order", "version"],
            [(one.finding, one.path, one.order_id, one.version) for one in report.discrepancies],
        )
    if contradictions:
        for line in contradictions:
            notice(line)
        notice("the ledger contradicts itself: restore a backup, or let a new one be built")
        sys.exit(FAULT)
    if not wrong:
        return
    if not repair:
        notice("`harvester verify --repair` fetches missing and changed certificates again")
        sys.exit(UNFINISHED)
    left = _repair(invocation, wrong)
    if left is None:
        notice(f"{len(wrong)} files handed to the running daemon, which fetches them again")
        return
    for line in left:
        notice(line)
    if left:
        sys.exit(UNFINISHED)
    notice(f"{len(wrong)} files repaired")


async def _verify(invocation: Invocation) -> tuple[VerifyReport, list[str]]:
    from harvester.archive.directory import DirectoryArchive
    from harvester.harvest.verify import verify_archive
    from harvester.ledger.audit import contradictions
    from harvester.ledger.database import open_reader
    from harvester.ledger.migrate import check_integrity

    ledger = invocation.settings.database.path
    archive = DirectoryArchive(invocation.settings.storage.path)
    try:
        async with open_reader(ledger) as database:
            await asyncio.to_thread(check_integrity, ledger)
            broken = await contradictions(database)
            return await verify_archive(database, archive), broken
    finally:
        await archive.close()


def _repair(invocation: Invocation, wrong: list[Discrepancy]) -> list[str] | None:
    """Return what could not be repaired; None when a daemon took it over."""
    from harvester.web.local_socket import NoDaemonError, ask_daemon

    ledger = invocation.settings.database.path
    body = {"discrepancies": [asdict(one) for one in wrong]}
    try:
        ask_daemon(ledger, "POST", "/control/repair", body, timeout=_TIMEOUT)
    except NoDaemonError:
        return asyncio.run(_repair_ourselves(invocation, wrong))
    return None


async def _repair_ourselves(invocation: Invocation, wrong: list[Discrepancy]) -> list[str]:
    from harvester.app import open_app
    from harvester.context import Stop
    from harvester.domain.orders import EVERYTHING
    from harvester.harvest.verify import reopen
    from harvester.ledger.certificates import missing_certificates

    async with open_app(invocation.settings, Stop(), "verify --repair") as app:
        await app.accounts.accounts()  # the key's mode, before any file is touched
        await reopen(app.database, app.archive, wrong, app.context.clock())
        report = await app.collector.run_once()
        if report.storage is not None:
            return [report.storage]
        broken = {(one.account_id, one.order_id) for one in wrong}
        return [
            f"order {one.order_id}: {one.reason}"
            for one in await missing_certificates(app.database, EVERYTHING)
            if (one.account_id, one.order_id) in broken
        ]
