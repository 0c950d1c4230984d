"""``track`` and ``retry``: changes that a running daemon makes for us."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import click

from harvester.cli.context import Context, command
from harvester.cli.exits import UNFINISHED
from harvester.cli.handover import hand_over
from harvester.cli.output import AccountId, as_json, notice, print_json, print_table


@command("track", "Follow these orders, by id or key.")
@click.argument("references", metavar="ID...", nargs=-1, required=True)
@click.option("--key", "by_key", is_flag=True, help="The arguments are idempotency keys.")
@click.option(
    "--account",
    type=AccountId(),
    metavar="ID",
    help="The account they belong to; else each is asked.",
)
@as_json
def track(
    context: Context,
    references: tuple[str, ...],
    by_key: bool,
    account: str | None,
    json_output: bool,
) -> None:
    """Follow these orders, whenever the listing would reach them; - reads ids from stdin."""
    context.configure_logs("warning")
    wanted = _expanded(references)
    if not wanted:
        raise click.UsageError("no ids given")
    found = asyncio.run(_track(context, wanted, by_key, account))
    if json_output:
        for one in found:
            print_json(one)
    else:
        good = [one for one in found if one["problem"] is None]
        print_table(
            ["order", "account", "status"],
            [(one["order_id"], one["account_id"], one["status"]) for one in good],
        )
    bad = [one for one in found if one["problem"] is not None]
    for one in bad:
        notice(f"{one['reference']!a}: {one['problem']}")
    if bad:
        sys.exit(UNFINISHED)


def _expanded(references: tuple[str, ...]) -> list[str]:
    wanted: list[str] = []
    for reference in references:
        if reference == "-":
            wanted += [line.strip() for line in sys.stdin if line.strip()]
        else:
            wanted.append(reference)
    return list(dict.fromkeys(wanted))


async def _track(
    context: Context, references: list[str], by_key: bool, account: str | None
) -> list[dict[str, Any]]:
    from dataclasses import asdict

    from harvester.app import open_harvest
    from harvester.context import Stop

    settings = context.settings
    body = {"references": references, "by_key": by_key, "account_id": account}
    handed, result = await hand_over(settings.database.path, "track", body)
    if handed:
        found: list[dict[str, Any]] = result
        return found
    async with open_harvest(settings, Stop(), "track") as harvest:
        return [
            asdict(one)
            for one in await harvest.tracker.track(references, by_key=by_key, account_id=account)
        ]


@command("retry", "Make missing certificates due now.")
@click.argument("order_ids", metavar="ID...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every certificate that is missing.")
@as_json
def retry(
    context: Context, order_ids: tuple[str, ...], everything: bool, json_output: bool
) -> None:
    """Make failed or owed certificates due now: the daemon, or the next drain, asks again."""
    if bool(order_ids) == everything:
        raise click.UsageError("name order ids, or --all")
    context.configure_logs("warning")
    due = asyncio.run(_retry(context, None if everything else list(order_ids)))
    if json_output:
        for account_id, order_id in due:
            print_json({"account_id": account_id, "id": order_id})
    else:
        print_table(["due now", "account"], [(order_id, account) for account, order_id in due])
    nothing = set(order_ids) - {order_id for _, order_id in due}
    for order_id in sorted(nothing):
        notice(f"{order_id!a}: no certificate of such an order is missing")
    if nothing:
        sys.exit(UNFINISHED)


async def _retry(context: Context, order_ids: list[str] | None) -> list[tuple[str, str]]:
    from harvester.app import now, open_ledger
    from harvester.ledger.sql import SqlLedger

    settings = context.settings
    handed, result = await hand_over(settings.database.path, "retry", {"order_ids": order_ids})
    if handed:
        return [(account_id, order_id) for account_id, order_id in result]
    async with open_ledger(settings, "retry") as database:
        return await SqlLedger(database).retry_certificates(now(), order_ids)
