"""``status``: the state of things at a glance."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harvester.cli.context import Context, command
from harvester.cli.output import as_json, print_json, print_table, printable, short

if TYPE_CHECKING:
    from harvester.domain.stuck import Bound, StuckOrder
    from harvester.ledger.lock import Holder
    from harvester.ledger.queries import Summary


_MOST_LINES = 20
_PATIENCE = 2.0
"""Seconds a daemon has to answer."""


@command("status", "Counts, sweeps, what is due and who runs.")
@as_json
def status(context: Context, json_output: bool) -> None:
    """Count orders and certificates, tell each account's last good sweep and what runs."""
    from harvester import serializers
    from harvester.ledger.lock import holder_of
    from harvester.ledger.stuck import MOST

    # One more than the lines that are printed tells that there are more.
    state, stuck = asyncio.run(_summarise(context, MOST if json_output else _MOST_LINES + 1))
    holder = holder_of(context.settings.database.path)
    pace = _ask_pace(context.settings.database.path)
    if json_output:
        print_json({**serializers.summary(state, holder, stuck), "pace": pace})
    else:
        _print(state, holder, pace)
        _print_stuck(stuck)


async def _summarise(context: Context, most: int) -> tuple[Summary, list[StuckOrder]]:
    from harvester.domain.stuck import STAYS, bounds
    from harvester.ledger.database import open_reader
    from harvester.ledger.queries import summarise
    from harvester.ledger.sql import SqlLedger
    from harvester.ledger.stuck import find_stuck

    now = datetime.now(UTC)
    async with open_reader(context.settings.database.path) as database:
        stays = await SqlLedger(database).recent_stays(STAYS, now)
        limits = bounds(context.settings.harvest.stuck, stays)
        return await summarise(database, now), await find_stuck(database, limits, now, most=most)


def _ask_pace(ledger: Path) -> dict[str, float] | None:
    """Ask the running daemon how fast it goes; None when none answers.

    By the standard library: aiohttp would be half of what this command costs.
    """
    import http.client
    import json
    import socket

    from harvester.web.address import control_path, reachable

    path = control_path(ledger)
    if not path.is_socket():
        return None
    connection = http.client.HTTPConnection("daemon", timeout=_PATIENCE)
    try:
        with socket.socket(socket.AF_UNIX) as connection.sock, reachable(path) as name:
            connection.sock.settimeout(_PATIENCE)
            connection.sock.connect(name)
            connection.request("GET", "/pace")
            pace: dict[str, float] = json.load(connection.getresponse())
    except (OSError, ValueError, http.client.HTTPException):
        return None  # left behind by a daemon that was killed, or one that is busy
    return pace


def _print(state: Summary, holder: Holder | None, pace: dict[str, float] | None) -> None:
    click.echo(f"running: {holder or 'nothing holds the ledger'}")
    if pace is not None and pace["pace"] < pace["rate"]:
        click.echo(f"pace: {pace['pace']:.1f} of {pace['rate']:g} requests/s, lowered by a 429")
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


def _print_stuck(stuck: list[StuckOrder]) -> None:
    from harvester.domain.explain import waits_for

    for one in stuck[:_MOST_LINES]:
        wait = waits_for(one.status, None, None, one.document)
        click.echo(
            f"stuck: order {one.order_id} of account {one.account_id} is {one.status} since "
            f"{short(one.since)}, longer than {_days(one.bound)}; waits for {printable(wait)}"
        )
    if len(stuck) > _MOST_LINES:
        click.echo("stuck: and more; see --json")


def _days(bound: Bound) -> str:
    return f"{bound.after.total_seconds() / 86400:.3g} days ({bound.basis})"


def _counts(counted: object) -> str:
    pairs = dict(counted).items() if isinstance(counted, dict) else ()
    return ", ".join(f"{count} {printable(name)}" for name, count in sorted(pairs)) or "none"
