"""``status``: the state of things at a glance."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harvester.cli.invocation import Invocation, command
from harvester.cli.output import as_json, print_json, print_table, printable, short

if TYPE_CHECKING:
    from harvester.domain.stuck import Bound, StuckOrder
    from harvester.ledger.lock import Holder
    from harvester.ledger.queries import CountedAnomaly, KeptRejection
    from harvester.ledger.statistics import Statistics


_MOST_LINES = 20
_TIMEOUT = 2.0
"""Seconds a daemon has to answer."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What the ledger says."""

    statistics: Statistics
    anomalies: Sequence[CountedAnomaly]
    rejected: Sequence[KeptRejection]
    stuck: Sequence[StuckOrder]


@command("status", "Counts, sweeps, what is due and who runs.")
@as_json
def status(invocation: Invocation, json_output: bool) -> None:
    """Count orders and certificates, tell each account's last good sweep and what runs."""
    from harvester.ledger.lock import holder_of

    found = asyncio.run(_read(invocation, whole=json_output))
    ledger = invocation.settings.database.path
    holder, rate = holder_of(ledger), _ask_rate(ledger)
    if json_output:
        print_json(_document(found, holder, rate))
    else:
        _print(found, holder, rate)


async def _read(invocation: Invocation, *, whole: bool) -> _Found:
    from harvester.domain.stuck import bounds
    from harvester.ledger.database import open_reader
    from harvester.ledger.queries import newest_anomalies, newest_rejections
    from harvester.ledger.schedule import status_durations
    from harvester.ledger.statistics import read_statistics
    from harvester.ledger.stuck import MOST_STUCK, find_stuck

    now = datetime.now(UTC)
    # One more than the lines that are printed tells that there are more.
    most = MOST_STUCK if whole else _MOST_LINES + 1
    async with open_reader(invocation.settings.database.path) as database:
        durations = await status_durations(database, now)
        limits = bounds(invocation.settings.harvest.stuck, durations)
        async with database.read() as connection:
            statistics = await read_statistics(connection, now)
        return _Found(
            statistics,
            await newest_anomalies(database),
            await newest_rejections(database),
            await find_stuck(database, limits, now, most=most),
        )


def _ask_rate(ledger: Path) -> Mapping[str, float] | None:
    """Ask the running daemon how fast it goes; None when none answers."""
    from harvester.domain.errors import HarvesterError
    from harvester.web.local_socket import NoDaemonError, ask_daemon

    try:
        rate: Mapping[str, float] = ask_daemon(
            ledger, "GET", "/control/rate", None, timeout=_TIMEOUT
        )
    except (NoDaemonError, HarvesterError):
        return None  # none runs, or it is busy
    return rate


def _document(
    found: _Found, holder: Holder | None, rate: Mapping[str, float] | None
) -> dict[str, Any]:
    from harvester import serializers

    return serializers.statistics(found.statistics) | {
        "anomalies": [serializers.anomaly(one) for one in found.anomalies],
        "rejected_orders": [serializers.rejection(one) for one in found.rejected],
        "stuck": [serializers.stuck_order(one) for one in found.stuck],
        "daemon": serializers.daemon(holder),
        "rate": rate,
    }


def _print(found: _Found, holder: Holder | None, rate: Mapping[str, float] | None) -> None:
    counts = found.statistics
    click.echo(f"daemon: {holder or 'no daemon is running'}")
    if rate is not None and rate["current_rate"] < rate["rate"]:
        click.echo(
            f"rate: {rate['current_rate']:.1f} of {rate['rate']:g} requests/s, lowered by a 429"
        )
    click.echo(f"orders: {_counts(counts.by_status)}")
    click.echo(f"certificates: {_counts(counts.by_certificate)}")
    click.echo(f"due now: {counts.due}; next wake-up: {short(counts.next_wake_at)}")
    print_table(
        ["account", "name", "mode", "last good sweep", "next sweep", "parked"],
        [
            (a.id, a.name, a.mode, short(a.last_sweep_at), short(a.next_sweep_at), a.parked_reason)
            for a in counts.accounts
        ],
    )
    for one in found.anomalies:
        served = f"Lune served {printable(one.served)}" if one.served else "Lune answers 404"
        click.echo(
            f"anomaly: order {one.order_id} of account {one.account_id}, recorded "
            f"{printable(one.recorded or 'nothing')}: {served} "
            f"({one.count} times, last {short(one.last_at)})"
        )
    for rejected in found.rejected:
        click.echo(
            f"rejected order: {printable(rejected.reference)} of account {rejected.account_id}: "
            f"{printable(rejected.reason)} "
            f"(seen {rejected.count} times, last {short(rejected.last_at)})"
        )
    _print_stuck(found.stuck)


def _print_stuck(stuck: Sequence[StuckOrder]) -> None:
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


def _counts(counted: Mapping[str, int]) -> str:
    pairs = sorted(counted.items())
    return ", ".join(f"{count} {printable(name)}" for name, count in pairs) or "none"
