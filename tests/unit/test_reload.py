"""When the configuration is read again; what that changes is tried on the running daemon."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from unittest.mock import AsyncMock

import pytest

from harvester.app import App
from harvester.config.load import load
from harvester.config.settings import Settings
from harvester.runtime.reload import Reload
from harvester.runtime.systemd import NOBODY


@pytest.mark.parametrize("early", [False, True])
async def test_what_is_asked_for_before_the_app_is_open_is_done_then(
    tmp_path: Path, early: bool
) -> None:
    (tmp_path / "key").write_text("a-key")
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "config.toml").write_text(f'[lune]\napi_key_file = "{tmp_path / "key"}"\n')
    read: list[Settings] = []
    reload = Reload(tmp_path / "config.toml", load(tmp_path / "config.toml"), read.append, NOBODY)
    if early:
        reload.request()
    probe = AsyncMock()
    reload.begin(cast(App, SimpleNamespace(lune=SimpleNamespace(probe=probe))))
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        await task
    assert (len(read), probe.await_count) == (int(early), int(early))
