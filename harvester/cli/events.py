"""``events``: what happened, who was not told of it yet, and telling them again."""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import click

from harvester.cli.context import Context, command, pass_config
from harvester.cli.exits import UNFINISHED
from harvester.cli.handover import hand_over
from harvester.cli.output import as_json, notice, print_json, print_table, short

if TYPE_CHECKING:
    from harvester.domain.events import Event
    from harvester.ledger.outbox import Lacking


@click.group("events", short_help="What happened, and who was told.")
@pass_config
def events(_context: Context) -> None:
    """See what happened and who was not told of it yet, and tell them again."""


@command("list", "List the events that are kept.")
@click.option("--after", type=click.IntRange(min=0), default=0, help="Only after this number.")
@click.option("--undelivered", is_flag=True, help="Only what a receiver did not take yet.")
@as_json
def list_(context: Context, after: int, undelivered: bool, json_output: bool) -> None:
    """List the events that are kept, oldest first.

    Events are kept for seven days, those that a receiver did not take for thirty. --json prints a
    line for each, with the receivers that did not take it.
    """
    context.configure_logs("warning")
    found = asyncio.run(_list(context, after, json_output, undelivered))
    if undelivered:
        print_table(
            ["number", "event", "order", "receiver", "attempts", "next try", "why not yet"],
            [
                (
                    event.seq,
                    event.type,
                    event.order_id,
                    one.receiver,
                    one.attempts,
                    short(one.next_try_at),
                    one.failure,
                )
                for event, lacking in found
                for one in lacking
            ],
        )
    else:
        print_table(
            ["number", "event", "at", "order", "account", "not taken by"],
            [
                (
                    event.seq,
                    event.type,
                    short(event.at),
                    event.order_id,
                    event.account_id,
                    ", ".join(one.receiver for one in lacking) or None,
                )
                for event, lacking in found
            ],
        )


async def _list(
    context: Context, after: int, json_output: bool, undelivered: bool
) -> list[tuple[Event, list[Lacking]]]:
    """Return the events to make a table of; as JSON they are printed as they are read."""
    from harvester.ledger.database import open_reader
    from harvester.ledger.outbox import list_events

    filters = context.settings.events.filters
    found = []
    async with (
        open_reader(context.settings.database.path) as database,
        aclosing(list_events(database, after, filters)) as rows,
    ):
        async for event, lacking in rows:
            if undelivered and not lacking:
                continue
            if json_output:
                print_json(_shape(event, lacking))
            else:
                found.append((event, lacking))
    return found


def _shape(event: Event, lacking: list[Lacking]) -> dict[str, Any]:
    from harvester.domain.events import cloud_event
    from harvester.serializers import instant

    return {
        "seq": event.seq,
        "event": cloud_event(event),
        "undelivered": [
            {
                "receiver": one.receiver,
                "attempts": one.attempts,
                "next_try_at": instant(one.next_try_at),
                "failure": one.failure,
            }
            for one in lacking
        ],
    }


@command("resend", "Tell receivers again.")
@click.argument("seqs", metavar="NUMBER...", type=click.IntRange(min=1), nargs=-1)
@click.option("--receiver", metavar="NAME", help="Only this one; without numbers, what it lacks.")
@as_json
def resend(
    context: Context, seqs: tuple[int, ...], receiver: str | None, json_output: bool
) -> None:
    """Tell receivers again: these events, or all that one receiver did not take.

    A receiver that was parked is told again from now on. The daemon sends, or the next drain does.
    """
    if not seqs and receiver is None:
        raise click.UsageError("name events by number, or a receiver with --receiver")
    known = context.settings.events.filters
    if receiver is not None and receiver not in known:
        names = ", ".join(sorted(known)) or "none"
        raise click.UsageError(f"no such receiver in the configuration; there are: {names}")
    context.configure_logs("warning")
    again = asyncio.run(_resend(context, list(seqs), receiver))
    if json_output:
        for seq, name in again:
            print_json({"seq": seq, "receiver": name})
    else:
        print_table(["due now", "receiver"], again)
    nothing = sorted(set(seqs) - {seq for seq, _ in again})
    for seq in nothing:
        notice(f"event {seq}: not kept, not wanted by a receiver, or not sent for the first time")
    if nothing:
        sys.exit(UNFINISHED)


async def _resend(context: Context, seqs: list[int], receiver: str | None) -> list[tuple[int, str]]:
    from harvester.app import now, open_ledger
    from harvester.ledger.outbox import SqlOutbox

    settings = context.settings
    body = {"seqs": seqs, "receiver": receiver}
    handed, result = await hand_over(settings.database.path, "resend", body)
    if handed:
        return [(seq, name) for seq, name in result]
    filters = settings.events.filters
    chosen = filters if receiver is None else {receiver: filters[receiver]}
    async with open_ledger(settings, "events resend") as database:
        return await SqlOutbox(database).resend(seqs, chosen, now())


@command("secret", "Make a secret to sign events with.")
def secret(_context: Context) -> None:
    """Print a new secret, for a file of its own that a receiver's secret_file names."""
    from harvester.events.signing import make_secret

    click.echo(make_secret())


for _command in (list_, resend, secret):
    events.add_command(_command)
