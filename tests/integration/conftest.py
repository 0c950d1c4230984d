"""A harvest wired as the program wires it, against the sandbox, in a folder of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from harvester.app import App, open_app
from harvester.config.settings import Settings
from harvester.context import Stop
from harvester.sandbox import Sandbox, SandboxOptions

OpenApp = Callable[..., AbstractAsyncContextManager[App]]


def settings_for(sandbox: Sandbox, folder: Path, **harvest: Any) -> Settings:
    return Settings.model_validate(
        {
            "lune": {
                "base_url": sandbox.base_url,
                "api_key": sandbox.key,
                "accounts": ["all"],
                "rate_limit": 2000,
            },
            "database": {"url": f"sqlite:///{folder}/ledger.db"},
            "storage": {"url": (folder / "archive").as_uri()},
            "http": {"listen": ""},
            "harvest": {"sweep_interval": "15m", "longest_interval": "6h"} | harvest,
        }
    )


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    """A Lune whose clock stands still and that limits no rate."""
    async with Sandbox(SandboxOptions(orders=0, client_accounts=1, speed=0, rate_limit=0)) as one:
        yield one


@pytest.fixture
def opened(sandbox: Sandbox, tmp_path: Path) -> OpenApp:
    """Open the harvest, as often as a test restarts it; keywords are [harvest] settings."""

    @asynccontextmanager
    async def open_one(**harvest: Any) -> AsyncIterator[App]:
        settings = settings_for(sandbox, tmp_path, **harvest)
        async with open_app(settings, Stop(), "test") as one:
            yield one

    return open_one
