"""Whether the key may be used, and where it may go."""

from __future__ import annotations

import asyncio

import pytest
from yarl import URL

from harvester.domain.errors import KeyRefused
from harvester.lune.origin import Origin
from harvester.lune.session import KeyGate

REFUSAL = KeyRefused("no", method="GET", path="/v1/accounts/me", status=401, code="unauthorised")


async def test_an_open_gate_lets_everybody_pass() -> None:
    async with KeyGate().waiting("GET", "/v1/orders"):
        pass


async def test_a_closed_gate_turns_away_those_who_come() -> None:
    gate = KeyGate()
    gate.close(REFUSAL)
    with pytest.raises(KeyRefused) as caught:
        async with gate.waiting("GET", "/v1/orders"):
            pytest.fail("let in")
    assert (caught.value.path, caught.value.status) == ("/v1/orders", None)
    assert caught.value.code == "unauthorised"
    gate.open()
    async with gate.waiting("GET", "/v1/orders"):
        pass


async def test_who_got_a_turn_as_the_gate_closed_is_turned_away_too() -> None:
    gate = KeyGate()
    with pytest.raises(KeyRefused):
        async with gate.waiting("GET", "/v1/orders"):
            gate.close(REFUSAL)  # nothing awaits after it, so no timer can have fired


async def test_a_cancelled_waiter_is_cancelled_and_not_refused() -> None:
    gate = KeyGate()

    async def wait() -> None:
        async with gate.waiting("GET", "/v1/orders"):
            await asyncio.Event().wait()

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gate.close(REFUSAL)


@pytest.mark.parametrize(
    "url",
    [
        "http://api.lune.co/v1/orders",
        "https://api.lune.co:8443/v1/orders",
        "https://api.lune.co.example.com/v1/orders",
        "https://example.com/v1/orders",
    ],
)
def test_the_key_leaves_for_its_origin_only(url: str) -> None:
    origin = Origin("https://api.lune.co/v1", lambda: "key")
    assert origin.authorization(origin.url("/orders")) == {"Authorization": "Bearer key"}
    with pytest.raises(AssertionError, match="origin"):
        origin.authorization(URL(url))


def test_keys_of_before_stay_hidden() -> None:
    keys = iter(["first-key\n", "second-key", "first-key"])
    origin = Origin("https://api.lune.co/v1", lambda: next(keys))
    origin.reread_key()
    assert origin.authorization(origin.url("/"))["Authorization"] == "Bearer second-key"
    assert origin.redact("first-key, second-key") == "***, ***"
    origin.reread_key()
    assert origin.authorization(origin.url("/"))["Authorization"] == "Bearer first-key"
    assert "key" not in repr(origin)
