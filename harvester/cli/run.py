"""``run``: the daemon, and the one-shot ``run --drain``."""

from __future__ import annotations

import asyncio
import importlib
import json
import math
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harvester.cli.exits import DONE, FAULT, INTERRUPTED, UNFINISHED, exit_code_of
from harvester.cli.invocation import Invocation, command
from harvester.cli.output import (
    AccountId,
    Duration,
    Instant,
    as_json,
    counted,
    notice,
    print_json,
    printable,
    whole_file,
)
from harvester.cli.process import forbid_dumps

if TYPE_CHECKING:
    from harvester.app import App
    from harvester.config.settings import Settings
    from harvester.context import Stop
    from harvester.domain.orders import OrderFilter
    from harvester.logs import Backlog
    from harvester.runtime.drain import DrainReport
    from harvester.runtime.systemd import Supervisor

_MOST_LINES = 20
_LATE = ("pypdf.filters",)
"""What a library would import when first needed; an upgrade may have replaced it by then."""
_LAST_LINES = 1.0
"""Seconds that lines still waiting to be written have at the end."""


@dataclass(frozen=True, slots=True)
class _DrainOptions:
    since: datetime | None
    until: datetime | None
    accounts: tuple[str, ...]
    dry_run: bool
    wait: timedelta | None
    report: Path | None
    metrics: Path | None
    json_output: bool

    def given(self) -> list[str]:
        """Name the options that only a drain has and that were given."""
        return [name for name in self.__dataclass_fields__ if getattr(self, name)]


@command("run", "The daemon; with --drain, once over.")
@click.option("--drain", is_flag=True, help="One shot: record and store all there is now, exit.")
@click.option("--since", type=Instant(), help="Drain orders created at or after this date.")
@click.option("--until", type=Instant(end=True), help="Drain orders up to and with this date.")
@click.option(
    "--account",
    "accounts",
    type=AccountId(),
    metavar="ID",
    multiple=True,
    help="Drain this account.",
)
@click.option("--dry-run", is_flag=True, help="Ask Lune, write nothing, tell what would be done.")
@click.option("--wait", type=Duration(), help="Go on this long for what falls due meanwhile.")
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a JSON report of the drain.",
)
@click.option(
    "--metrics",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write Prometheus metrics of the drain, as node_exporter reads them.",
)
@as_json
def run(invocation: Invocation, drain: bool, **options: object) -> None:
    """Follow orders and store certificates until SIGTERM or SIGINT; or once over with --drain."""
    chosen = _DrainOptions(**options)  # type: ignore[arg-type]  # click made them of these types
    if not drain:
        if chosen.given():
            names = ", ".join("--" + name.replace("_", "-") for name in chosen.given())
            raise click.UsageError(f"{names.replace('--json-output', '--json')}: only with --drain")
        forbid_dumps()
        _run_daemon(invocation)
        return
    for name, file in (("--report", chosen.report), ("--metrics", chosen.metrics)):
        if file is not None and not os.access(file.absolute().parent, os.W_OK):
            raise click.UsageError(f"{name} {file}: no file can be written there")
    if chosen.metrics is not None and chosen.metrics.exists() and not chosen.metrics.is_file():
        raise click.UsageError(f"--metrics {chosen.metrics}: would replace what is no file")
    # On a terminal the progress line takes the place of a line per order.
    quiet = sys.stderr.isatty() and invocation.settings.log.level == "info"
    invocation.configure_logs("warning" if quiet else None)
    forbid_dumps()
    code = asyncio.run(_drain(invocation, chosen))
    if code != DONE:
        sys.exit(code)


def listen_for_signals(stop: Stop) -> None:
    """Turn SIGTERM and SIGINT into a request to stop; the second one urges."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.request)


def _run_daemon(invocation: Invocation) -> None:
    import faulthandler

    from harvester import logs
    from harvester.runtime.systemd import Supervisor

    supervisor = Supervisor.of(os.environ)
    faulthandler.enable()  # where it stood, when the service manager aborts it
    backlog = logs.Backlog()

    def configure(settings: Settings) -> None:
        logs.configure(settings.log.level, settings.log.format, handler=backlog)

    configure(invocation.settings)
    try:
        asyncio.run(_daemon(invocation, configure, backlog, supervisor))
    finally:
        backlog.drain(_LAST_LINES)


async def _daemon(
    invocation: Invocation,
    configure: Callable[[Settings], None],
    backlog: Backlog,
    supervisor: Supervisor,
) -> None:
    from harvester.context import Stop

    stop = Stop()
    listen_for_signals(stop)  # before all that takes long to import
    from harvester.app import open_app
    from harvester.runtime.reload import Reload
    from harvester.runtime.service import serve
    from harvester.runtime.watchdog import Watchdog

    for name in _LATE:
        importlib.import_module(name)
    reload = Reload(invocation.config_path, invocation.settings, configure, supervisor)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload.request)
    watchdog = Watchdog(stop, FAULT, last_words=lambda: backlog.drain(_LAST_LINES))
    watchdog.start()
    beating = asyncio.create_task(watchdog.keep_beating(), name="watchdog-beat")
    try:
        async with open_app(invocation.settings, stop, "run") as app:
            reload.begin(app)
            await serve(app, supervisor)
        watchdog.leave(DONE)
    except BaseException as error:
        watchdog.leave(exit_code_of(error))
        raise
    finally:
        beating.cancel()


async def _drain(invocation: Invocation, options: _DrainOptions) -> int:
    from harvester.app import open_app, open_dry_app
    from harvester.cli.progress import DrainProgress
    from harvester.context import Stop
    from harvester.runtime.drain import Drain
    from harvester.runtime.watchdog import Watchdog

    stop = Stop()
    listen_for_signals(stop)
    # A drain may print to a reader that is in no hurry: only its stop has an end to it.
    watchdog = Watchdog(stop, INTERRUPTED, stalled=math.inf)
    watchdog.start()
    opened = (
        open_dry_app(invocation.settings, stop, options.accounts)
        if options.dry_run
        else open_app(invocation.settings, stop, "run --drain", options.accounts)
    )
    with DrainProgress() as progress:
        async with opened as app:
            drain = Drain(app, dry_run=options.dry_run, progress=progress)
            work = drain.run(_scope(options), options.wait)
            async with _measured(app, options.metrics):
                report = await _until_urged(work, stop)
    if report is None:
        notice("interrupted; run it again to go on where it was")
        watchdog.leave(INTERRUPTED)
        return INTERRUPTED
    unfinished = bool(report.unfinished) and not options.dry_run
    code = INTERRUPTED if report.interrupted else UNFINISHED if unfinished else DONE
    _tell(report, options, code)
    watchdog.leave(code)
    return code


@asynccontextmanager
async def _measured(app: App, file: Path | None) -> AsyncIterator[None]:
    """Write metrics of what happens inside to a file, if one was asked for."""
    if file is None:
        yield
        return
    from harvester.web.metrics import Metrics

    metrics = Metrics(app, app.database)
    await metrics.begin()
    yield
    try:
        await metrics.write(file)
    except OSError as error:
        raise click.ClickException(f"--metrics {file}: {error.strerror}") from error


async def _until_urged(work: Coroutine[Any, Any, DrainReport], stop: Stop) -> DrainReport | None:
    """Await a drain; None when it was abandoned, which loses nothing that was recorded."""
    task = asyncio.create_task(work, name="drain")
    asked = asyncio.create_task(_until_abandoned(stop), name="grace")
    await asyncio.wait({task, asked}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if not task.done():
        task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        return None


async def _until_abandoned(stop: Stop) -> None:
    from harvester.context import Limits

    await stop.wait()
    notice("stopping when what is in flight has ended; interrupt again to abandon it")
    try:
        async with asyncio.timeout(Limits().stop_grace):
            await stop.wait_urged()
    except TimeoutError:
        return


def _scope(options: _DrainOptions) -> OrderFilter:
    from harvester.domain.orders import OrderFilter

    return OrderFilter(accounts=None, since=options.since, until=options.until)


def _tell(report: DrainReport, options: _DrainOptions, code: int) -> None:
    from harvester import serializers

    shape = serializers.drain_report(report, code) | {"dry_run": options.dry_run}
    if options.report is not None:
        with whole_file(options.report) as stream:
            stream.write(json.dumps(shape, indent=1) + "\n")
    if options.json_output:
        print_json(shape)
    else:
        for line in _summary(report, dry_run=options.dry_run):
            click.echo(line)
    lines = report.unfinished
    for line in lines[:_MOST_LINES]:
        notice(printable(line))
    if len(lines) > _MOST_LINES:
        notice(f"and {len(lines) - _MOST_LINES} more; --report FILE has them all")


def _summary(report: DrainReport, *, dry_run: bool) -> list[str]:
    from harvester.domain.explain import waits_for

    seconds = ((report.finished_at or report.started_at) - report.started_at).total_seconds()
    swept, collected = report.swept, report.collected
    seen = f"{counted(swept.seen, 'order')} seen in {counted(report.accounts, 'account')}"
    lines = [f"{seen}: {swept.new} new, {swept.changed} changed"]
    if dry_run:
        lines.append(
            f"{counted(report.to_store, 'certificate')} would be asked for; nothing was written"
        )
    else:
        lines.append(
            f"{counted(collected.stored, 'certificate')} stored ({collected.bytes} bytes), "
            f"{collected.recovered} recovered, {len(report.missing)} missing"
        )
    lines.append(f"{counted(report.requests, 'request')} in {seconds:.1f} s")
    for status, count in sorted(report.open_by_status().items()):
        lines.append(
            f"{counted(count, 'open order')} {printable(status)}, waiting for "
            f"{waits_for(status, None, None)}"
        )
    return lines
