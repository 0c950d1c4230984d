"""``events``: what happened, what was not delivered yet, and delivering it again."""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import click

from harvester.cli.exits import UNFINISHED
from harvester.cli.invocation import Invocation, command, pass_invocation
from harvester.cli.output import as_json, notice, print_json, print_table, short

if TYPE_CHECKING:
    from harvester.domain.events import Event
    from harvester.ledger.outbox import Undelivered

_TIMEOUT = 60.0


@click.group("events", short_help="What happened, and its delivery.")
@pass_invocation
def events(_invocation: Invocation) -> None:
    """See what happened and what was not delivered yet, and deliver it again."""


@command("list", "List the events that are kept.")
@click.option("--after", type=click.IntRange(min=0), default=0, help="Only after this number.")
@click.option("--undelivered", is_flag=True, help="Only what a receiver has not accepted yet.")
@as_json
def list_(invocation: Invocation, after: int, undelivered: bool, json_output: bool) -> None:
    """List the events that are kept, oldest first.

    Events are kept for seven days, those that a receiver did not accept for thirty. --json prints
    a line for each, with the receivers that have not accepted it.
    """
    invocation.configure_logs("warning")
    found = asyncio.run(_list(invocation, after, json_output, undelivered))
    if undelivered:
        print_table(
            ["number", "event", "order", "receiver", "attempts", "next attempt", "failure"],
            [
                (
                    event.seq,
                    event.type,
                    event.order_id,
                    one.receiver,
                    one.attempts,
                    short(one.next_attempt_at),
                    one.failure,
                )
                for event, undelivered_to in found
                for one in undelivered_to
            ],
        )
    else:
        print_table(
            ["number", "event", "at", "order", "account", "undelivered to"],
            [
                (
                    event.seq,
                    event.type,
                    short(event.at),
                    event.order_id,
                    event.account_id,
                    ", ".join(one.receiver for one in undelivered_to) or None,
                )
                for event, undelivered_to in found
            ],
        )


async def _list(
    invocation: Invocation, after: int, json_output: bool, undelivered: bool
) -> list[tuple[Event, list[Undelivered]]]:
    """Return the events to make a table of; as JSON they are printed as they are read."""
    from harvester.ledger.database import open_reader
    from harvester.ledger.outbox import list_events

    found = []
    async with (
        open_reader(invocation.settings.database.path) as database,
        aclosing(list_events(database, after)) as rows,
    ):
        async for event, undelivered_to in rows:
            if undelivered and not undelivered_to:
                continue
            if json_output:
                print_json(_shape(event, undelivered_to))
            else:
                found.append((event, undelivered_to))
    return found


def _shape(event: Event, undelivered: list[Undelivered]) -> dict[str, Any]:
    from harvester.domain.events import cloud_event
    from harvester.serializers import instant

    return {
        "seq": event.seq,
        "event": cloud_event(event),
        "undelivered": [
            {
                "receiver": one.receiver,
                "attempts": one.attempts,
                "next_attempt_at": instant(one.next_attempt_at),
                "failure": one.failure,
            }
            for one in undelivered
        ],
    }


@command("resend", "Deliver events again.")
@click.argument("seqs", metavar="NUMBER...", type=click.IntRange(min=1), nargs=-1)
@click.option(
    "--receiver", metavar="NAME", help="Only this one; without numbers, what it has not accepted."
)
@as_json
def resend(
    invocation: Invocation, seqs: tuple[int, ...], receiver: str | None, json_output: bool
) -> None:
    """Deliver again: these events, or all that one receiver has not accepted.

    A receiver that was parked gets events again from now on. The daemon sends, or the next drain.
    """
    if not seqs and receiver is None:
        raise click.UsageError("name events by number, or a receiver with --receiver")
    known = invocation.settings.events.filters
    if receiver is not None and receiver not in known:
        names = ", ".join(sorted(known)) or "none"
        raise click.UsageError(f"no such receiver in the configuration; there are: {names}")
    invocation.configure_logs("warning")
    again = _resend(invocation, list(seqs), receiver)
    if json_output:
        for seq, name in again:
            print_json({"seq": seq, "receiver": name})
    else:
        print_table(["due now", "receiver"], again)
    nothing = sorted(set(seqs) - {seq for seq, _ in again})
    for seq in nothing:
        notice(f"event {seq}: not kept any more, or no receiver wants it")
    if nothing:
        sys.exit(UNFINISHED)


def _resend(invocation: Invocation, seqs: list[int], receiver: str | None) -> list[tuple[int, str]]:
    from harvester.web.local_socket import NoDaemonError, ask_daemon

    ledger = invocation.settings.database.path
    body = {"seqs": seqs, "receiver": receiver}
    try:
        again = ask_daemon(ledger, "POST", "/control/resend", body, timeout=_TIMEOUT)
    except NoDaemonError:
        return asyncio.run(_resend_ourselves(invocation, seqs, receiver))
    return [(seq, name) for seq, name in again]


async def _resend_ourselves(
    invocation: Invocation, seqs: list[int], receiver: str | None
) -> list[tuple[int, str]]:
    from harvester.app import open_ledger
    from harvester.ledger.outbox import resend_events

    known = invocation.settings.events.filters
    async with open_ledger(invocation.settings, "events resend") as database:
        return await resend_events(database, seqs, list(known) if receiver is None else [receiver])


@command("secret", "Make a secret to sign events with.")
def secret(_invocation: Invocation) -> None:
    """Print a new secret, for a file of its own that a receiver's secret_file names."""
    from harvester.events.signing import make_secret

    click.echo(make_secret())


for _command in (list_, resend, secret):
    events.add_command(_command)
