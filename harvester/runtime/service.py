"""The daemon and its faces: the local socket, and the listener for whoever asks or tells."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

import structlog

from harvester import __version__
from harvester.app import Harvest, now
from harvester.archive.reading import CertificateReader
from harvester.domain.errors import ConfigurationError
from harvester.domain.lune_events import REMEMBERED
from harvester.ledger.database import Database
from harvester.ledger.pulse import take_pulse
from harvester.ledger.statistics import last_sweep
from harvester.runtime.daemon import Daemon
from harvester.runtime.systemd import NOBODY, Reports, Supervisor, standing
from harvester.web.address import check_token
from harvester.web.api import Api
from harvester.web.app import make_site
from harvester.web.control import control_app, event_routes, serve_control
from harvester.web.health import Health, Probe
from harvester.web.listener import serve_listener
from harvester.web.lune_webhook import Receiver
from harvester.web.metrics import Metrics

log = structlog.get_logger()


async def serve(harvest: Harvest, supervisor: Supervisor = NOBODY) -> None:
    """Run the service until asked to stop, taking orders over socket and listener meanwhile.

    ``supervisor`` is told when everything is open and how things stand from then on.
    """
    check_token(harvest.settings.http.address, harvest.settings.http_token)
    daemon = Daemon(
        lune=harvest.lune,
        book=harvest.book,
        sweep=harvest.sweep,
        collector=harvest.collector,
        placer=harvest.placer,
        announcer=harvest.announcer,
        cadence=harvest.cadence,
        housekeeping=functools.partial(keep_house, harvest),
        requests=harvest.requests,
        stop=harvest.stop,
        heeding=harvest.settings.webhook_secrets is not None,
    )
    async with AsyncExitStack() as served:
        health = _health(harvest, daemon)
        served.push_async_callback(health.close)
        control = control_app(
            harvest.tracker,
            harvest.placer,
            harvest.book,
            harvest.ledger,
            harvest.archive,
            now,
            daemon.wake,
            harvest.pacer.as_document,
            [*health.routes(), *event_routes(harvest.announcer, now)],
        )
        await served.enter_async_context(serve_control(control, harvest.settings.database.path))
        await served.enter_async_context(_listening(harvest, daemon, health))
        reports = Reports(
            supervisor,
            functools.partial(_standing, harvest, daemon),
            harvest.requests,
            harvest.stop,
        )
        served.push_async_callback(reports.close)
        log.info("started", version=__version__, ledger=str(harvest.settings.database.path))
        supervisor.ready("started")
        await daemon.run_forever(reports.look)
    log.info("stopped")


async def _standing(harvest: Harvest, daemon: Daemon) -> str:
    pulse = await take_pulse(harvest.database)
    age = await _sweep_age(harvest)
    return standing(pulse.followed, pulse.owed, age, *daemon.troubles)


async def keep_house(harvest: Harvest) -> None:
    """Tell of stuck orders, forget what nobody needs any more, fold the ledger's log in."""
    await harvest.ledger.forget_deliveries(now() - REMEMBERED)
    await harvest.stuck.run_once()
    await harvest.database.checkpoint()


def metrics_of(
    harvest: Harvest,
    daemon: Daemon | None = None,
    health: Health | None = None,
    reading: Database | None = None,
    webhooks: Receiver | None = None,
) -> Metrics:
    """Make what there is to scrape, for the service or for a drain."""
    return Metrics(
        database=harvest.database,
        reading=reading or harvest.database,
        sweep_seconds=harvest.sweep_seconds,
        pacer=harvest.pacer,
        requests=harvest.lune.outcomes,
        free_bytes=harvest.archive.free_bytes,
        ready=None if health is None else health.ready,
        lag=None if daemon is None else daemon.watch,
        sweep_interval=_rarest_sweep(harvest),
        clock=now,
        webhooks=None if webhooks is None else webhooks.outcomes,
        wanting=harvest.settings.events.filters,
    )


def _rarest_sweep(harvest: Harvest) -> timedelta:
    """Return how long a good sweep may lie back: where webhooks work, sweeps are rarer."""
    heard = harvest.settings.webhook_secrets is not None
    return harvest.cadence.slowest_sweep if heard else harvest.cadence.sweep_interval


async def _sweep_age(harvest: Harvest) -> timedelta | None:
    at = now()
    last = await last_sweep(harvest.database, at, 2 * _rarest_sweep(harvest))
    return None if last is None else at - last


def _health(harvest: Harvest, daemon: Daemon) -> Health:
    return Health(
        progress=daemon.watch,
        requests=harvest.requests,
        key_refused=lambda: harvest.lune.refused,
        sweep_age=functools.partial(_sweep_age, harvest),
        sweep_interval=_rarest_sweep(harvest),
        probes=[Probe("ledger", harvest.database.probe), Probe("archive", harvest.archive.probe)],
    )


def _webhooks(harvest: Harvest, daemon: Daemon) -> Receiver | None:
    """Make what takes Lune's webhooks; None without a secret. The secret is good, or raises."""
    secrets = harvest.settings.webhook_secrets
    if secrets is None:
        return None
    secrets.read_all()
    return Receiver(
        harvest.ledger, secrets.read_all, clock=now, heed=functools.partial(daemon.wake, "heed")
    )


@asynccontextmanager
async def _listening(harvest: Harvest, daemon: Daemon, health: Health) -> AsyncIterator[None]:
    """Serve health, metrics and API while inside, if anywhere."""
    address = harvest.settings.http.address
    if address is None:
        yield
        return
    async with AsyncExitStack() as served:
        reader = CertificateReader(harvest.settings.storage.path)
        served.push_async_callback(reader.close)
        # Connections of its own: who asks much must not keep the harvest from reading.
        reading = Database(harvest.settings.database.path, readonly=True)
        served.push_async_callback(reading.close)
        webhooks = _webhooks(harvest, daemon)
        metrics = metrics_of(harvest, daemon, health, reading, webhooks)
        served.push_async_callback(metrics.close)
        await metrics.begin()
        api = Api(
            reading,
            harvest.ledger,
            harvest.tracker,
            reader,
            path_of=harvest.archive.path,
            clock=now,
            wake=daemon.wake,
        )
        token = harvest.settings.http_token
        site = make_site(
            health,
            metrics,
            api.app(None if token is None else token.read),
            () if webhooks is None else webhooks.routes(),
        )
        try:
            port = await served.enter_async_context(serve_listener(site, *address))
        except OSError as error:
            reason = f"cannot listen on {address}: {error.strerror}"
            if "listen" in harvest.settings.http.model_fields_set:
                raise ConfigurationError(f"http.listen: {reason}") from error
            # Nobody chose this address, so its being taken must not stop the harvest.
            log.warning("not listening", reason=reason)
        else:
            log.info("listening", address=str(address._replace(port=port)))
        yield
