"""``track`` and ``retry``: changes that a running daemon makes for us."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict
from typing import Any

import click

from harvester.cli.exits import UNFINISHED
from harvester.cli.invocation import Invocation, command
from harvester.cli.output import AccountId, as_json, notice, print_json, print_table

_AT_ONCE = 100
"""Orders that one request to the daemon names."""

_TIMEOUT = 600.0
"""Seconds: tracking takes a request for each order and account, at the configured rate."""


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
    invocation: Invocation,
    references: tuple[str, ...],
    by_key: bool,
    account: str | None,
    json_output: bool,
) -> None:
    """Follow these orders, whenever the listing would reach them; - reads ids from stdin."""
    invocation.configure_logs("warning")
    wanted = _expanded(references)
    if not wanted:
        raise click.UsageError("no ids given")
    found = _track(invocation, wanted, by_key, account)
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


def _track(
    invocation: Invocation, references: list[str], by_key: bool, account: str | None
) -> list[dict[str, Any]]:
    """Have the daemon that runs follow the orders, some at a time, or do it ourselves."""
    from harvester.harvest.track import Tracked, broken_rule
    from harvester.web.local_socket import NoDaemonError, ask_daemon

    ledger = invocation.settings.database.path
    problems = {one: broken_rule(one, by_key=by_key) for one in references}
    found = [asdict(Tracked(one, problem=problem)) for one, problem in problems.items() if problem]
    good = [one for one in references if problems[one] is None]
    try:
        for begin in range(0, len(good), _AT_ONCE):
            some = good[begin : begin + _AT_ONCE]
            body = {"references": some, "by_key": by_key, "account_id": account}
            answer = ask_daemon(ledger, "POST", "/v1/orders", body, timeout=_TIMEOUT)
            found += answer["tracked"]
    except NoDaemonError:
        return asyncio.run(_track_ourselves(invocation, references, by_key, account))
    return found


async def _track_ourselves(
    invocation: Invocation, references: list[str], by_key: bool, account: str | None
) -> list[dict[str, Any]]:
    from harvester.app import open_app
    from harvester.context import Stop

    async with open_app(invocation.settings, Stop(), "track") as app:
        tracked = await app.tracker.track(references, by_key=by_key, account_id=account)
        return [asdict(one) for one in tracked]


@command("retry", "Make missing certificates due now.")
@click.argument("order_ids", metavar="ID...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every certificate that is missing.")
@as_json
def retry(
    invocation: Invocation, order_ids: tuple[str, ...], everything: bool, json_output: bool
) -> None:
    """Make failed or owed certificates due now: the daemon, or the next drain, asks again."""
    if bool(order_ids) == everything:
        raise click.UsageError("name order ids, or --all")
    invocation.configure_logs("warning")
    due = _retry(invocation, None if everything else list(order_ids))
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


def _retry(invocation: Invocation, order_ids: list[str] | None) -> list[tuple[str, str]]:
    from harvester.web.local_socket import NoDaemonError, ask_daemon

    ledger = invocation.settings.database.path
    try:
        due = ask_daemon(
            ledger, "POST", "/control/retry", {"order_ids": order_ids}, timeout=_TIMEOUT
        )
    except NoDaemonError:
        return asyncio.run(_retry_ourselves(invocation, order_ids))
    return [(account_id, order_id) for account_id, order_id in due]


async def _retry_ourselves(
    invocation: Invocation, order_ids: list[str] | None
) -> list[tuple[str, str]]:
    from harvester.app import open_ledger
    from harvester.context import utc_now
    from harvester.ledger.certificates import retry_certificates

    async with open_ledger(invocation.settings, "retry") as database:
        return await retry_certificates(database, utc_now(), order_ids)
