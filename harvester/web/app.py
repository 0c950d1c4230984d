"""What is served where: health, metrics and, for those with the token, the API."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web
from prometheus_client.aiohttp import make_aiohttp_handler

from harvester.web.health import Health
from harvester.web.listener import listener_app
from harvester.web.metrics import Metrics
from harvester.web.problems import faults_as_problems


def make_site(
    health: Health,
    metrics: Metrics,
    api: web.Application,
    webhooks: Iterable[web.RouteDef] = (),
) -> web.Application:
    """Make the listener's application; ``api`` is served below /v1, ``webhooks`` if there are."""
    app = listener_app(faults_as_problems)
    app.add_routes(health.routes())
    app.add_routes(webhooks)
    app.add_routes(_metrics_routes(metrics))
    app.add_subapp("/v1", api)
    return app


def _metrics_routes(metrics: Metrics) -> list[web.RouteDef]:
    expose = make_aiohttp_handler(metrics.registry)

    async def scrape(request: web.Request) -> web.StreamResponse:
        await metrics.refresh()
        return await expose(request)

    return [web.get("/metrics", scrape)]
