"""Whether the key may be used: the gate that every request passes."""

from __future__ import annotations

import asyncio

import pytest

from harvester.domain.errors import KeyRefused
from harvester.lune.session import KeyGate, Request

REQUEST = Request("/orders")
REFUSAL = KeyRefused("no", method="GET", path="/accounts/me", status=401, code="unauthorised")


async def test_an_open_gate_lets_everybody_pass() -> None:
    async with KeyGate().waiting(REQUEST):
        pass


async def test_a_closed_gate_turns_away_those_who_come() -> None:
    gate = KeyGate()
    gate.close(REFUSAL)
    with pytest.raises(KeyRefused) as caught:
        async with gate.waiting(REQUEST):
            pytest.fail("let in")
    assert (caught.value.path, caught.value.status) == ("/orders", None)
    assert caught.value.code == "unauthorised"
    gate.open()
    async with gate.waiting(REQUEST):
        pass


async def test_who_got_a_turn_as_the_gate_closed_is_turned_away_too() -> None:
    gate = KeyGate()
    with pytest.raises(KeyRefused):
        async with gate.waiting(REQUEST):
            gate.close(REFUSAL)  # nothing awaits after it, so no timer can have fired


async def test_a_cancelled_waiter_is_cancelled_and_not_refused() -> None:
    gate = KeyGate()

    async def wait() -> None:
        async with gate.waiting(REQUEST):
            await asyncio.Event().wait()

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gate.close(REFUSAL)
