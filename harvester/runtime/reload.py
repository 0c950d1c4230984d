"""SIGHUP: the running daemon reads its configuration and its key again, whole or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from harvester.config.load import load
from harvester.config.settings import Settings
from harvester.domain.errors import ConfigurationError, HarvesterError

if TYPE_CHECKING:
    from harvester.app import App
    from harvester.runtime.systemd import Supervisor

log = structlog.get_logger()


class Reload:
    """Takes effect at once: the key (what is in its file or credential now) and ``[log]``.

    Every other setting that changed is named in the log as needing a restart. A configuration
    that is wrong, or without a readable key, changes nothing and is said to be wrong, to the
    service manager until a good one was read.
    """

    def __init__(
        self,
        path: Path | None,
        settings: Settings,
        configure: Callable[[Settings], None],
        supervisor: Supervisor,
    ) -> None:
        self._path = path
        self._started_with = settings
        self._configure = configure
        self._supervisor = supervisor
        self._app: App | None = None
        self._running: asyncio.Task[None] | None = None
        self._early = False

    def begin(self, app: App) -> None:
        """Act on requests from now on, on one that came before too."""
        self._app = app
        if self._early:
            self.request()

    def request(self) -> None:
        """Read again; one that is under way gives way, since Lune may let it wait for minutes."""
        if self._app is None:
            self._early = True
            return
        if self._running is not None:
            self._running.cancel()
        self._running = asyncio.create_task(self._reload(self._app), name="reload")

    async def _reload(self, app: App) -> None:
        self._supervisor.reloading()
        try:
            settings = await asyncio.to_thread(_read, self._path)
        except ConfigurationError as error:
            log.error("configuration not reloaded", problems=error.problems)  # noqa: TRY400 - the file is wrong, not the program
            self._supervisor.reloaded(f"configuration not reloaded: {error.problems[0]}")
            return
        self._configure(settings)
        self._supervisor.reloaded()
        later = list(_changed(self._started_with, settings))
        log.info("configuration reloaded", needs_restart=later)
        try:
            await app.lune.probe()
        except HarvesterError as error:
            log.warning("key refused", reason=str(error))


def _read(path: Path | None) -> Settings:
    settings = load(path)
    settings.api_key.read()
    return settings


def _changed(old: Settings, new: Settings) -> Iterator[str]:
    """Yield the dotted names of settings that differ and are only read at the start."""
    for section in Settings.model_fields:
        before, after = getattr(old, section), getattr(new, section)
        if section != "log":
            for key in type(before).model_fields:
                if getattr(before, key) != getattr(after, key):
                    yield f"{section}.{key}"
