"""Answers that point elsewhere: nothing is asked there, and the key stays at home."""

from __future__ import annotations

from itertools import product

import pytest

from tests.faults.catalogue import fault
from tests.faults.proxy import response, saying
from tests.faults.scene import Scene
from tests.faults.tcp_relay import relaying

STATUSES = (301, 302, 303, 307, 308)


@fault("N19")
async def test_no_certificate_is_fetched_from_where_a_redirect_points(scene: Scene) -> None:
    async with relaying(scene.lune.base_url) as elsewhere:
        places = (
            f"{scene.proxy.base_url}/orders",
            f"{elsewhere.base_url()}/orders",
            f"//127.0.0.1:{elsewhere.port}/v1/orders",
            "file:///etc/passwd",
        )
        for status, place in product(STATUSES, places):
            scene.order()
            scene.proxy.script(saying(response(status, Location=place)), "certificate")
        report = await scene.drain()
        assert (elsewhere.connections, bytes(elsewhere.received)) == (0, b"")
    orders = len(STATUSES) * len(places)
    assert report.collected.failed == scene.proxy.count("certificate") == orders
    assert all("redirected, and not followed" in line for line in report.unfinished)
    assert scene.home.files() == set()
    assert "elsewhere" not in scene.log_text()
    assert "/etc/passwd" not in scene.log_text()

    assert (await scene.drain()).collected.stored == orders


@fault("N19")
@pytest.mark.parametrize("endpoint", ["account", "orders"])
async def test_no_list_is_read_from_where_a_redirect_points(scene: Scene, endpoint: str) -> None:
    scene.order("paid")
    async with relaying(scene.lune.base_url) as elsewhere:
        for status in STATUSES[: len(scene.lune.accounts)]:
            answer = saying(response(status, Location=f"{elsewhere.base_url()}/orders"))
            scene.proxy.script(answer, endpoint)
        report = await scene.drain()
        assert elsewhere.connections == 0
    assert report.swept.new == 0
    assert report.unfinished
    assert all("redirected" in line for line in report.unfinished)
