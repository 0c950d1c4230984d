"""How commands print: tables on a terminal, tab-separated lines elsewhere, JSON when asked."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import click

_AS_WIDE_AS_NEEDED = 10_000

as_json = click.option("--json", "json_output", is_flag=True, help="Print JSON, nothing else.")


def print_json(value: Any) -> None:
    """Print a value as one line of JSON on stdout."""
    click.echo(json.dumps(value))


def print_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows: a table for a person, tab-separated for a pipe; control characters escaped."""
    if not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join(printable(cell) for cell in row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        table.add_column(header, no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    # As wide as it needs: the terminal wraps a line, and an id or path stays whole to copy.
    if table.row_count:
        Console(width=_AS_WIDE_AS_NEEDED).print(table, soft_wrap=True)


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Print names and values, a line each; tab-separated for a pipe."""
    for name, value in fields:
        gap = f"{name:16}" if sys.stdout.isatty() else f"{name}\t"
        click.echo(f"{gap}{printable(value)}")


def printable(value: object) -> str:
    """Return a value as text on one line; served text may hold anything."""
    text = "-" if value is None else str(value)
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def counted(count: int, noun: str) -> str:
    """Write a number with its noun, in the plural where it belongs."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def short(at: datetime | None) -> str:
    """Write an instant to the second, UTC."""
    return "-" if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def notice(text: str) -> None:
    """Say something on stderr."""
    click.echo(text, err=True)


class AccountId(click.ParamType[str]):
    """An account's id."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse what no account can have as its id, before anything is asked with it."""
        from harvester.domain.orders import is_identifier

        if not is_identifier(value):
            self.fail(f"{value!a} is no account id: letters, digits, - and _ only", param, ctx)
        return str(value)


class Instant(click.ParamType[datetime]):
    """A date or a date and time; a time without zone is UTC.

    With ``end`` a plain date means through the end of that day.
    """

    name = "date"

    def __init__(self, *, end: bool = False) -> None:
        self._end = end

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Read ISO 8601; a usage error otherwise."""
        from harvester.domain.instants import parse_instant

        try:
            return parse_instant(value, end=self._end)
        except ValueError as error:
            self.fail(f"{value!r} is no date; {error}", param, ctx)


class Duration(click.ParamType[timedelta]):
    """A duration such as 90s, 15m, 6h."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        """Read it by the configuration's rule; a usage error otherwise."""
        from harvester.config.types import parse_duration

        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(f"{value!r} {error}", param, ctx)


def order_filters(function: Callable[..., None]) -> Callable[..., None]:
    """Add the filters that ``orders`` and ``export`` share."""
    for option in reversed(
        (
            click.option("--status", metavar="S", help="Only orders in this status."),
            click.option(
                "--account", type=AccountId(), metavar="A", help="Only orders of this account."
            ),
            click.option(
                "--certificate",
                type=click.Choice(["none", "owed", "stored", "failed"]),
                help="Only orders whose certificate is in this state.",
            ),
            click.option("--since", type=Instant(), help="Created at or after this date."),
            click.option(
                "--until", type=Instant(end=True), help="Created up to and with this date."
            ),
            click.option("--limit", type=click.IntRange(min=1), help="At most this many."),
        )
    ):
        function = option(function)
    return function


@contextmanager
def whole_file(path: Path) -> Iterator[IO[str]]:
    """Open a file for text that appears under its name whole and on disk, or not at all.

    What is no regular file, such as /dev/stdout, is written to as it is and never replaced.
    ``ClickException`` when it cannot be written.
    """
    from harvester.files import atomic_file

    try:
        if path.exists() and not path.is_file():
            with path.open("w", encoding="utf-8") as stream:
                yield stream
            return
        with atomic_file(path) as stream:
            yield stream
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}") from error
