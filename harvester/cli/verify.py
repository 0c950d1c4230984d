"""``verify``: hold the ledger against its rules, and the archive against the ledger."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from harvester.cli.context import Context, command
from harvester.cli.exits import FAULT, UNFINISHED
from harvester.cli.handover import hand_over
from harvester.cli.output import as_json, notice, print_json, print_table

if TYPE_CHECKING:
    from harvester.harvest.verify import Discrepancy, VerifyReport


@command("verify", "Check the ledger, and hash every certificate against it.")
@click.option("--repair", is_flag=True, help="Fetch missing and changed certificates again.")
@as_json
def verify(context: Context, repair: bool, json_output: bool) -> None:
    """Check the ledger, hash every stored certificate, report missing, changed and unknown files.

    A replaced one was lost, and Lune served other bytes since, which are stored as a later version.

    Exits 3 when a file is missing or changed (with --repair: when it could not be had again), and 1
    when the ledger is damaged or contradicts itself.
    """
    context.configure_logs("warning")
    report, contradictions = asyncio.run(_verify(context))
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
            [(one.finding, one.key, one.order_id, one.version) for one in report.discrepancies],
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
    left = asyncio.run(_repair(context, wrong))
    if left is None:
        notice(f"{len(wrong)} files handed to the running daemon, which fetches them again")
        return
    for line in left:
        notice(line)
    if left:
        sys.exit(UNFINISHED)
    notice(f"{len(wrong)} files repaired")


async def _verify(context: Context) -> tuple[VerifyReport, list[str]]:
    from harvester.archive.directory import DirectoryArchive
    from harvester.harvest.verify import Verifier
    from harvester.ledger.audit import contradictions
    from harvester.ledger.database import open_reader
    from harvester.ledger.migrate import check_integrity
    from harvester.ledger.sql import SqlLedger

    ledger = context.settings.database.path
    archive = DirectoryArchive(context.settings.storage.path)
    try:
        async with open_reader(ledger) as database:
            await asyncio.to_thread(check_integrity, ledger)
            broken = await contradictions(database)
            return await Verifier(SqlLedger(database), archive).run(), broken
    finally:
        await archive.close()


async def _repair(context: Context, wrong: list[Discrepancy]) -> list[str] | None:
    """Return what could not be repaired; None when a daemon took it over."""
    from harvester.app import now, open_harvest
    from harvester.context import Stop
    from harvester.domain.records import OrderFilter
    from harvester.harvest.verify import reopen

    settings = context.settings
    handed, _ = await hand_over(
        settings.database.path, "repair", [asdict(discrepancy) for discrepancy in wrong]
    )
    if handed:
        return None
    async with open_harvest(settings, Stop(), "verify --repair") as harvest:
        await harvest.book.accounts()  # the key's mode, before any file is touched
        await reopen(harvest.ledger, harvest.archive, wrong, now())
        report = await harvest.collector.run_once()
        if report.storage is not None:
            return [report.storage]
        broken = {(one.account_id, one.order_id) for one in wrong}
        return [
            f"order {one.order_id}: {one.reason}"
            for one in await harvest.ledger.missing_certificates(OrderFilter())
            if (one.account_id, one.order_id) in broken
        ]
