"""Orders that do not move: a drain tells of them at its end, once, as the daemon does."""

from __future__ import annotations

import json
from pathlib import Path

from harvester.app import App, open_app, open_dry_app
from harvester.config.settings import Settings
from harvester.context import Stop
from harvester.ledger.events import read_events
from harvester.runtime.drain import Drain
from harvester.sandbox import Sandbox
from tests.integration.conftest import settings_for


def settings(sandbox: Sandbox, folder: Path, told: Path) -> Settings:
    """Make a bound that every order is beyond, and a hook that writes down what it is told."""
    configured = settings_for(sandbox, folder, stuck_paid="1ms")
    hook = {"name": "desk", "types": ["order.stuck"], "command": ["tee", "-a", str(told)]}
    events = {"events": {"hooks": [hook]}}
    return Settings.model_validate(configured.model_dump() | events)


async def stuck(harvest: App) -> list[str | None]:
    found = await read_events(harvest.database, 0, 100)
    return [event.order_id for event in found.events if event.type == "order.stuck"]


async def test_a_drain_tells_once_of_an_order_that_does_not_move(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    order, told = sandbox.create_order("paid", hold=True), tmp_path / "told"
    for _ in range(2):
        async with open_app(settings(sandbox, tmp_path, told), Stop(), "test") as harvest:
            await Drain(harvest).run()
            assert await stuck(harvest) == [order.id]
            document = json.loads(told.read_text())  # one document: once, and in the same drain
            assert document["subject"] == order.id


async def test_a_dry_run_tells_of_nothing(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.create_order("paid", hold=True)
    configured = settings(sandbox, tmp_path, tmp_path / "told")
    async with open_dry_app(configured, Stop()) as harvest:
        await harvest.drain(dry_run=True).run()
        assert await stuck(harvest) == []


async def test_an_order_only_seems_to_stay_while_lune_cannot_be_asked(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    order, told = sandbox.create_order("retiring", hold=True), tmp_path / "told"
    configured = settings(sandbox, tmp_path, told)
    async with open_app(configured, Stop(), "test") as harvest:
        await Drain(harvest).run()
        sandbox.move_order(order.id, "complete")
        assert await stuck(harvest) == []
    raised = configured.model_dump()
    raised["harvest"] |= {"stuck_paid": None, "stuck_retiring": "1ms"}
    async with open_app(Settings.model_validate(raised), Stop(), "test") as harvest:
        await sandbox.stop()
        report = await Drain(harvest).run()
        assert report.unreachable is not None
        assert await stuck(harvest) == []
