"""Lune is away for a while, and comes back to a harvest in which everything is due."""

from __future__ import annotations

from collections import deque
from datetime import timedelta

from harvester.context import Limits, utc_now
from harvester.domain.orders import CertificateState
from harvester.ledger.certificates import due_certificates, record_certificate_failure
from harvester.ledger.schedule import postpone_checks
from harvester.runtime.drain import Drain
from harvester.sandbox.world import Order
from tests.acceptance.harness import until
from tests.faults.catalogue import fault
from tests.faults.proxy import reset
from tests.faults.scene import Scene

RATE = 30
AT_ONCE = Limits().certificates_at_once


def most_within(instants: list[float], seconds: float) -> int:
    """Return how many of these instants lie within any span of time that long."""
    window: deque[float] = deque()
    most = 0
    for at in sorted(instants):
        window.append(at)
        while window[0] <= at - seconds:
            window.popleft()
        most = max(most, len(window))
    return most


async def learn_and_make_due(scene: Scene, orders: list[Order]) -> None:
    """Drain, then have all of these orders due at once, as after a long outage."""
    async with scene.open() as app:
        assert (await Drain(app).run()).swept.new == len(orders)
        (account,) = {order.account_id for order in orders}
        await postpone_checks(app.database, account, [order.id for order in orders], utc_now())


@fault("N20", "N21")
async def test_an_outage_is_probed_gently_and_recovered_from_within_the_limit(scene: Scene) -> None:
    scene.home.configure(lune__rate_limit=RATE, harvest__sweep_interval="1s", log__level="debug")
    orders = [scene.order("paid") for _ in range(2000)]
    await learn_and_make_due(scene, orders)
    known = len(scene.proxy.requests)
    finished = orders[::100]
    for order in finished:
        scene.lune.move_order(order.id, "complete")

    scene.proxy.script(reset, times=float("inf"))
    async with scene.home.daemon() as daemon:
        await until(lambda: daemon.events("step failed"))
        assert not daemon.ended
        probes = [seen.at for seen in scene.proxy.requests[known:]]
        assert most_within(probes, 1.0) <= 2  # one request at a time, further and further apart
        away = len(scene.proxy.requests)
        scene.proxy.clear()
        await until(lambda: len(scene.home.files()) == len(finished))
        ran = await daemon.end()
    scene.keep(ran.err)
    assert ran.code == 0, ran.err
    recovery = [seen.at for seen in scene.proxy.requests[away:]]
    assert len(recovery) >= 2000 / 100 + len(finished)
    assert most_within(recovery, 1.0) <= RATE


@fault("N21")
async def test_after_an_outage_requests_are_spread_and_the_oldest_due_go_first(
    scene: Scene,
) -> None:
    scene.home.configure(lune__rate_limit=RATE)
    orders = [scene.order() for _ in range(3 * AT_ONCE)]
    async with scene.open() as app:
        await Drain(app, dry_run=True).run()
        at = utc_now()
        known = {
            one.order_id: one
            for one in await due_certificates(
                app.database, at, app.context.schedule.horizon(at), len(orders)
            )
        }
        turns = sorted(known, key=lambda name: name[::-1])
        for minutes, name in enumerate(reversed(turns), 1):
            await record_certificate_failure(
                app.database,
                known[name],
                at,
                state=CertificateState.OWED,
                reason="Lune was away",
                next_attempt_at=at - timedelta(minutes=minutes),
                counts=False,
            )
        report = await app.collector.run_once()
    assert report.stored == len(orders)
    certificates = [one for one in scene.proxy.requests if one.endpoint == "certificate"]
    at_most = RATE * 0.75  # half of them in half a second, and some for a server that was busy
    assert most_within([one.at for one in certificates], 0.5) <= at_most
    asked = [one.target.split("/")[3] for one in certificates]
    # Those in flight together overtake each other; any other order would be far more off.
    off = sum(abs(number - turns.index(name)) for number, name in enumerate(asked))
    assert off / len(orders) < AT_ONCE / 2
