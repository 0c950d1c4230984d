"""The daemon and its faces: the local socket, and the listener for whoever asks or reports."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import structlog
from aiohttp import web

from harvester import __version__
from harvester.app import App
from harvester.config.settings import Settings
from harvester.domain.errors import ConfigurationError
from harvester.ledger.database import Database
from harvester.ledger.statistics import read_statistics
from harvester.runtime.daemon import Daemon
from harvester.runtime.systemd import NOBODY, Reports, Supervisor, standing
from harvester.web.api import Api
from harvester.web.app import Serving, make_web_app, metrics_routes, serving
from harvester.web.control import Control
from harvester.web.health import Health, last_good_sweep
from harvester.web.lune_webhook import LuneWebhooks
from harvester.web.metrics import Metrics

log = structlog.get_logger()


async def serve(app: App, supervisor: Supervisor = NOBODY) -> None:
    """Run the service until asked to stop, taking requests over socket and listener meanwhile.

    ``supervisor`` is notified when everything is open and how things stand from then on.
    """
    check_token(app.settings)
    daemon = Daemon(app)
    async with AsyncExitStack() as opened:
        # Connections of its own: who asks much must not keep the harvest from reading.
        reading = Database(app.settings.database.path, readonly=True)
        opened.push_async_callback(reading.close)
        web_app = await _make_web_app(app, daemon, reading, opened)
        faces = await opened.enter_async_context(serving(web_app, app.context.limits))
        await opened.enter_async_context(faces.on_socket(app.settings.database.path))
        await opened.enter_async_context(_listening(app, faces))

        async def how_it_stands() -> str:
            return await describe_standing(app, daemon)

        reports = Reports(supervisor, how_it_stands, lambda: app.requests, app.context.stop)
        opened.push_async_callback(reports.close)
        log.info("started", version=__version__, ledger=str(app.settings.database.path))
        supervisor.ready("started")
        await daemon.run_forever(reports.look)
    log.info("stopped")


def check_token(settings: Settings) -> None:
    """Raise ``ConfigurationError`` for a token that cannot be read, or is missing where needed."""
    address, token = settings.http.address, settings.http_token
    if address is None:
        return
    if token is not None:
        token.read()
    elif not address.is_loopback:
        raise ConfigurationError(
            f"http.listen {address} is reached from other machines, so a token is needed: put one "
            "into a file and name it as http.token_file, or listen on 127.0.0.1"
        )


async def describe_standing(app: App, daemon: Daemon) -> str:
    """Say in a line how things stand, and show by an empty transaction that the ledger answers.

    Raises ``LedgerUnavailable`` and its like.
    """
    async with app.database.transaction():
        pass
    async with app.database.read() as connection:
        statistics = await read_statistics(connection, app.context.clock())
    last = last_good_sweep(app, statistics)
    age = None if last is None else app.context.clock() - last
    return standing(statistics.followed, statistics.owed, age, *daemon.troubles)


async def _make_web_app(
    app: App, daemon: Daemon, reading: Database, opened: AsyncExitStack
) -> web.Application:
    health = Health(app, daemon.liveness, reading)
    opened.push_async_callback(health.close)
    webhooks = _webhooks(app, daemon)
    if webhooks is not None:
        opened.push_async_callback(webhooks.close)
    metrics = Metrics(app, reading, daemon.liveness, health, webhooks)
    opened.push_async_callback(metrics.close)
    await metrics.begin()
    token = app.settings.http_token
    return make_web_app(
        [
            *health.routes(),
            *metrics_routes(metrics),
            *(() if webhooks is None else webhooks.routes()),
        ],
        v1=Api(app, reading, daemon.wake).routes(),
        control=Control(app, daemon.wake).routes(),
        token=None if token is None else token.read,
        limits=app.context.limits,
    )


def _webhooks(app: App, daemon: Daemon) -> LuneWebhooks | None:
    """Make what takes Lune's webhooks; None without a secret. The secret is good, or raises."""
    secrets = app.settings.webhook_secrets
    if secrets is None:
        return None
    secrets.read_all()
    return LuneWebhooks(app.database, secrets.read_all, app.context, daemon.wake)


@asynccontextmanager
async def _listening(app: App, faces: Serving) -> AsyncIterator[None]:
    """Serve on the configured address while inside, if any."""
    http = app.settings.http
    address = http.address
    if address is None:
        yield
        return
    async with AsyncExitStack() as opened:
        try:
            port = await opened.enter_async_context(faces.on_address(*address))
        except OSError as error:
            reason = f"cannot listen on {address}: {error.strerror}"
            if "listen" in http.model_fields_set:
                raise ConfigurationError(f"http.listen: {reason}") from error
            # Nobody chose this address, so its being taken must not stop the harvest.
            log.warning("not listening", reason=reason)
        else:
            log.info("listening", address=str(address._replace(port=port)))
        yield
