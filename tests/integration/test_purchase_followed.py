"""Orders that were placed, in a whole harvest: settled and followed beside everything else."""

from __future__ import annotations

import asyncio

import pytest

from harvester.context import utc_now
from harvester.domain.purchases import Purchase, by_estimate, by_mass, by_value
from harvester.ledger.purchases import record_purchase
from harvester.ledger.queries import find_orders
from harvester.runtime.drain import Drain
from harvester.runtime.service import serve
from harvester.sandbox import Sandbox
from tests.integration.conftest import OpenApp

MASS = by_mass("259.11", "kg")


async def test_a_suspended_account_with_an_open_order_does_not_stop_the_draining_of_others(
    sandbox: Sandbox, opened: OpenApp
) -> None:
    own, client = sandbox.accounts
    order = sandbox.create_order("complete", hold=True, account_id=own.id)
    async with opened() as app:
        await app.accounts.accounts()
        await record_purchase(app.database, client.id, "K", MASS, utc_now())
        sandbox.faults.add(f"suspended-account={client.id}")
        report = await Drain(app).run()
        assert report.unreachable is None
        (found,) = await find_orders(app.database, order.id)
        assert found.order.certificate_state == "stored"
        assert list(report.swept.parked) == [client.id]


async def test_a_suspended_account_with_an_open_order_does_not_stop_the_daemons_sweeps(
    sandbox: Sandbox, opened: OpenApp
) -> None:
    own, client = sandbox.accounts
    order = sandbox.create_order("placed", hold=True, account_id=own.id)
    async with opened(sweep_interval="200ms", longest_interval="1s") as app:
        await app.accounts.accounts()
        await record_purchase(app.database, client.id, "K", MASS, utc_now())
        sandbox.faults.add(f"suspended-account={client.id}")
        daemon = asyncio.create_task(serve(app))
        try:
            async with asyncio.timeout(10):
                while not await find_orders(app.database, order.id):  # noqa: ASYNC110 - nothing tells of rows
                    await asyncio.sleep(0.05)
        finally:
            app.context.stop.request()
            await asyncio.wait_for(daemon, 10)


@pytest.mark.parametrize(
    "purchase",
    [
        by_mass("259.11", "kg"),
        by_value("0.54"),
        by_value("100"),
        by_estimate("90ng23MKvLqbkpMwMw7yMBD4wJQrV6O6"),
    ],
    ids=lambda purchase: str(dict(purchase.request)),
)
async def test_the_samples_of_lunes_guides_are_taken_by_the_sandbox_and_followed(
    sandbox: Sandbox, opened: OpenApp, purchase: Purchase
) -> None:
    async with opened() as app:
        placed = await app.purchaser.place(await app.accounts.account(None), purchase, "INV-1")
        (order,) = sandbox.orders()
        assert (placed.order_id, order.idempotency_key) == (order.id, "INV-1")
        sandbox.move_order(order.id, "complete")
        report = await Drain(app).run()
        assert report.unfinished == []
        (found,) = await find_orders(app.database, "INV-1")
        assert found.order.certificate_state == "stored"
        assert found.transitions[0].source == "track"
