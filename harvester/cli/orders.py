"""``orders``, ``show`` and ``export``: what the ledger knows of orders."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, TYPE_CHECKING, Any

import click

from harvester.cli.context import Context, command
from harvester.cli.exits import UNFINISHED
from harvester.cli.output import (
    AccountId,
    as_json,
    notice,
    order_filters,
    print_fields,
    print_json,
    print_table,
    short,
)

if TYPE_CHECKING:
    from harvester.ledger.queries import OrderDetail, OrderRow

_COLUMNS = (
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
    "certificate_state",
    "certificate_version",
    "certificate_path",
    "certificate_sha256",
    "certificate_size",
    "certificate_stored_at",
)


async def _stream(
    context: Context,
    status: str | None,
    account: str | None,
    certificate: str | None,
    since: datetime | None,
    until: datetime | None,
    limit: int | None,
) -> AsyncGenerator[OrderRow, None]:
    from harvester.domain.records import OrderFilter
    from harvester.ledger.engine import open_reader
    from harvester.ledger.queries import stream_orders

    scope = OrderFilter(
        accounts=None if account is None else frozenset({account}),
        status=status,
        certificate=certificate,
        since=since,
        until=until,
    )
    async with open_reader(context.settings.database.path) as database:
        async for row in stream_orders(database, scope, limit):
            yield row


def _archive_path(context: Context, key: str) -> Path:
    return context.settings.storage.path / key


@command("orders", "List orders, newest first.")
@order_filters
@as_json
def orders(context: Context, json_output: bool, **filters: Any) -> None:
    """List orders, newest first."""
    from harvester import shapes

    async def work() -> None:
        rows = []
        async with aclosing(_stream(context, **filters)) as stream:
            async for row in stream:
                if json_output:
                    print_json(shapes.order(row, lambda key: _archive_path(context, key)))
                else:
                    rows.append(
                        (
                            row.id,
                            row.account_id,
                            row.status,
                            row.quantity,
                            short(row.created_at),
                            row.certificate_state,
                            row.idempotency_key,
                        )
                    )
        if not json_output:
            print_table(
                ["order", "account", "status", "tonnes", "created", "certificate", "key"], rows
            )

    asyncio.run(work())


@command("show", "One order: its chain, certificates, what it waits for.")
@click.argument("reference", metavar="ID")
@click.option(
    "--account", type=AccountId(), metavar="ID", help="Whose, when several accounts have one."
)
@as_json
def show(context: Context, reference: str, account: str | None, json_output: bool) -> None:
    """Show one order, by id or idempotency key: its chain, certificates, what it waits for."""
    from harvester import shapes

    details = asyncio.run(_find(context, reference, account))
    if not details:
        notice(f"{reference!a} is not in the ledger; `harvester track` follows an order by its id")
        sys.exit(UNFINISHED)
    if len(details) > 1:
        names = ", ".join(detail.order.account_id for detail in details)
        raise click.UsageError(f"several accounts have one: {names}; name it with --account")
    shape = shapes.order_detail(details[0], lambda key: _archive_path(context, key))
    if json_output:
        print_json(shape)
    else:
        _print_order(details[0], shape)


async def _find(context: Context, reference: str, account: str | None) -> list[OrderDetail]:
    from harvester.ledger.engine import open_reader
    from harvester.ledger.queries import find_orders

    async with open_reader(context.settings.database.path) as database:
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
            ("next look", short(row.next_check_at)),
            ("certificate", row.certificate_state),
            ("waits for", shape["waits_for"]),
        ],
    )
    if row.missing_since is not None:
        click.echo(f"Lune has not known this order since {short(row.missing_since)}")
    _section(
        "transitions",
        ["", "from", "to", "observed", "source"],
        [
            (s.seq, s.from_status, s.to_status, short(s.observed_at), s.source)
            for s in detail.transitions
        ],
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
def export(context: Context, form: str, output: Path | None, **filters: Any) -> None:
    """Write orders as CSV or JSON Lines.

    In CSV, text that a spreadsheet would run as a formula gets a leading apostrophe.
    """
    if output is None:
        asyncio.run(_export(context, form, sys.stdout, filters))
        return
    try:
        with NamedTemporaryFile(
            "w", dir=output.parent, prefix=f".{output.name}.", delete=False, encoding="utf-8"
        ) as stream:
            try:
                asyncio.run(_export(context, form, stream, filters))
                stream.flush()
                os.fsync(stream.fileno())
                Path(stream.name).replace(output)
            except BaseException:
                Path(stream.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise click.ClickException(f"{output}: {error.strerror}") from error


async def _export(context: Context, form: str, stream: IO[str], filters: dict[str, Any]) -> None:
    from harvester import shapes
    from harvester.ledger import migrate

    migrate.require_current(context.settings.database.path)  # before a header is written
    writer = csv.writer(stream, lineterminator="\n")
    if form == "csv":
        writer.writerow(_COLUMNS)
    async with aclosing(_stream(context, **filters)) as rows:
        async for row in rows:
            shape = shapes.order(row, lambda key: _archive_path(context, key))
            if form == "jsonl":
                stream.write(json.dumps(shape) + "\n")
            else:
                writer.writerow(_flat(shape))


def _flat(shape: dict[str, Any]) -> list[object]:
    certificate = shape.pop("certificate") or {}
    shape["metadata"] = json.dumps(shape["metadata"], ensure_ascii=False)
    shape |= {f"certificate_{name}": value for name, value in certificate.items()}
    return [_harmless(shape.get(column)) for column in _COLUMNS]


def _harmless(value: object) -> object:
    if isinstance(value, str) and value[:1] in {"=", "+", "-", "@", "\t", "\r", "\n"}:
        return "'" + value
    return value
