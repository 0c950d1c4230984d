"""Everything that reads, over a ledger with one of each kind of record there is.

Each answer is compared with the one in ``everything/``, which somebody has read and found right.
After a change that is meant, this module run with ``HARVESTER_TEST_REWRITE=1`` writes them anew:
read the difference before it is committed.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from harvester.app import open_app
from harvester.config.load import load
from harvester.context import Stop
from harvester.liveness import Liveness
from harvester.web.api import Api
from harvester.web.app import make_web_app, metrics_routes, serving
from harvester.web.control import Control
from harvester.web.health import Health
from harvester.web.metrics import Metrics
from tests.acceptance.harness import Home
from tests.everything import NOW, RECEIVERS, Everything

EXPECTED = Path(__file__).with_name("everything")
ORDERS = [
    "o1-received",
    "o2-stuck",
    "o3-paid",
    "o4-retiring",
    "o6-owed",
    "o7-quarantined",
    "o8-changed-twice",
    "o9-lost",
    "o10-cancelled",
    "o11-failed",
    "o12-missing",
    "o13-backward",
    "o14-complete-then-paid",
    "o15-unknown",
    "o16-hostile",
    "p1",
]
COMMANDS = {
    "orders": ["orders"],
    "orders.json": ["orders", "--json"],
    **{
        f"orders-{name}": ["orders", *arguments]
        for name, arguments in {
            "paid": ["--status", "paid"],
            "client": ["--account", "client"],
            "owed": ["--certificate", "owed"],
            "none": ["--certificate", "none"],
            "february-half": ["--since", "2024-02-05", "--until", "2024-02-08"],
            "three": ["--limit", "3"],
        }.items()
    },
    "status": ["status"],
    "status.json": ["status", "--json"],
    "events": ["events", "list"],
    "events.json": ["events", "list", "--json"],
    "events-undelivered": ["events", "list", "--undelivered"],
    "export.csv": ["export"],
    "export.jsonl": ["export", "--format", "jsonl"],
    "verify": ["verify"],
    "verify.json": ["verify", "--json"],
    "db-current": ["db", "current"],
    **{f"show-{one}": ["show", one] for one in ORDERS},
    **{f"show-{one}.json": ["show", one, "--json"] for one in ORDERS},
    "show-twins": ["show", "o5-stored"],
    "show-twin": ["show", "o5-stored", "--account", "own"],
}
CODES = {"verify": 3, "verify.json": 3, "show-twins": 2}
ENDPOINTS = {
    "healthz.json": "/healthz",
    "readyz.json": "/readyz",
    "metrics": "/metrics",
    "v1-orders.json": "/v1/orders?limit=500",
    "v1-orders-failed.json": "/v1/orders?certificate=failed",
    **{f"v1-order-{one}.json": f"/v1/orders/{one}" for one in ORDERS},
    "v1-order-twins.json": "/v1/orders/o5-stored",
    "v1-certificate-none.json": "/v1/orders/o6-owed/certificate",
    "v1-certificate-changed.json": "/v1/orders/o14-complete-then-paid/certificate",
    "v1-certificate-no-version.json": "/v1/orders/o8-changed-twice/certificate?version=9",
    "v1-changes.json": "/v1/changes?limit=500",
}
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
# Of this process, this machine, this moment: nothing of the ledger.
_OF_THE_MOMENT = re.compile(
    r"^(harvester_(build_info|ledger_bytes|disk_free_bytes|ledger_write_seconds\S*|"
    r"event_loop\S*|\w+_created)|process_\w+|python_\w+).*\n",
    re.MULTILINE,
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A harvester's home over everything; its Lune is a port that nobody listens on."""
    folder = tmp_path_factory.mktemp("everything")
    home = Home(
        folder,
        lune__base_url="http://127.0.0.1:9/v1",
        lune__api_key="a-key-for-tests",
    )
    hooks = [
        f'[[events.hooks]]\nname = "{name}"\ntypes = {_toml(wanted.types)}\n'
        f'accounts = {_toml(wanted.accounts)}\ncommand = ["true"]\n'
        for name, wanted in RECEIVERS.items()
    ]
    home.config.write_text(home.config.read_text() + "".join(hooks))
    asyncio.run(Everything(home.ledger, home.archive).build())
    return home


def _toml(names: frozenset[str] | None) -> str:
    return json.dumps(sorted(map(str, names or ())))


def compare(name: str, text: str, home: Home) -> None:
    """Hold an answer against the one that was written down."""
    text = text.replace(str(home.folder), "HOME")
    text = _UUID.sub("UUID", text)
    file = EXPECTED / name
    if os.environ.get("HARVESTER_TEST_REWRITE"):
        file.write_text(text, "utf-8")
    assert text == file.read_text("utf-8")


@pytest.mark.parametrize("name", COMMANDS)
async def test_a_command_that_reads_says_what_is_there(built: Home, name: str) -> None:
    ran = await built.run(*COMMANDS[name])
    assert ran.code == CODES.get(name, 0), ran.err
    compare(f"{name}.txt", ran.out + (f"-- stderr\n{ran.err}" if ran.err else ""), built)


@asynccontextmanager
async def served(home: Home) -> AsyncIterator[aiohttp.ClientSession]:
    """Serve the web application, without a daemon: nothing is asked of Lune, nothing changes."""
    async with open_app(load(home.config), Stop(), "test", clock=lambda: NOW) as app:
        liveness = Liveness(app.context, lambda: app.requests)
        health = Health(app, liveness, app.database)
        metrics = Metrics(app, app.database, liveness, health)
        web_app = make_web_app(
            [*health.routes(), *metrics_routes(metrics)],
            v1=Api(app, app.database, _ignore).routes(),
            control=Control(app, _ignore).routes(),
            token=lambda: "token",
            limits=app.context.limits,
        )
        async with (
            serving(web_app, app.context.limits) as faces,
            faces.on_address("127.0.0.1", 0) as port,
            aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
        ):
            yield session
        await metrics.close()
        await health.close()


def _ignore(_: str) -> None:
    return


async def test_the_api_health_and_metrics_say_what_is_there(built: Home) -> None:
    wrong: list[str] = []
    async with served(built) as session:
        for name, path in ENDPOINTS.items():
            headers = {"Authorization": "Bearer token"}
            async with session.get(path, headers=headers) as answer:
                text = _OF_THE_MOMENT.sub("", await answer.text())
            whole = f"{answer.status} {answer.content_type}\n{_pretty(name, text)}"
            try:
                compare(f"{name}.txt", whole, built)
            except AssertionError as error:
                wrong.append(f"{name}: {error}")
    assert not wrong


def _pretty(name: str, text: str) -> str:
    if not name.endswith(".json"):
        return text
    document: Any = json.loads(text)
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def test_every_table_has_a_row(built: Home) -> None:
    """A kind of record that the ledger can hold and everything has none of is not shown here."""
    with closing(sqlite3.connect(built.ledger)) as ledger:
        tables = [
            name
            for (name,) in ledger.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            if not name.startswith("sqlite_")
        ]
        empty = [name for name in tables if not ledger.execute(f"SELECT 1 FROM {name}").fetchone()]
    assert empty == []
