"""Logging: structlog for everything, JSON lines or console, one line an event, on stderr.

No key, e-mail address or metadata is ever passed to a logger; texts from outside are shortened
and lose their control characters here, so that no value can break or forge a line.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

_LONGEST_TEXT = 1000


def configure(level: str, form: str, stream: TextIO | None = None) -> None:
    """Send all logging to ``stream`` (stderr) as ``console``, ``json`` or ``auto``."""
    stream = stream or sys.stderr
    console = form == "console" or (form == "auto" and stream.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _make_safe,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    # Tracebacks without locals: a local may be the key.
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderer(console=console),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("apscheduler", "aiosqlite", "sqlalchemy", "alembic", "asyncio", "aiohttp.access"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def _renderer(*, console: bool) -> list[Any]:
    if console:
        plain = structlog.dev.plain_traceback
        return [structlog.dev.ConsoleRenderer(exception_formatter=plain, pad_event_to=22)]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]


def _make_safe(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    for name, value in event.items():
        if isinstance(value, str) and (len(value) > _LONGEST_TEXT or not value.isprintable()):
            text = value[:_LONGEST_TEXT]
            event[name] = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return event
