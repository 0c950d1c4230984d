"""Answers that are cut, stretched, or no answers at all."""

from __future__ import annotations

from tests.faults.catalogue import fault
from tests.faults.scene import Scene
from tests.faults.wire import response, saying


@fault("N7")
async def test_a_body_shorter_than_its_length_is_fetched_again(scene: Scene) -> None:
    order = scene.order()
    whole = scene.lune.certificate(order.id)
    assert whole is not None
    cut = response(200, whole, "application/pdf")[: -len(whole) // 2]
    scene.wire.script(saying(cut, close=True), "certificate")
    report = await scene.drain()
    assert report.collected.filed == 1
    assert scene.wire.count("certificate") == 2
    assert scene.home.files()
