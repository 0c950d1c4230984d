"""Orders that do not move: a drain reports them at its end, once, as the daemon does."""

from __future__ import annotations

import json
from pathlib import Path

from harvester.app import App, open_app, open_dry_app
from harvester.config.settings import Settings
from harvester.context import Stop
from harvester.ledger.events import read_events
from harvester.lune import ClientOptions
from harvester.runtime.drain import Drain
from harvester.sandbox import Sandbox
from tests.integration.conftest import settings_for
from tests.integration.raw_server import Naps


def settings(sandbox: Sandbox, folder: Path, given: Path) -> Settings:
    """Make a bound that every order is beyond, and a hook that writes down what it is given."""
    configured = settings_for(sandbox, folder, stuck_paid="1ms")
    hook = {"name": "desk", "types": ["order.stuck"], "command": ["tee", "-a", str(given)]}
    events = {"events": {"hooks": [hook]}}
    return Settings.model_validate(configured.model_dump() | events)


async def stuck(app: App) -> list[str | None]:
    found = await read_events(app.database, 0, 100)
    return [event.order_id for event in found.events if event.type == "order.stuck"]


async def test_a_drain_reports_once_an_order_that_does_not_move(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    order, given = sandbox.create_order("paid", hold=True), tmp_path / "given"
    for _ in range(2):
        async with open_app(settings(sandbox, tmp_path, given), Stop(), "test") as app:
            await Drain(app).run()
            assert await stuck(app) == [order.id]
            document = json.loads(given.read_text())  # one document: once, and in the same drain
            assert document["subject"] == order.id


async def test_a_dry_run_reports_nothing(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.create_order("paid", hold=True)
    configured = settings(sandbox, tmp_path, tmp_path / "given")
    async with open_dry_app(configured, Stop()) as app:
        await Drain(app, dry_run=True).run()
        assert await stuck(app) == []


async def test_an_order_only_seems_to_stay_while_lune_cannot_be_asked(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    order, given = sandbox.create_order("retiring", hold=True), tmp_path / "given"
    configured = settings(sandbox, tmp_path, given)
    async with open_app(configured, Stop(), "test") as app:
        await Drain(app).run()
        sandbox.move_order(order.id, "complete")
        assert await stuck(app) == []
    raised = configured.model_dump()
    raised["harvest"] |= {"stuck_paid": None, "stuck_retiring": "1ms"}
    options = ClientOptions(sleep=Naps())
    settings_now = Settings.model_validate(raised)
    async with open_app(settings_now, Stop(), "test", options=options) as app:
        await sandbox.stop()
        report = await Drain(app).run()
        assert report.unreachable is not None
        assert await stuck(app) == []
