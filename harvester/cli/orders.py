"""``orders``, ``show`` and ``export``: what the ledger knows of orders."""

from __future__ import annotations

import asyncio
import csv
import json
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from harvester.cli.exits import UNFINISHED
from harvester.cli.invocation import Invocation, command
from harvester.cli.output import (
    AccountId,
    as_json,
    notice,
    order_filters,
    print_fields,
    print_json,
    print_table,
    short,
    whole_file,
)

if TYPE_CHECKING:
    from harvester.ledger.queries import OrderDetail, OrderRow

_OF_ORDER = (
    "id",
    "account_id",
    "idempotency_key",
    "status",
    "quantity",
    "metadata",
    "created_at",
    "first_seen_at",
    "last_seen_at",
    "next_check_at",
)
_OF_CERTIFICATE = ("state", "version", "path", "sha256", "size", "stored_at")
_COLUMNS = (*_OF_ORDER, *(f"certificate_{column}" for column in _OF_CERTIFICATE))
_FORMULA = frozenset("=+-@\t\r\n")
_HEADERS = ("order", "account", "status", "tonnes", "created", "certificate", "key")
_LINES_AT_ONCE = 1000
"""A terminal's table needs all rows for its widths; lines for a program need none but their own."""


async def _stream(
    invocation: Invocation,
    status: str | None,
    account: str | None,
    certificate: str | None,
    since: datetime | None,
    until: datetime | None,
    limit: int | None,
) -> AsyncGenerator[OrderRow, None]:
    from harvester.domain.orders import OrderFilter
    from harvester.ledger.database import open_reader
    from harvester.ledger.queries import stream_orders

    scope = OrderFilter(
        accounts=None if account is None else frozenset({account}),
        status=status,
        certificate=certificate,
        since=since,
        until=until,
    )
    async with open_reader(invocation.settings.database.path) as database:
        async for row in stream_orders(database, scope, limit):
            yield row


def _locate(invocation: Invocation) -> Callable[[str], str]:
    # Plain text: a path object a row would be a tenth of an export.
    root = str(invocation.settings.storage.path).rstrip("/")
    return lambda path: f"{root}/{path}"


@command("orders", "List orders, newest first.")
@order_filters
@as_json
def orders(invocation: Invocation, json_output: bool, **filters: Any) -> None:
    """List orders, newest first."""
    from harvester import serializers

    locate = _locate(invocation)
    rows: list[tuple[object, ...]] = []

    async def work() -> None:
        async with aclosing(_stream(invocation, **filters)) as stream:
            async for row in stream:
                if json_output:
                    sys.stdout.write(json.dumps(serializers.order(row, locate)) + "\n")
                    continue
                rows.append(_cells(row))
                if len(rows) == _LINES_AT_ONCE and not sys.stdout.isatty():
                    print_table(_HEADERS, rows)
                    rows.clear()

    asyncio.run(work())
    if not json_output:
        print_table(_HEADERS, rows)


def _cells(row: OrderRow) -> tuple[object, ...]:
    return (
        row.id,
        row.account_id,
        row.status,
        row.quantity,
        short(row.created_at),
        row.certificate_state,
        row.idempotency_key,
    )


@command("show", "One order: its chain, certificates, what it waits for.")
@click.argument("reference", metavar="ID")
@click.option(
    "--account", type=AccountId(), metavar="ID", help="Whose, when several accounts have one."
)
@as_json
def show(invocation: Invocation, reference: str, account: str | None, json_output: bool) -> None:
    """Show one order, by id or idempotency key: its chain, certificates, what it waits for."""
    from harvester import serializers

    details = asyncio.run(_find(invocation, reference, account))
    if not details:
        notice(f"{reference!a} is not in the ledger; `harvester track` follows an order by its id")
        sys.exit(UNFINISHED)
    if len(details) > 1:
        names = ", ".join(detail.order.account_id for detail in details)
        raise click.UsageError(f"several accounts have one: {names}; name it with --account")
    shape = serializers.order_detail(details[0], _locate(invocation))
    if json_output:
        print_json(shape)
    else:
        _print_order(details[0], shape)


async def _find(invocation: Invocation, reference: str, account: str | None) -> list[OrderDetail]:
    from harvester.ledger.database import open_reader
    from harvester.ledger.queries import find_orders

    async with open_reader(invocation.settings.database.path) as database:
        return await find_orders(database, reference, account)


def _print_order(detail: OrderDetail, shape: dict[str, Any]) -> None:
    row, document = detail.order, detail.document
    cost = document.get("total_cost")
    print_fields(
        [
            ("order", row.id),
            ("account", f"{row.account_id} ({row.mode})"),
            ("beneficiary", row.beneficiary),
            ("idempotency key", row.idempotency_key),
            ("status", row.status),
            ("tonnes", row.quantity),
            ("total cost", None if cost is None else f"{cost} {document.get('currency')}"),
            ("metadata", json.dumps(row.metadata, ensure_ascii=False)),
            ("created", short(row.created_at)),
            ("first seen", short(row.first_seen_at)),
            ("last seen", short(row.last_seen_at)),
            ("next check", short(row.next_check_at)),
            ("certificate", row.certificate_state),
            ("waits for", shape["waits_for"]),
        ],
    )
    if row.not_found_since is not None:
        click.echo(f"Lune has not known this order since {short(row.not_found_since)}")
    _section(
        "transitions",
        ["", "from", "to", "observed", "source"],
        [(s.seq, s.before, s.after, short(s.observed_at), s.source) for s in detail.transitions],
    )
    _section(
        "certificates",
        ["version", "kind", "bytes", "sha256", "stored", "path"],
        [
            (c.version, c.kind, c.file.size, c.file.sha256, short(c.stored_at), one["path"])
            for c, one in zip(detail.certificates, shape["certificates"], strict=True)
        ],
    )
    _section(
        "anomalies",
        ["kind", "recorded", "served", "times", "first", "last"],
        [
            (a.kind, a.recorded, a.served, a.count, short(a.first_at), short(a.last_at))
            for a in detail.anomalies
        ],
    )


def _section(title: str, headers: list[str], rows: list[tuple[object, ...]]) -> None:
    if rows:
        click.echo(f"\n{title}")
        print_table(headers, rows)


@command("export", "Write orders as CSV or JSON Lines.")
@click.option("--format", "form", type=click.Choice(["csv", "jsonl"]), default="csv")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write to this file, replaced only when the export is whole; else stdout.",
)
@order_filters
def export(invocation: Invocation, form: str, output: Path | None, **filters: Any) -> None:
    """Write orders as CSV or JSON Lines.

    In CSV, text that a spreadsheet would run as a formula gets a leading apostrophe.
    """
    if output is None:
        asyncio.run(_export(invocation, form, sys.stdout, filters))
        return
    with whole_file(output) as stream:
        asyncio.run(_export(invocation, form, stream, filters))


async def _export(
    invocation: Invocation, form: str, stream: IO[str], filters: dict[str, Any]
) -> None:
    from harvester import serializers
    from harvester.ledger import migrate

    migrate.require_current(invocation.settings.database.path)  # before a header is written
    locate = _locate(invocation)
    writer = csv.writer(stream, lineterminator="\n")
    if form == "csv":
        writer.writerow(_COLUMNS)
    async with aclosing(_stream(invocation, **filters)) as rows:
        async for row in rows:
            shape = serializers.order(row, locate)
            if form == "jsonl":
                stream.write(json.dumps(shape) + "\n")
            else:
                writer.writerow(_flat(shape))


def _flat(shape: dict[str, Any]) -> list[object]:
    certificate = shape["certificate"] or {}
    shape["metadata"] = json.dumps(shape["metadata"], ensure_ascii=False)
    values = [shape[column] for column in _OF_ORDER]
    values += [certificate.get(column) for column in _OF_CERTIFICATE]
    return ["'" + v if isinstance(v, str) and v[:1] in _FORMULA else v for v in values]
