"""Every fault test plays in a scene, and ends with the invariants."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from harvester.sandbox import Sandbox, SandboxOptions
from tests.acceptance.harness import Home
from tests.faults.invariants import check_invariants
from tests.faults.proxy import Proxy
from tests.faults.scene import Scene


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    """A harvester that has done nothing yet, and a Lune with one account and no orders."""
    options = SandboxOptions(orders=0, client_accounts=1, speed=0, rate_limit=0)
    async with Sandbox(options) as lune, Proxy(lune.base_url, lune.accounts[0].id) as proxy:
        home = Home(tmp_path, lune, lune__base_url=proxy.base_url)
        one = Scene(home, lune, proxy)
        yield one
        await check_invariants(one)
