"""What names people, and what would redraw a terminal, stays where it belongs."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tests.faults.catalogue import fault
from tests.faults.instant_harvest import detail
from tests.faults.proxy import Exchange, changed, response, saying
from tests.faults.scene import PRIVATE, Scene

EMAIL = "canary.person@customer.example"
ESCAPE = "\x1b]0;owned\x07\x1b[2J\r\nevent: forged\u202e\x9b31m\u2028"


@fault("P13")
async def test_an_email_address_is_nowhere_and_metadata_are_in_the_ledger_alone(
    scene: Scene,
) -> None:
    # The invariants look for both in the log, and for the address in every file.
    scene.secrets.append(EMAIL)
    orders = [scene.order(status) for status in ("placed", "retiring", "complete", "complete")]
    for order in orders:
        order.email = EMAIL
    scene.proxy.script(saying(response(500)), "orders")

    def spoil(body: bytes) -> bytes:
        page = json.loads(body)
        for row in page["data"][:1]:
            row["quantity"] = EMAIL
        return json.dumps(page).encode()

    scene.proxy.script(changed(spoil), "orders", times=math.inf)
    scene.proxy.script(saying(response(404, PRIVATE.encode(), "text/html")), "certificate")
    assert (await scene.drain()).unfinished
    scene.proxy.clear()
    assert (await scene.drain()).unfinished == []
    for order in orders:
        found = await detail(scene, order.id)
        assert found.order.metadata == {"note": PRIVATE}
        assert EMAIL not in json.dumps(dict(found.document))
    names = [str(path) for path in scene.home.folder.rglob("*")]
    assert not [name for name in names if PRIVATE in name or EMAIL in name]


def _everywhere(row: dict[str, Any]) -> None:
    for name, value in row.items():
        if isinstance(value, str) and name not in {"id", "type", "created_at", "status"}:
            try:
                float(value)
            except ValueError:
                row[name] = value + ESCAPE
    row["metadata"] = {f"note{ESCAPE}": ESCAPE}
    row["idempotency_key"] = f"INV{ESCAPE}"


@fault("P14")
async def test_control_characters_reach_no_log_and_no_terminal(scene: Scene) -> None:
    # The invariants hold each line of the log to this.
    order = scene.order("placed")
    strange = scene.order("placed")

    async def escaping(exchange: Exchange) -> None:
        head, _, body = (await exchange.upstream()).partition(b"\r\n\r\n")
        document = json.loads(body)
        rows = document.get("data", [document])
        for row in rows:
            if "name" in row:
                row["name"] += ESCAPE
            if row["id"] == strange.id:
                row["status"] = ESCAPE
            if row["id"] == order.id:
                _everywhere(row)
        body = json.dumps(document).encode()
        status = int(head.split(b" ")[1])
        await exchange.say(response(status, body, CF_RAY="8a\x1b[31m"))

    scene.proxy.script(escaping, times=math.inf)
    [line] = (await scene.drain()).unfinished
    assert "status: not printable text" in line
    assert (await detail(scene, order.id)).order.metadata == {f"note{ESCAPE}": ESCAPE}
    for command in (("status",), ("show", order.id)):
        ran = await scene.command(*command)
        assert ran.code == 0
        assert "\\x1b" in ran.out
        assert not [char for char in ran.out if not char.isprintable() and char not in "\n\t"]
    ran = await scene.command("orders", "--json")
    assert [json.loads(line)["id"] for line in ran.out.strip().split("\n")] == [order.id]
    assert not [char for char in ran.out if char < " " and char != "\n"]
    scene.proxy.clear()
    await scene.drain()


@fault("P14")
@pytest.mark.parametrize("media", ["application/json", "text/plain"])
async def test_what_an_error_says_stays_on_its_line(scene: Scene, media: str) -> None:
    scene.order("placed")
    error = {"error_code": f"no{ESCAPE}", "message": f"no{ESCAPE}{{}}%s" * 100}
    body = json.dumps({"error": error}) if media == "application/json" else error["message"]
    scene.proxy.script(saying(response(400, body.encode(), media)), "orders", times=2)
    lines = (await scene.drain()).unfinished
    assert lines
    assert all(line.isprintable() and len(line) < 500 for line in lines)
    assert (await scene.drain()).unfinished == []
