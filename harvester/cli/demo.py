"""``demo``: a whole harvest against the built-in sandbox, in a folder of its own."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harvester.cli.exits import INTERRUPTED, UNFINISHED
from harvester.cli.output import print_table

if TYPE_CHECKING:
    from harvester.app import App
    from harvester.config.settings import Settings
    from harvester.context import Stop
    from harvester.ledger.statistics import Statistics
    from harvester.sandbox import Sandbox

ORDERS = 24
_FOLLOWED_SECONDS = 6.0
"""How long the longest of the simulated lives takes: weeks, in seconds a person watches."""

_LONGEST_SECONDS = 20.0

_CONFIG = """\
# Written by `harvester demo`; the sandbox it speaks of ends with the demo.
[lune]
base_url = {base_url}
api_key_file = {key_file}
accounts = ["all"]
[database]
url = {database}
[storage]
url = {storage}
[harvest]
sweep_interval = "500ms"
longest_interval = "2s"
"""


@click.command("demo", short_help="A whole harvest against the built-in sandbox.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where to put it all; a fresh folder here unless given.",
)
def demo(folder: Path | None) -> None:
    """Watch a harvest: a sandbox of Lune, orders moving, certificates landing in a folder."""
    folder = _fresh(folder).absolute()
    code = asyncio.run(_demo(folder))
    if code:
        sys.exit(code)


def _fresh(folder: Path | None) -> Path:
    if folder is None:
        here = Path.cwd()
        where = here if os.access(here, os.W_OK) else Path(tempfile.gettempdir())
        return Path(tempfile.mkdtemp(prefix="harvester-demo-", dir=where))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise click.UsageError(f"{folder} is not empty; the demo wants a fresh folder")
    return folder


async def _demo(folder: Path) -> int:
    from harvester import logs
    from harvester.app import open_app
    from harvester.cli.run import listen_for_signals
    from harvester.context import Stop
    from harvester.runtime.drain import Drain
    from harvester.sandbox import Sandbox, SandboxOptions

    stop = Stop()
    listen_for_signals(stop)
    options = SandboxOptions(orders=ORDERS, accounts=1, client_accounts=1, speed=0)
    async with Sandbox(options) as sandbox:
        settings = _configure(folder, sandbox)
        with (folder / "harvester.log").open("w", encoding="utf-8") as log:
            logs.configure("info", "json", log)
            click.echo(f"A local Lune is up at {sandbox.base_url}, with {ORDERS} orders.")
            async with open_app(settings, stop, "demo") as app:
                report = await Drain(app).run()
                click.echo(
                    f"Drain: {report.swept.seen} orders recorded, {report.collected.stored} "
                    f"certificates stored, {report.requests} requests. Now its clock runs."
                )
                sandbox.clock.run_at(_speed(sandbox))
                interrupted = await _follow(app, stop)
                code = await _conclude(app, folder)
            logs.configure("error", "console")
    return INTERRUPTED if interrupted else code


def _configure(folder: Path, sandbox: Sandbox) -> Settings:
    """Write the configuration an operator would, so that every command works on the result."""
    from harvester.config.load import load
    from harvester.config.secrets import write_secrets

    key_file = folder / "lune_api_key"
    write_secrets(key_file, [sandbox.key])
    config = folder / "config.toml"
    quoted = {
        "base_url": sandbox.base_url,
        "key_file": str(key_file),
        "database": f"sqlite:///{folder / 'harvester.db'}",
        "storage": (folder / "certificates").as_uri(),
    }
    # A JSON string is a TOML string.
    config.write_text(_CONFIG.format(**{name: json.dumps(v) for name, v in quoted.items()}))
    return load(config)


def _speed(sandbox: Sandbox) -> float:
    ends = [order.life.starts[-1] for one in sandbox.accounts for order in sandbox.orders(one.id)]
    return max(max(ends) - sandbox.clock.now(), 1.0) / _FOLLOWED_SECONDS


async def _follow(app: App, stop: Stop) -> bool:
    """Run the daemon until all is done; True when somebody interrupted it."""
    from harvester.ledger.statistics import read_statistics
    from harvester.runtime.service import serve

    daemon = asyncio.create_task(serve(app), name="daemon")
    deadline = time.monotonic() + _LONGEST_SECONDS
    with _view() as show:
        while not daemon.done() and time.monotonic() < deadline:
            async with app.database.read() as connection:
                state = await read_statistics(connection, app.context.clock())
            show(state)
            if _is_over(state):
                break
            await asyncio.wait({daemon}, timeout=0.2)
    interrupted = stop.requested
    if not interrupted:
        stop.request()
    await daemon
    return interrupted


def _is_over(state: Statistics) -> bool:
    from harvester.domain.lifecycle import is_open

    owed = {"owed", "failed"} & state.by_certificate.keys()
    return not owed and not any(is_open(status) for status in state.by_status)


@contextmanager
def _view() -> Iterator[Callable[[Statistics], None]]:
    """Show the state as a live picture on a terminal, as a line a second elsewhere."""
    if not sys.stdout.isatty():
        lines = _Lines()
        yield lines.show
        return
    from rich.live import Live

    with Live(refresh_per_second=8) as live:
        yield lambda state: live.update(_picture(state))


class _Lines:
    def __init__(self) -> None:
        self._last = 0.0

    def show(self, state: Statistics) -> None:
        if _is_over(state) or time.monotonic() - self._last >= 1:
            self._last = time.monotonic()
            counts = ", ".join(f"{count} {status}" for status, count in _in_order(state))
            stored = state.by_certificate.get("stored", 0)
            click.echo(f"{counts}; {stored} certificates stored")


def _in_order(state: Statistics) -> list[tuple[str, int]]:
    from harvester.domain.lifecycle import STATUSES

    known = [(status, state.by_status[status]) for status in STATUSES if status in state.by_status]
    return known + [one for one in state.by_status.items() if one[0] not in STATUSES]


def _picture(state: Statistics) -> Any:
    from rich.table import Table

    from harvester.domain.lifecycle import STATUSES

    table = Table(box=None, pad_edge=False, show_header=False)
    total = max(sum(state.by_status.values()), 1)
    stored = state.by_certificate.get("stored", 0)
    rows = [(status, state.by_status.get(status, 0)) for status in STATUSES]
    for name, count in [*rows, ("certificates stored", stored)]:
        bar = "█" * round(count / total * 40)
        colour = "green" if name in {"complete", "certificates stored"} else "cyan"
        table.add_row(name, str(count), f"[{colour}]{bar}[/]")
    return table


async def _conclude(app: App, folder: Path) -> int:
    """Print what happened; 0 when every complete order has its certificate, whole."""
    from harvester.domain.lifecycle import COMPLETE
    from harvester.harvest.verify import verify_archive
    from harvester.ledger.queries import find_orders, stream_orders

    rows = []
    unfinished = 0
    async for row in stream_orders(app.database):
        (detail,) = await find_orders(app.database, row.id, row.account_id)
        path = " > ".join(step.after for step in detail.transitions)
        stored = row.certificate
        unfinished += row.status == COMPLETE and stored is None
        size = "-" if stored is None else f"{stored.file.size} bytes"
        rows.append((row.id, row.quantity, path, size))
    click.echo()
    print_table(["order", "tonnes", "observed", "certificate"], rows)
    verified = await verify_archive(app.database, app.archive)
    click.echo()
    click.echo(
        f"{len(rows)} orders followed, {verified.checked} certificates stored and verified "
        f"({len(verified.discrepancies)} wrong), {app.requests} requests."
    )
    click.echo(f"The certificates are in {app.settings.storage.path}")
    look = shlex.join([sys.argv[0], "--config", str(folder / "config.toml"), "orders"])
    click.echo(f"Look around: {look}")
    return UNFINISHED if unfinished or verified.discrepancies else 0
