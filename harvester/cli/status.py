"""``status``: the state of things at a glance."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from harvester.cli.context import Context, command
from harvester.cli.output import as_json, print_json, print_table, printable, short

if TYPE_CHECKING:
    from harvester.ledger.lock import Holder
    from harvester.ledger.queries import Summary


@command("status", "Counts, sweeps, what is due and who runs.")
@as_json
def status(context: Context, json_output: bool) -> None:
    """Count orders and certificates, tell each account's last good sweep and what runs."""
    from harvester import shapes
    from harvester.ledger.lock import holder_of

    state = asyncio.run(_summarise(context))
    holder = holder_of(context.settings.database.path)
    if json_output:
        print_json(shapes.summary(state, holder))
    else:
        _print(state, holder)


async def _summarise(context: Context) -> Summary:
    from harvester.ledger.engine import open_reader
    from harvester.ledger.queries import summarise

    async with open_reader(context.settings.database.path) as database:
        return await summarise(database, datetime.now(UTC))


def _print(state: Summary, holder: Holder | None) -> None:
    click.echo(f"running: {holder or 'nothing holds the ledger'}")
    click.echo(f"orders: {_counts(state.by_status)}")
    click.echo(f"certificates: {_counts(state.by_certificate)}")
    click.echo(f"due now: {state.overdue}; next wake-up: {short(state.next_wake_at)}")
    print_table(
        ["account", "name", "mode", "last good sweep", "next sweep", "parked"],
        [
            (a.id, a.name, a.mode, short(a.last_sweep_at), short(a.next_sweep_at), a.parked_reason)
            for a in state.accounts
        ],
    )
    for odd in state.anomalies:
        served = f"Lune served {printable(odd.served)}" if odd.served else "Lune knew it not"
        click.echo(
            f"odd: order {odd.order_id} of account {odd.account_id}, recorded "
            f"{printable(odd.recorded or 'nothing')}: {served} "
            f"({odd.count} times, last {short(odd.last_at)})"
        )
    for odd in state.set_aside:
        click.echo(
            f"set aside: {printable(odd.reference)} of account {odd.account_id}: "
            f"{printable(odd.reason)} (seen {odd.count} times, last {short(odd.last_at)})"
        )


def _counts(counted: object) -> str:
    pairs = dict(counted).items() if isinstance(counted, dict) else ()
    return ", ".join(f"{count} {printable(name)}" for name, count in sorted(pairs)) or "none"
