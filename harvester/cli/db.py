"""``db``: the ledger's schema and safe copies of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from harvester.cli.invocation import Invocation, command, pass_invocation
from harvester.cli.output import as_json, print_json


@click.group("db", short_help="Upgrade, inspect and copy the ledger.")
@pass_invocation
def db(_invocation: Invocation) -> None:
    """Upgrade, inspect and copy the ledger."""


@command("upgrade", "Make the ledger, or upgrade its schema.")
def upgrade(invocation: Invocation) -> None:
    """Make the ledger, or bring it to this release's schema; a backup is made first."""
    from harvester.app import open_ledger
    from harvester.ledger import migrate

    invocation.configure_logs()

    async def work() -> None:
        async with open_ledger(invocation.settings, "db upgrade"):
            click.echo(f"{invocation.settings.database.path}: schema {migrate.head()}")

    asyncio.run(work())


@command("current", "Tell the schema of the ledger.")
@as_json
def current(invocation: Invocation, json_output: bool) -> None:
    """Tell the ledger's schema and the one this release works with."""
    from harvester.ledger import migrate

    path = invocation.settings.database.path
    revision = migrate.current(path)
    if json_output:
        print_json({"ledger": str(path), "schema": revision, "head": migrate.head()})
    else:
        click.echo(f"{path}: {revision or 'no ledger yet'} (this release: {migrate.head()})")


@command("backup", "Copy the ledger safely to FILE.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def backup(invocation: Invocation, file: Path) -> None:
    """Copy the ledger to FILE, whole and durable, also while a daemon writes it."""
    from harvester.ledger import migrate

    migrate.require_current(invocation.settings.database.path)
    if file.exists():
        raise click.UsageError(f"{file} exists already; name a new file")
    migrate.backup(invocation.settings.database.path, file)
    click.echo(f"{file}: {file.stat().st_size} bytes")


for _command in (upgrade, current, backup):
    db.add_command(_command)
